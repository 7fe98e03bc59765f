"""Walk the three ways in which the course is used, each from a clean clone, and stop at the first thing that fails.

    python tools/walk.py [alone|class|workshop ...] [--quick]

alone      a reader: builds the book, runs a chapter, answers an exercise, finds the questions in the page
class      a teacher and a student: both versions of the notebooks, unpacked from their archives; untouched, none of the student's
           checkers passes and nothing fails; with the solutions as answers all pass; what is handed in is marked; the archive for a
           lab without internet installs the course and passes its tests with the network off
workshop   the handouts and the poster, on both papers
With --quick the environment is this one, a copy takes the place of the clone, and only the notebooks that run in seconds are run.
"""
import argparse
import ast
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from checkout import ROOT, copy_checkout
from classroom import printed, tags

from course_lib import syllabus

QUICK = ("05_predicting_joules", "05_real_joules")
# What `make walk OPTIONS=…` hands down to every make below it: these are not for the makes of the walk.
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "OPTIONS", "FOLDER", "PAPER", "EXECUTE", "NB", "NAME")
OFFLINE = ["unshare", "--net", "--map-root-user", "sh", "-c"]      # a shell without any network but its own loopback
NEEDED = ("git", "make", "unshare", "ip")       # by the long walk


class Walk:
    """One way: a folder of its own, and the steps so far."""

    def __init__(self, name: str, folder: Path, quick: bool):
        self.name, self.folder, self.quick, self.steps = name, folder, quick, 0
        self.checkout = folder / "course"
        if quick:
            copy_checkout(self.checkout)
            (self.checkout / ".venv").symlink_to(sys.prefix)
        else:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.checkout)], check=True)

    def step(self, what: str, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None, code: int = 0) -> str:
        """Run a command; its output is returned. Raises SystemExit, with the end of its output, unless it ends with `code`."""
        self.steps += 1
        print(f"{self.name} {self.steps}: {what}", end=" ", flush=True)
        begin = time.perf_counter()
        around = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
        result = subprocess.run(command, cwd=cwd or self.checkout, env={**around, **(env or {})}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
        if result.returncode != code:
            raise SystemExit(f"FAILED\n{result.stdout[-3000:]}\nwalk: {self.name} stops at step {self.steps}: {' '.join(command)}")
        print(f"({time.perf_counter() - begin:.0f} s)", flush=True)
        return result.stdout

    def make(self, what: str, *targets: str) -> str:
        """`make` in the checkout; --quick takes the environment as it is."""
        given = ["--old-file=.venv/installed.stamp"] if self.quick else []
        return self.step(what, ["make", "--no-print-directory", *given, *targets], env=self.own)

    def expect(self, what: str, ok: bool, detail: str = "") -> None:
        """Stop unless `ok`."""
        self.steps += 1
        print(f"{self.name} {self.steps}: {what}", flush=True)
        if not ok:
            raise SystemExit(f"FAILED {detail}\nwalk: {self.name} stops at step {self.steps}")

    @property
    def own(self) -> dict[str, str]:
        """Under --quick: this clone's course_lib, not the one that the environment points to."""
        return {"PYTHONPATH": str(self.checkout)} if self.quick else {}

    @property
    def python(self) -> str:
        return str(self.checkout / ".venv" / "bin" / "python")

    def run(self, what: str, paths: list[Path], root: Path, *, code: int = 0) -> str:
        """Run notebooks in place with the course_lib of the folder `root`."""
        return self.step(what, [self.python, str(self.checkout / "tools" / "execute.py"), *map(str, paths)],
                         env={"PYTHONPATH": str(root), "COURSE_CLAIMS": "report"}, code=code)


def said(path: Path, tag: str = "checker") -> list[str]:
    """What each cell with this tag that has to do with a checker printed, in a notebook that was run."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if tag in tags(cell) and cell.cell_type == "code"]
    return [printed(cell) for cell in cells if "check_" in cell.source]


def answered(path: Path, solutions: Path, target: Path) -> None:
    """Write the student's notebook with each answer taken from the teacher's solution: `check_1(x)` there is `my_answer = x` here."""
    notebook, solved = nbformat.read(path, as_version=4), nbformat.read(solutions, as_version=4)
    sources = [cell.source for cell in solved.cells if "solution" in tags(cell) and cell.cell_type == "code" and "check_" in cell.source]
    for cell, source in zip([c for c in notebook.cells if "answer" in tags(c)], sources, strict=True):
        call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("check_"))
        name = cell.source.split(" = ")[0]
        cell.source = source.replace(ast.get_source_segment(source, call), f"{name} = {ast.get_source_segment(source, call.args[0])}")
    nbformat.write(notebook, target)


def alone(walk: Walk) -> None:
    walk.make("make book", "book")
    page = walk.checkout / "_build" / "html" / "book" / "02_pruning_threshold.html"
    walk.expect("the chapter's page has its questions", 'id="questions"' in page.read_text(encoding="utf-8"))
    copy = walk.folder / "mine"
    shutil.copytree(walk.checkout, copy, ignore=shutil.ignore_patterns(".*", "_build", "tests"), symlinks=True)
    path = copy / "book" / f"{QUICK[1] if walk.quick else '02_pruning_threshold'}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if "answer" in tags(cell))
    first.source = first.source.replace("...", "'no idea'")
    nbformat.write(notebook, path)
    said_so = walk.run("a wrong answer stops there", [path], copy, code=1)
    walk.expect("with a hint", "WrongAnswer" in said_so and "Hint" in said_so, said_so)


def in_class(walk: Walk) -> None:
    walk.make("make student", "student")
    walk.make("make teacher", "teacher")
    for version in ("student", "teacher"):
        shutil.unpack_archive(walk.checkout / "_build" / f"{version}.zip", walk.folder)
    student, teacher = walk.folder / "student", walk.folder / "teacher"
    names = [c.name for c in syllabus.chapters(ROOT / "book") if c.name in QUICK or not walk.quick]
    # A notebook that needs an optional package is left as it is by tools/execute.py, and says so.
    walk.run("the student's notebooks, untouched, from top to bottom", [student / "book" / f"{n}.ipynb" for n in names], student)
    ran = [n for n in names if any(said(student / "book" / f"{n}.ipynb"))]
    words = {n: said(student / "book" / f"{n}.ipynb") for n in ran}
    walk.expect(f"nothing is attempted, nothing passes ({len(ran)} notebooks)",
                bool(ran) and all(set(w) == {"not attempted yet\n"} for w in words.values()), str(words))
    walk.run("the teacher's notebooks", [teacher / "book" / f"{n}.ipynb" for n in ran], teacher)
    words = {n: said(teacher / "book" / f"{n}.ipynb", "solution") for n in ran}
    walk.expect("every solution passes its checker", all(
        all("correct\n" in text for text in w) and len(w) == len(said(student / "book" / f"{n}.ipynb")) for n, w in words.items()), str(words))
    handed_in = walk.folder / "handed in"
    handed_in.mkdir()
    shutil.copy(student / "book" / f"{QUICK[1]}.ipynb", handed_in / "untouched.ipynb")
    answered(student / "book" / f"{QUICK[1]}.ipynb", teacher / "book" / f"{QUICK[1]}.ipynb", handed_in / "solved.ipynb")
    walk.make("make mark", "mark", f"FOLDER={handed_in}")
    with (walk.checkout / "marks.csv").open(encoding="utf-8") as file:
        marks = [(row["file"], row["result"]) for row in csv.DictReader(file)]
    walk.expect("the untouched one has no mark", {r for f, r in marks if f == "untouched.ipynb"} == {"not attempted"}, str(marks))
    walk.expect("the solved one has them all", {r for f, r in marks if f == "solved.ipynb"} == {"correct"}, str(marks))
    if not walk.quick:
        without_a_network(walk)


def without_a_network(walk: Walk) -> None:
    walk.make("make offline", "offline")
    place = walk.folder / "lab"
    shutil.unpack_archive(next((walk.checkout / "_build").glob("*-offline.tar")), place)
    course = next(place.iterdir())
    forget = {name: "" for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")}
    walk.step("make test, with the network off", [*OFFLINE, "ip link set lo up && make --no-print-directory test"], cwd=course, env=forget)


def workshop(walk: Walk) -> None:
    for paper in ("a4", "us-letter"):
        walk.make(f"make handouts, {paper}", "handouts", f"PAPER={paper}")
        pdfs = {p.stem for p in (walk.checkout / "_build" / "handouts").glob("*.pdf")}
        wanted = {c.name for c in syllabus.chapters(ROOT / "book")} | {"poster"}
        walk.expect("one for each chapter, and the poster", pdfs == wanted, str(pdfs ^ wanted))


WAYS = {"alone": alone, "class": in_class, "workshop": workshop}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Walk the three ways in which the course is used.")
    parser.add_argument("way", nargs="*", help=f"default: all; one of {', '.join(WAYS)}")
    parser.add_argument("--quick", action="store_true", help="with this environment, and the notebooks that run in seconds")
    options = parser.parse_args(arguments)
    if unknown := set(options.way) - set(WAYS):
        parser.error(f"no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    missing = [program for program in NEEDED if not options.quick and not shutil.which(program)]
    if missing or not (options.quick or (ROOT / ".git").exists()):
        parser.error(f"the long walk clones the checkout, and needs {', '.join(missing) or 'one that is under git'}; --quick does without")
    for name in options.way or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            WAYS[name](Walk(name, Path(folder), options.quick))
    print("walk: nothing failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
