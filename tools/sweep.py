"""Verify every notebook under other conditions: a star, not a grid.

    python tools/sweep.py [--only NOTEBOOK] [--arm ARM] [--retry]

Each arm changes one thing against the base setting, and nbval says whether the notebook's stored
text and its claims still hold. Each finished pair of notebook and arm is stored at once under
_build/sweep/, and is run again only when something that could change it has changed: the notebook,
the modules of course_lib that it imports, its data tables and stored studies, the pinned packages. The exit code is 1
if any pair failed.
"""
import argparse
import ast
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checkout import ROOT, Outcome, missing_extra, notebooks, run_pytest, write_atomically

PACKAGE = "course_lib"
IGNORED = "nbval-ignore-output"     # a tag: nbval does not compare this cell's outputs
# What steers a notebook from outside; an arm starts from none of them.
STEERING = ("COURSE_DATASET", "COURSE_SEED", "COURSE_CLAIMS", "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY",
            "ONEDNN_MAX_CPU_ISA")
BASE = {"OMP_NUM_THREADS": "1", "COURSE_CLAIMS": "strict"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting: what it changes against the base, and how long a cell may take in it (seconds)."""
    name: str
    changes: dict[str, str] = dataclasses.field(default_factory=dict)
    cell_timeout: int = 900
    needs: str | None = None        # an environment variable without which the arm can't run

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in STEERING}
        return {**inherited, **BASE, **self.changes}


ARMS = (
    Arm("base"),
    *(Arm(f"seed{seed}", {"COURSE_SEED": str(seed)}) for seed in range(1, 5)),
    Arm("threads2", {"OMP_NUM_THREADS": "2"}),
    # Another machine, rehearsed: without the newer vector instructions, sums are rounded differently.
    Arm("isa-default", {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Arm("mnist", {"COURSE_DATASET": "mnist"}, cell_timeout=1800, needs="COURSE_DATA"),
)


# --- what a notebook depends on ---

def module_files(package: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name: {"data": …/data.py, "": …/__init__.py}."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_modules(source: str, *, inside: str | None, is_package: bool = False, known: set[str]) -> set[str]:
    """The package's modules that `source` imports, by dotted name; all of them where that is unclear.

    Args: source: Python code; inside: the dotted name of the module that it is ("" is the package
          itself), or None for code outside the package; is_package: whether that is an __init__.py.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == PACKAGE:
                    # `import course_lib` reaches every module as an attribute.
                    found |= {rest} if rest in known and alias.asname and rest else known
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                if inside is None:
                    continue
                parts = inside.split(".") if inside else []
                parts = parts[:len(parts) - node.level + is_package]
                origin = ".".join(parts + (node.module.split(".") if node.module else []))
            else:
                top, _, origin = (node.module or "").partition(".")
                if top != PACKAGE:
                    continue
            for alias in node.names:
                name = f"{origin}.{alias.name}".lstrip(".")
                if name in known:
                    found.add(name)
                elif origin in known and origin:
                    found.add(origin)               # a function of that module
                else:
                    found |= known                  # a name that the package itself hands out
    # Importing a.b runs a and the package too.
    return {m for name in found for m in (name, *_parents(name))}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts))]


def dependencies(code: str, package: Path) -> dict[str, Path]:
    """The package's files that the code runs, directly or through another module."""
    files = module_files(package)
    known = set(files)
    todo = imported_modules(code, inside=None, known=known)
    done = set()
    while todo:
        name = todo.pop()
        done.add(name)
        path = files[name]
        todo |= imported_modules(path.read_text(encoding="utf-8"), inside=name,
                                 is_package=path.name == "__init__.py", known=known) - done
    return {name: files[name] for name in sorted(done)}


def code_of(notebook: dict) -> str:
    """The notebook's Python code, without the lines that only IPython understands."""
    lines = [line for cell in notebook["cells"] if cell["cell_type"] == "code"
             for line in "".join(cell["source"]).splitlines()]
    return "\n".join("pass" if line.lstrip().startswith(("%", "!", "?")) else line for line in lines)


def key_of(path: Path, arm: Arm, root: Path) -> str:
    """A digest of all that could change this pair's result."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [["".join(cell["source"]), tags, [_texts(o) for o in cell["outputs"] if IGNORED not in tags]]
             for cell in notebook["cells"] if cell["cell_type"] == "code"
             for tags in [cell["metadata"].get("tags", [])]]
    code = code_of(notebook)
    try:
        modules = dependencies(code, root / PACKAGE)
    except SyntaxError:                                 # some magic: depend on everything
        modules = module_files(root / PACKAGE)
    tables = [p for p in sorted((path.parent / "data").glob("*")) if p.name in code]
    studies = [p for p in sorted((root / "studies" / "results").glob("*.json")) if p.stem in code]
    files = [*modules.values(), *tables, *studies, root / "requirements.txt", root / "tests" / "sanitize.cfg"]
    content = {"arm": dataclasses.asdict(arm), "base": BASE, "cells": cells,
               "files": [[str(p.relative_to(root)), hashlib.sha256(p.read_bytes()).hexdigest()]
                         for p in files if p.is_file()]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _texts(output: dict) -> list:
    """What nbval compares of an output: its text, not its picture."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return [output.get("name"), output.get("text"), data, output.get("ename"), output.get("evalue")]


