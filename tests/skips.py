"""When a test may be skipped, always visibly, and when that is a failure."""
import importlib.util
import os

import pytest


def skip(reason: str) -> None:
    """Skip the test visibly; with COURSE_NO_SKIPS=1 (.ci/run) fail it instead."""
    if os.environ.get("COURSE_NO_SKIPS") == "1":
        pytest.fail(f"COURSE_NO_SKIPS=1, and {reason}")
    pytest.skip(reason)


def extra(*packages: str, group: str) -> None:
    """Skip the test visibly where an optional package is missing; under `make test-extras` fail it instead.

    Such a test carries the mark `extra`, by which that target selects it. Args: group: of pyproject.toml.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            reason = f"{package} is not installed: pip install -e '.[{group}]'"
            if os.environ.get("COURSE_EXTRAS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
