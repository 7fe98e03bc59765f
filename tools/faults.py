"""Break the course on purpose, one line at a time: for every fault, a test must go red.

    python tools/faults.py [NAME ...]                 without names, every fault of the list

The list is tests/faults.toml. Each [[fault]] has a `name`, the `file` to break, the exact text `old`
that occurs in it once, the text `new` that replaces it, and the `test` (a pytest node id) that must
notice. Every fault is planted in a copy of the checkout of its own; the checkout is never touched.
First the named tests must pass in an unbroken copy. A fault counts as caught only where its test
fails by itself: an import error, a skipped test or a misspelt name is no catch.
"""
import argparse
import ast
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from checkout import ROOT, Outcome, copy_checkout, run_pytest

TIMEOUT = 600           # seconds for one fault's test: a fault may make a loop endless
AT_ONCE = 2
EXTRAS = {"ray": "course_lib/serving/ray_app.py"}      # optional packages, and what cannot be tested without
# A pytest plugin that refuses to test any other course_lib than the copy's.
GUARD_NAME = "faults_guard"
GUARD = '''\
from pathlib import Path
import pytest

def pytest_configure():
    import course_lib
    if not Path(course_lib.__file__).resolve().is_relative_to(Path(__file__).resolve().parent):
        raise pytest.UsageError(f"tests the wrong course_lib: {course_lib.__file__}")
'''
# Errors that say the broken line isn't even Python that runs: any test at all would notice.
NO_CATCH = ("SyntaxError", "IndentationError", "NameError", "ImportError", "ModuleNotFoundError")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One breakage and the test that must notice it."""
    name: str
    file: str
    old: str
    new: str
    test: str

    def plant(self, root: Path) -> None:
        """Break the file under `root`; raises ValueError where the fault can't be planted."""
        path = root / self.file
        if not path.is_file():
            raise ValueError(f"there is no file {self.file}")
        text = path.read_text(encoding="utf-8")
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"`old` occurs {times} times in {self.file}, not once")
        if self.old == self.new:
            raise ValueError("`old` and `new` are equal")
        broken = text.replace(self.old, self.new)
        if path.suffix == ".py":
            try:
                ast.parse(broken)
            except SyntaxError as error:
                raise ValueError(f"{self.file} would be no valid Python: {error}") from error
        path.write_text(broken, encoding="utf-8")


def read_faults(path: Path) -> list[Fault]:
    """Read the list; raises ValueError where an entry is incomplete, unknown or double."""
    fields = {field.name for field in dataclasses.fields(Fault)}
    faults = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("fault", []):
        if set(entry) != fields:
            raise ValueError(f"{path.name}: fault {entry.get('name', '?')!r} must have exactly {sorted(fields)}")
        faults.append(Fault(**entry))
    names = [fault.name for fault in faults]
    if double := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path.name}: two faults are named {sorted(double)}")
    return faults


def run_in_copy(tests: list[str], copy: Path, timeout: float | None) -> Outcome:
    """Run tests against the copy's own course_lib."""
    (copy / f"{GUARD_NAME}.py").write_text(GUARD, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COURSE_HYPOTHESIS": "faults"}
    arguments = ["-p", GUARD_NAME, "-p", "no:xdist", *tests]
    return run_pytest(arguments, cwd=copy, env=env, report=copy / "report.xml", timeout=timeout)


def unbroken(faults: list[Fault], root: Path) -> str | None:
    """Run all named tests on an unbroken copy; returns what is wrong, if anything."""
    tests = list(dict.fromkeys(fault.test for fault in faults))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcome = run_in_copy(tests, copy_checkout(Path(folder, "copy"), root), timeout=None)
    if outcome.code != 0:
        return f"the named tests must pass unbroken; pytest's exit code is {outcome.code}\n{outcome.output}"
    if outcome.skipped:
        return f"a named test was skipped, so it can't notice anything\n{outcome.output}"
    return None


def try_fault(fault: Fault, root: Path) -> tuple[str, float]:
    """Plant one fault and run its test; returns "caught" or why not, and seconds."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        copy = copy_checkout(Path(folder, "copy"), root)
        try:
            fault.plant(copy)
            outcome = run_in_copy([fault.test], copy, TIMEOUT)
        except ValueError as error:
            verdict = str(error)
        except subprocess.TimeoutExpired:
            verdict = f"the test took more than {TIMEOUT} s"
        else:
            verdict = judge(outcome)
    return verdict, time.perf_counter() - begin


def judge(outcome: Outcome) -> str:
    """Say "caught" where the test itself failed, else what happened instead."""
    if outcome.code == 0:
        return "the test still passes" if not outcome.skipped else "the test was skipped"
    if outcome.code != 1 or not outcome.failed:
        return f"the test could not run (pytest's exit code {outcome.code})\n{outcome.output[-2000:]}"
    if outcome.headline.startswith(NO_CATCH):
        return f"no verdict of the test, the broken line does not run\n{outcome.message[-2000:]}"
    return "caught"


def try_all(faults: list[Fault], root: Path = ROOT) -> int:
    """Try every fault, print the table, return the exit code."""
    if not faults:
        print("faults: the list is empty")
        return 1
    print(f"faults: first the named tests, unbroken ({len({f.test for f in faults})} tests)", flush=True)
    if wrong := unbroken(faults, root):
        print(f"faults: {wrong}")
        return 1
    results = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(try_fault, fault, root): fault for fault in faults}
        try:
            for future in as_completed(waiting):
                fault = waiting[future]
                results[fault] = future.result()
                print(f"[{len(results)}/{len(faults)}] {fault.name}: {_word(results[fault][0])}", flush=True)
        except BaseException:           # Ctrl-C: don't start what waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    width = max(len(fault.name) for fault in faults)
    width_of_test = max(len(fault.test) for fault in faults)
    print(f"\n{'fault':{width}}  {'test':{width_of_test}}  result  seconds")
    for fault in faults:
        verdict, seconds = results[fault]
        print(f"{fault.name:{width}}  {fault.test:{width_of_test}}  {_word(verdict)}  {seconds:7.1f}")
    missed = {fault: verdict for fault, (verdict, _) in results.items() if verdict != "caught"}
    for fault, verdict in missed.items():
        print(f"\n{fault.name} ({fault.file}): {verdict}")
    print(f"faults: {len(faults) - len(missed)} caught, {len(missed)} missed")
    return 1 if missed else 0


def _word(verdict: str) -> str:
    return "caught" if verdict == "caught" else "MISSED"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant each listed fault and run the test that must notice it.")
    parser.add_argument("name", nargs="*", help="default: every fault")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)      # for this tool's tests
    options = parser.parse_args(arguments)
    faults = read_faults(options.root / "tests" / "faults.toml")
    if unknown := set(options.name) - {fault.name for fault in faults}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    faults = [fault for fault in faults if not options.name or fault.name in options.name]
    for package, file in EXTRAS.items():
        if importlib.util.find_spec(package) is None and any(fault.file == file for fault in faults):
            faults = [fault for fault in faults if fault.file != file]
            print(f"faults: those in {file} are left out: {package} is not installed (`make test-extras` installs it)")
    return try_all(faults, options.root)


if __name__ == "__main__":
    sys.exit(main())
