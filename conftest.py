"""Notebooks that need an optional package carry the mark `extra`, and are skipped visibly where it is missing."""
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from checkout import missing_extra, needs_extra  # noqa: E402


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb" and needs_extra(item.path):
            item.add_marker("extra")
            reason = missing_extra(item.path)
            if reason and os.environ.get("COURSE_EXTRAS") != "1":       # under `make test-extras` it runs, and fails
                item.add_marker(pytest.mark.skip(reason=reason))
