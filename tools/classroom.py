"""Write the notebooks of a class from those of the book: the student's, and the teacher's.

    python tools/classroom.py student [--to FOLDER]       default: _build/student, and _build/student.zip
    python tools/classroom.py teacher [--to FOLDER]

The student's version has no outputs and no solutions; answer cells, checkers and everything else are
as in the book. The teacher's shows every checker and solution unfolded, with the stored outputs. Each
folder also holds what the notebooks need (course_lib, tables, stored results, the pinned requirements),
so it can be handed out as it is. It appears whole or not at all: an interrupted run leaves the last one.
"""
import argparse
import copy
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from checkout import ROOT, notebooks

VERSIONS = ("student", "teacher")
# What a class needs beside the notebooks. Tests are left out: they hold right answers.
BESIDE = ["_toc.yml", "book", "course_lib", "studies/results", "pyproject.toml", "requirements.txt", "constraints.txt", "LICENSE", "LICENSE-text"]
_LEFT_OUT = {"student": ("teaching.md", "mistakes.md"), "teacher": ()}      # the first would tell a student what to answer


def tags(cell) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def student(notebook):
    """A copy of the notebook without its outputs and its solutions."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def teacher(notebook):
    """A copy of the notebook with every checker and solution unfolded."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if not tags(cell) & {"solution", "checker"}:
            continue
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("<details>", "<details open>")
            continue
        cell.metadata.tags = [tag for tag in cell.metadata.tags if tag != "hide-input"]
        cell.metadata.get("jupyter", {}).pop("source_hidden", None)
    return notebook


def write(version: str, target: Path, root: Path = ROOT) -> list[Path]:
    """Write the folder `target` and beside it `target`.zip; returns the notebooks in the folder.

    Args: version: "student" or "teacher"; target: replaced if it is there.
    """
    make = {"student": student, "teacher": teacher}[version]
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out = shutil.ignore_patterns("*.ipynb", ".*", "__pycache__", *_LEFT_OUT[version])
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        for name in BESIDE:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=left_out)
            else:
                shutil.copy2(source, folder / name)
        shutil.copy2(root / "tools" / f"for_{version}s.md", folder / "README.md")
        for path in notebooks(root):
            notebook = make(nbformat.read(path, as_version=4))
            known_by = {"notebook": path.stem, "version": version}          # whatever the file is called
            notebook.metadata["course"] = {**notebook.metadata.get("course", {}), **known_by}
            text = nbformat.writes(notebook) + "\n"
            (folder / path.relative_to(root)).write_text(text, encoding="utf-8")
        archive = shutil.make_archive(str(folder), "zip", root_dir=scratch, base_dir=target.name)
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        Path(archive).replace(target.with_name(f"{target.name}.zip"))
    return notebooks(target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the student's or the teacher's notebooks.")
    parser.add_argument("version", choices=VERSIONS)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: _build/VERSION")
    options = parser.parse_args(arguments)
    target = options.to or ROOT / "_build" / options.version
    if target.exists() and not (target / "book").is_dir():
        parser.error(f"{target} is something else; name a new folder")
    written = write(options.version, target)
    print(f"{options.version}: {len(written)} notebooks in {target}, and {target}.zip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