# --- running and storing ---

def run_nbval(path: Path, arm: Arm, root: Path, report: Path) -> Outcome:
    """Verify one notebook in one arm; stops at its first failing cell."""
    arguments = ["-o", "addopts=", "-p", "no:xdist", "-x", "--nbval", "--nbval-current-env",
                 f"--nbval-sanitize-with={root / 'tests' / 'sanitize.cfg'}",
                 f"--nbval-cell-timeout={arm.cell_timeout}", str(path)]
    return run_pytest(arguments, cwd=root, env=arm.environment(), report=report)


def sweep(paths: list[Path], arms: list[Arm], *, root: Path = ROOT, retry: bool = False,
          run: Callable[[Path, Arm, Path, Path], Outcome] = run_nbval) -> tuple[dict[tuple[str, str], dict], bool]:
    """Verify each notebook in each arm, using what is stored.

    Returns: the results by (notebook, arm), and whether it came to the end: Ctrl-C stops it early.
    """
    store = root / "_build" / "sweep"
    store.mkdir(parents=True, exist_ok=True)
    results = {}
    pairs = [(path, arm) for path in paths for arm in arms]
    try:
        for number, (path, arm) in enumerate(pairs, start=1):
            name = path.relative_to(root / "book").with_suffix("").as_posix()
            print(f"[{number}/{len(pairs)}] {name} {arm.name}: ", end="", flush=True)
            if arm.needs and not os.environ.get(arm.needs):
                print(f"not run ({arm.needs} is not set)")
                continue
            if reason := missing_extra(path):
                print(f"not run ({reason})")
                continue
            file = store / f"{name.replace('/', '.')}--{arm.name}.json"
            key = key_of(path, arm, root)
            result = _read(file)
            if result.get("key") == key and (result["outcome"] == "held" or not retry):
                print(f"{result['outcome']} (stored)")
            else:
                begin = time.perf_counter()
                outcome = run(path, arm, root, file.with_suffix(".xml"))
                seconds = time.perf_counter() - begin
                held = outcome.code == 0 and outcome.passed > 0 and outcome.skipped == 0
                result = {"key": key, "notebook": name, "arm": arm.name, "outcome": "held" if held else "FAILED",
                          "seconds": round(seconds, 1), "message": "" if held else outcome.message or outcome.output[-2000:]}
                # Another exit code is no verdict on the notebook (killed, out of memory): not kept.
                if outcome.code in (0, 1):
                    write_atomically(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
                file.with_suffix(".xml").unlink(missing_ok=True)
                print(f"{result['outcome']} ({result['seconds']} s)", flush=True)
            results[name, arm.name] = result
    except KeyboardInterrupt:
        print("interrupted; what is finished is stored")
        return results, False
    return results, True


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def table(names: list[str], arms: list[str], results: dict[tuple[str, str], dict]) -> str:
    """The table of what held: one line a notebook, one column an arm."""
    def word(name: str, arm: str) -> str:
        result = results.get((name, arm))
        return f"{result['outcome']} {result['seconds']:.0f} s" if result else "not run"
    lines = [["notebook", *arms], *([name, *(word(name, arm) for arm in arms)] for name in names)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify every notebook under other conditions.")
    parser.add_argument("--only", metavar="NOTEBOOK", help="one notebook: a path, or its file name without .ipynb")
    parser.add_argument("--arm", choices=[arm.name for arm in ARMS], help="one arm")
    parser.add_argument("--retry", action="store_true", help="run failed pairs again although nothing has changed")
    options = parser.parse_args(arguments)
    paths = [p for p in notebooks() if options.only is None or Path(options.only).stem == p.stem]
    arms = [arm for arm in ARMS if options.arm in (None, arm.name)]
    if not paths:
        parser.error(f"no such notebook in book/: {options.only}" if options.only else "no notebooks in book/")
    results, complete = sweep(paths, arms, retry=options.retry)
    names = [p.relative_to(ROOT / "book").with_suffix("").as_posix() for p in paths]
    failed = [result for result in results.values() if result["outcome"] != "held"]
    for result in failed:
        print(f"\n{result['notebook']} {result['arm']}:\n{result['message']}")
    print("\n" + table(names, [arm.name for arm in arms], results))
    pairs = len(names) * len(arms)
    print(f"sweep: {len(results) - len(failed)} held, {len(failed)} failed, {pairs - len(results)} not run")
    return 1 if failed or not complete else 0


if __name__ == "__main__":
    sys.exit(main())
