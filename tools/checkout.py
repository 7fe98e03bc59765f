"""What the tools share: the checkout's folder, copies of it, and running pytest on the side."""
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Environments, caches, built files; and what a class handed in, with its marks: that is nobody else's.
_NOT_COPIED = shutil.ignore_patterns(".*", "_build", "build", "wheelhouse", "*.egg-info", "__pycache__", "venv", "env", "node_modules",
                                     "handed_in*", "marks*.csv", "units")


def copy_checkout(target: Path, root: Path = ROOT) -> Path:
    """Copy the checkout to `target`, a new folder, without environments, caches, built files and a class's work.

    Raises: SystemExit if `target` lies where it would be copied itself.
    """
    place, root = Path(target).resolve(), Path(root).resolve()
    if place.is_relative_to(root) and not place.is_relative_to(root / "_build"):
        raise SystemExit(f"{target} lies inside the checkout, which is copied there; name a place outside of it, or in _build")
    return Path(shutil.copytree(root, target, ignore=_NOT_COPIED))


def notebooks(root: Path = ROOT) -> list[Path]:
    """The book's notebooks in reading order; the pages that read the others come last."""
    found = [p for p in (root / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    return sorted(found, key=lambda p: (p.stem in ("objectives", "run_times"), p))


def needs_extra(notebook: Path) -> tuple[str, str] | None:
    """The package that a notebook needs beyond requirements.txt, and its group in pyproject.toml; None for most.

    The notebook's metadata name both: "course": {"extra": ["ray", "serve-ray"]}.
    """
    extra = json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {}).get("course", {}).get("extra")
    return tuple(extra) if extra else None


def missing_extra(notebook: Path) -> str | None:
    """What to install before this notebook can run; None if nothing."""
    package, group = needs_extra(notebook) or (None, None)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed: pip install -e '.[{group}]'"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file's content in one step: a reader sees the old file or the new one. If that fails, nothing is left behind."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run of pytest said: exit code, counts, the first failure in a line and in full, all output."""
    code: int
    passed: int
    failed: int
    errors: int
    skipped: int
    headline: str
    message: str
    output: str


def run_pytest(arguments: list[str], *, cwd: Path, env: dict[str, str], report: Path,
               timeout: float | None = None) -> Outcome:
    """Run pytest in a process of its own and read its report (JUnit XML, written to `report`).

    Raises: subprocess.TimeoutExpired after `timeout` seconds.
    """
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "--tb=short", "-p", "no:cacheprovider",
               f"--junit-xml={report}", "-o", "junit_logging=no", *arguments]
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as reason:
        if not isinstance(reason, KeyboardInterrupt):       # a Ctrl-C reached pytest as well
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=10)                 # time to stop its kernels
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):           # pytest came to an end before it wrote one
        cases = []
    kinds = [{child.tag for child in case} & {"failure", "error", "skipped"} for case in cases]
    told = [child for tag in ("failure", "error") for case in cases for child in case.iter(tag)]
    headline, message = (told[0].get("message", ""), (told[0].text or "").strip()) if told else ("", "")
    message = re.sub(r"#x1B\[[\d;]*m", "", message)         # colours, as JUnit XML spells them
    return Outcome(process.returncode, sum(not k for k in kinds), sum("failure" in k for k in kinds),
                   sum("error" in k for k in kinds), sum("skipped" in k for k in kinds), headline, message, output)
