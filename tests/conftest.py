"""Fixtures that several test modules share: a browser, the built site, the real MNIST."""
import functools
import http.server
import importlib
import os
import shutil
import threading
from pathlib import Path

import hypothesis
import pytest

from skips import skip

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_NUM_THREADS", "1")       # as in `make test`; before the first import of torch

# No deadline: the first example pays for imports, and a busy machine may stall. Derandomized: a green run stays green.
hypothesis.settings.register_profile("course", deadline=None, derandomize=True,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
# tools/faults.py needs to know that there is a counterexample, not the smallest one.
hypothesis.settings.register_profile(
    "faults", hypothesis.settings.get_profile("course"), phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
hypothesis.settings.load_profile(os.environ.get("COURSE_HYPOTHESIS", "course"))

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root and offline: no sandbox, and no requests of the browser's own.
BROWSER_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
                     "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from one seed: a model that it makes is the same in every run."""
    import torch
    torch.manual_seed(0)


# A module's, not the session's: while playwright runs, this thread has an event loop, and in a plain
# `pytest` the notebooks would find it.
@pytest.fixture(scope="module")
def browser():
    """A headless browser driven by playwright: one from PATH, else playwright's own."""
    from playwright.sync_api import Error, sync_playwright
    with sync_playwright() as playwright:
        paths = [path for name in BROWSERS if (path := shutil.which(name))]
        own = playwright.chromium.executable_path
        paths += [own] if Path(own).exists() else []
        reasons = ["no browser: `make test` tries to install one, else install chromium"]
        for path in paths:
            try:
                launched = playwright.chromium.launch(executable_path=path, args=BROWSER_ARGUMENTS)
            except Error as error:                  # a stub on PATH, say
                reasons.append(f"{path} does not start: {str(error).splitlines()[0]}")
                continue
            yield launched
            launched.close()
            return
        skip("; ".join(reasons))


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").is_file():
        skip("the book is not built: run `make book` (or `jupyter-book build .`) first")
    return folder


@pytest.fixture(scope="session")
def site_url(site: Path):
    """The address of a small server for the built book, without a slash at the end."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tool(monkeypatch):
    """Import a script of tools/ the way it is imported when it runs."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder COURSE_DATA with the real MNIST in it. Skips where there is none."""
    folder = os.environ.get("COURSE_DATA")
    if not folder:
        pytest.skip("COURSE_DATA is not set: set it to a folder with the real MNIST to run this test")
    return Path(folder)
