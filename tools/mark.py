"""Mark what a class has handed in: run every notebook with the course's own checkers, and write a table.

    python tools/mark.py FOLDER [--to marks.csv]

Every .ipynb below FOLDER is taken; which chapter it is stands in its metadata or else in its title, whatever the file is called. Its
checker cells are replaced by the book's, then it is run from top to bottom in a fresh kernel, past errors. For each exercise the table
says "correct", "wrong" (with the hint), "not attempted", or "not run" (with the reason). The notebooks themselves stay as they are.

This runs other people's code: use an account or a container that may be lost. A student who means to cheat can (the code that
is run may change anything in its own process), so the table is a help for marking, not a proof.
"""
import argparse
import csv
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from checkout import ROOT, write_atomically
from classroom import printed, tags
from execute import run
from nbclient.exceptions import CellTimeoutError

from course_lib import syllabus

BOOK = ROOT / "book"
FIELDS = ("file", "chapter", "exercise", "objectives", "result", "message")


def with_own_checkers(notebook, chapter: syllabus.Chapter, book: Path = BOOK):
    """Put the book's checkers in place of the student's, in place; returns the checkers' cells by name.

    A checker that is missing is put at the end, so that its answer is judged all the same.
    """
    original = nbformat.read(book / f"{chapter.name}.ipynb", as_version=4)
    sources = {e.checker: next(c.source for c in original.cells if "checker" in tags(c) and f"def {e.checker}(" in c.source)
               for e in chapter.exercises if e.checker}
    cells = {}
    for name, source in sources.items():
        handed_in = [c for c in notebook.cells if c.cell_type == "code" and re.search(rf"(?m)^def {name}\(", c.source)]
        if not handed_in:
            handed_in = [nbformat.v4.new_code_cell()]
            notebook.cells += handed_in
        cells[name] = handed_in[-1]         # a copy that a student made above the answer would not know it yet
        # Whatever the notebook calls `check` by now, this is the course's.
        cells[name].source = f"from course_lib.checks import WrongAnswer, check\n{source}"
    return cells


def chapter_of(notebook, known: dict[str, syllabus.Chapter]) -> syllabus.Chapter | None:
    """The chapter of which a notebook is a copy: by what `make student` wrote into it, else by its title."""
    titles = {chapter.title: chapter for chapter in known.values()}
    first = notebook.cells[0].source.splitlines()[:1] if notebook.cells else []
    return known.get(notebook.metadata.get("course", {}).get("notebook")) or titles.get("".join(first).removeprefix("# "))


def first_error(cells) -> str:
    """The first error in these cells, with its cell's number; "" if there is none."""
    for number, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and output.ename != "WrongAnswer":
                return f"cell {number}: {output.ename}: {output.evalue}"
    return ""


def verdict(cell, before) -> tuple[str, str]:
    """What a checker's cell says: (result, message). Args: before: the cells above it, where the cause of an error may lie."""
    for output in cell.outputs:
        if output.output_type == "error":
            kind = "wrong" if output.ename == "WrongAnswer" else "not run"
            return kind, output.evalue if kind == "wrong" else first_error(before) or f"{output.ename}: {output.evalue}"
    said = printed(cell)
    if said.endswith("correct\n"):                      # whatever the answer itself has printed before
        return "correct", ""
    return ("not attempted", "") if said.endswith("not attempted yet\n") else ("not run", "the checker said nothing")


def no_mark(reason: str) -> dict:
    """The single row of a notebook that can't be marked."""
    return dict(zip(FIELDS, ("", "", "", "", "not run", reason)))


def mark(path: Path, known: dict[str, syllabus.Chapter]) -> list[dict]:
    """One row for each exercise of the notebook, or a single row that says why it can't be marked."""
    try:
        notebook = nbformat.read(path, as_version=4)
        chapter = chapter_of(notebook, known)
        reason = "" if chapter else "no chapter of this course has its title, and its metadata name none"
    except Exception as error:                          # damaged in any way
        reason = f"cannot be read: {type(error).__name__}"
    if reason:
        return [no_mark(reason)]
    checkers, stopped = with_own_checkers(notebook, chapter), ""
    with tempfile.TemporaryDirectory() as folder:       # what it writes is gone afterwards
        shutil.copytree(BOOK / "data", Path(folder, "data"))
        try:
            run(notebook, Path(folder), past_errors=True)       # which forgets the outputs that were handed in
        except (CellTimeoutError, RuntimeError) as error:       # a kernel that died, or that never started
            stopped = f"the notebook came to no end: {type(error).__name__}"
    rows = []
    for exercise in (e for e in chapter.exercises if e.checker):
        cell = checkers[exercise.checker]
        before = notebook.cells[:notebook.cells.index(cell)]
        result, message = ("not run", stopped) if stopped and not cell.outputs else verdict(cell, before)
        rows.append(dict(zip(FIELDS, ("", chapter.name, exercise.number, " ".join(map(str, exercise.objectives)), result, message))))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Mark the notebooks that a class has handed in.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, default=Path("marks.csv"), help="the table, as CSV; default: marks.csv")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    paths = sorted(p for p in options.folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        parser.error(f"no notebook below {options.folder}")
    if options.to.is_dir() or not options.to.absolute().parent.is_dir():
        parser.error(f"cannot write the table to {options.to}")
    os.environ.update(OMP_NUM_THREADS="1", COURSE_CLAIMS="report")
    known, rows = {chapter.name: chapter for chapter in syllabus.chapters(BOOK)}, []
    for number, path in enumerate(paths, start=1):
        name = os.fsencode(path.relative_to(options.folder).as_posix()).decode(errors="replace")
        print(f"[{number}/{len(paths)}] {name}", flush=True)
        try:
            new = mark(path, known)
        except Exception as error:                          # one notebook must not end the marking of all
            new = [no_mark(f"could not be marked: {type(error).__name__}: {error}")]
        new = [{**row, "file": name} for row in new]
        rows += new
        print("  " + ", ".join(f"{r['exercise']}: {r['result']}" if r["exercise"] else r["message"] for r in new), flush=True)
        text = io.StringIO()
        table = csv.DictWriter(text, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(options.to, text.getvalue())       # what is marked is kept, whatever comes
    unread = sum(not row["chapter"] for row in rows)
    print(f"marks: {options.to} ({len(paths)} notebooks, of which {unread} could not be marked)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
