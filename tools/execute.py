"""Run notebooks from a fresh kernel and store their outputs.

    python tools/execute.py [NOTEBOOK ...]            in place; without names, all of book/
    python tools/execute.py --copy-to FOLDER          in a copy of the checkout, which stays untouched

A notebook is written only after its last cell has run. One that fails is left as it was, named
together with its cell and error, and the exit code is 1. What is written depends on the cells and
their outputs only, so that a second run changes little: no timestamps, no widget state, cell ids
made from the cells' text. `metadata.course.seconds` says how long the run took.
"""
import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import nbformat
from checkout import ROOT, copy_checkout, missing_extra, notebooks, write_atomically
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from tqdm import tqdm

CELL_TIMEOUT = 900      # seconds, as in pyproject.toml for nbval
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# Without the version: it would change with every reader's Python.
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
# What editors and runners leave in a cell's metadata.
NOISE = {"execution", "ExecuteTime", "collapsed", "scrolled", "trusted", "papermill", "colab", "outputId", "id",
         "lines_to_next_cell"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def normalise(notebook, seconds: float):
    """Reduce a notebook to what the course stores; changes `notebook` and returns it."""
    course = {**notebook.metadata.get("course", {}), "seconds": round(seconds, 1)}
    notebook.metadata = nbformat.from_dict({"course": course, "kernelspec": KERNELSPEC, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = {}
    for cell in notebook.cells:
        # The id follows the cell's text: moving or adding other cells leaves it alone.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k not in NOISE})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
            output.get("metadata", {}).pop(WIDGET, None)
    return notebook


def run(notebook, folder: Path, *, past_errors: bool = False) -> float:
    """Run all cells in place, in a fresh kernel that works in `folder`; returns seconds.

    Args: past_errors: go on after a cell that raised; its error is in its outputs.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, kernel_name="python3", timeout=CELL_TIMEOUT, record_timing=False, allow_errors=past_errors,
                            store_widget_state=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    with tqdm(total=len(cells), unit="cell", leave=False, disable=None) as bar:
        client.on_cell_executed = lambda **_: bar.update()
        begin = time.perf_counter()
        # What the kernel process itself prints (not its cells) is noise, and no part of an output.
        with open(os.devnull, "w") as nowhere:
            client.execute(stderr=nowhere)
        return time.perf_counter() - begin


def failing_cell(notebook) -> str:
    """Name the first cell that raised or never ended: its number, as in nbval, and first line."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    raised = [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)
              and "raises-exception" not in cell.metadata.get("tags", [])]
    ran = [cell for cell in code if cell.execution_count is not None]
    cell = (raised or ran[-1:] or code[:1] or [None])[0]
    if cell is None:
        return "no code cell"
    line = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"code cell {code.index(cell) + 1} ({line.strip()[:60]})"


def execute(path: Path) -> str | None:
    """Run one notebook file and store it; returns what went wrong, if anything."""
    try:
        notebook, reason = nbformat.read(path, as_version=4), missing_extra(path)
    except Exception as error:                              # damaged in any way
        return f"its file, which cannot be read: {type(error).__name__}"
    if reason:
        print(f"  left with its stored outputs: {reason}", flush=True)
        return None
    try:
        seconds = run(notebook, path.parent)
    except CellExecutionError as error:
        return f"{failing_cell(notebook)}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"{failing_cell(notebook)}: still running after {CELL_TIMEOUT} s"
    except RuntimeError as error:
        return f"{failing_cell(notebook)}: the kernel died (out of memory?) or did not start: {error}"
    write_atomically(path, nbformat.writes(normalise(notebook, seconds)) + "\n")
    print(f"  {seconds:.1f} s", flush=True)
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs.")
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every notebook of book/")
    parser.add_argument("--copy-to", type=Path, metavar="FOLDER", help="work in a copy of the checkout")
    options = parser.parse_args(arguments)
    if options.copy_to and options.notebook:
        parser.error("--copy-to runs every notebook of the copy; name none")
    if options.copy_to and options.copy_to.exists():
        parser.error(f"{options.copy_to} is there already; name a new folder")
    if nowhere := [str(path) for path in options.notebook if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(nowhere)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")      # the setting that all stored numbers have
    root = copy_checkout(options.copy_to) if options.copy_to else ROOT
    paths = options.notebook or notebooks(root)
    if not paths:
        print("no notebooks found in book/")
        return 1
    failures = {}
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path}", flush=True)
        if wrong := execute(path):
            failures[path] = wrong
            print(f"  FAILED in {wrong}", flush=True)
    for path, wrong in failures.items():
        print(f"{path}: not stored: {wrong}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
