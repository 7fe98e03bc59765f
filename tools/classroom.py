"""Write the notebooks of a class from those of the book: the student's, and the teacher's.

    python tools/classroom.py student [--to FOLDER]       default: _build/student, and student.zip beside it
    python tools/classroom.py teacher [--to FOLDER]

The student's version has no outputs and no solutions; answer cells, checkers and everything else are
as in the book. The teacher's shows every checker and solution unfolded, with the stored outputs. Each
folder also holds what the notebooks need (course_lib, tables, stored results, the pinned requirements),
so it can be handed out as it is. It appears whole or not at all: an interrupted run leaves the last one. A folder
in which somebody has worked since, or which is something else, is never replaced.
"""
import argparse
import copy
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from checkout import ROOT, notebooks

VERSIONS = ("student", "teacher")
SEAL = ".as_written"        # in the folder: its fingerprint when it was written
# What a class needs beside the notebooks. Tests are left out: they hold right answers.
BESIDE = ["_toc.yml", "book", "course_lib", "studies/results", "pyproject.toml", "requirements.txt", "constraints.txt", "LICENSE", "LICENSE-text"]
_LEFT_OUT = {"student": ("teaching.md", "mistakes.md"), "teacher": ()}      # the first would tell a student what to answer


def tags(cell) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def printed(cell) -> str:
    """What a cell printed; not the warnings, which go to stderr."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


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


def fingerprint(folder: Path) -> str:
    """It changes when anything in the folder does, but for what an installation or an editor leaves behind: hidden files, caches."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info") for part in name.parts):
            digest.update(f"{name.as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def untouched(target: Path) -> bool:
    """Whether the folder is as `write` left it."""
    seal = target / SEAL
    return seal.is_file() and seal.read_text(encoding="utf-8") == fingerprint(target)


def write(version: str, target: Path, root: Path = ROOT) -> list[Path]:
    """Write the folder `target` and beside it `target`.zip; returns the notebooks in the folder.

    Args: version: "student" or "teacher"; target: replaced if it is there (`main` asks `untouched` before).
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
        for name in ("_toc.yml", "book/intro.md"):          # no link to what is left out; each of these stands on a line of its own
            lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if not any(Path(page).stem in line for page in _LEFT_OUT[version])]
            (folder / name).write_text("".join(kept), encoding="utf-8")
        shutil.copy2(root / "tools" / f"for_{version}s.md", folder / "README.md")
        for path in notebooks(root):
            notebook = make(nbformat.read(path, as_version=4))
            known_by = {"notebook": path.stem, "version": version}          # whatever the file is called
            notebook.metadata["course"] = {**notebook.metadata.get("course", {}), **known_by}
            text = nbformat.writes(notebook) + "\n"
            (folder / path.relative_to(root)).write_text(text, encoding="utf-8")
        (folder / SEAL).write_text(fingerprint(folder), encoding="utf-8")
        archive = shutil.make_archive(str(folder), "zip", root_dir=scratch, base_dir=target.name)
        if target.exists():
            target.rename(Path(scratch, "the last one"))
        folder.rename(target)
        Path(archive).replace(target.with_name(f"{target.name}.zip"))
    return notebooks(target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the student's or the teacher's notebooks.")
    parser.add_argument("version", choices=VERSIONS)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: _build/VERSION")
    options = parser.parse_args(arguments)
    target = (options.to or ROOT / "_build" / options.version).resolve()
    for path, ours in ((target, untouched(target)), (target.with_name(f"{target.name}.zip"), target.exists())):
        if path.exists() and not ours:
            parser.error(f"{path} is something else, or somebody has worked in it: move it away, or name a new folder with --to")
    written = write(options.version, target)
    print(f"{options.version}: {len(written)} notebooks in {target}, and {target}.zip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
