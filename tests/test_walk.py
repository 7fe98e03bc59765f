"""The three ways in which the course is used are walked, in short; the long walk is `make walk`. And the archive for a lab without internet."""
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest

from skips import skip

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("way", ["alone", "class", "workshop"])
def test_the_way_can_be_walked(way):
    if shutil.which("make") is None:
        skip("there is no make on this machine: the three ways are walked with it")
    result = subprocess.run([sys.executable, str(ROOT / "tools" / "walk.py"), way, "--quick"], cwd=ROOT, capture_output=True, text=True,
                            encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("walk: nothing failed\n") and result.stdout.count(f"{way} ") >= 2


@pytest.fixture
def walk(tool, tmp_path, monkeypatch):
    """A walk in a folder where nothing was copied."""
    module = tool("walk")
    monkeypatch.setattr(module, "copy_checkout", lambda target: target.mkdir())
    return module.Walk("alone", tmp_path, quick=True)


def test_a_walk_stops_at_the_first_thing_that_fails(walk, capsys):
    assert walk.step("works", [sys.executable, "-c", "print(7)"]) == "7\n"
    with pytest.raises(SystemExit, match=r"(?s)FAILED\nto the point.*stops at step 2"):
        walk.step("fails", [sys.executable, "-c", "print('to the point'); raise SystemExit(3)"])
    walk.expect("is so", True)
    with pytest.raises(SystemExit, match="FAILED seven.*\n.*step 4"):
        walk.expect("is not so", False, "seven")
    assert re.match(r"alone 1: works \(\d+ s\)\nalone 2: fails ", capsys.readouterr().out)


def test_a_long_walk_says_at_once_what_it_lacks(tool, monkeypatch, capsys):
    module = tool("walk")
    monkeypatch.setattr(module.shutil, "which", lambda program: None if program == "unshare" else program)
    with pytest.raises(SystemExit):
        module.main(["workshop"])
    assert "needs unshare" in capsys.readouterr().err


def test_what_every_checker_printed_is_read(tool, tmp_path):
    def cell(text, tag="solution"):
        streams = [nbformat.v4.new_output("stream", name=name, text=said) for name, said in (("stdout", text), ("stderr", "a warning\n"))]
        return nbformat.v4.new_code_cell("check_1(x)", metadata={"tags": [tag]}, outputs=streams)
    cells = [cell("correct\nand more\n"), cell("not yet\n"), cell("x", "checker"), nbformat.v4.new_code_cell("1", metadata={"tags": ["solution"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert tool("walk").said(tmp_path / "a.ipynb", "solution") == ["correct\nand more\n", "not yet\n"]


def test_the_makes_of_a_walk_do_not_get_the_options_of_the_make_above(walk, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "-- OPTIONS=workshop")
    monkeypatch.setenv("OPTIONS", "workshop")
    assert walk.step("looks", [sys.executable, "-c", "import os; print([n for n in os.environ if n in ('MAKEFLAGS', 'OPTIONS')])"]) == "[]\n"


def test_a_solution_becomes_an_answer(tool, tmp_path):
    def write(name, *cells):
        made = [nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}) for tag, source in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / name)
        return tmp_path / name

    student = write("s.ipynb", ("answer", "my_share = ..."), ("checker", "def check_1(a): ...\ncheck_1(my_share)"))
    teacher = write("t.ipynb", ("solution", "half = 0.5\ncheck_1(round(half, 2))\nhalf"), ("solution", "print('a sequel')"))
    tool("walk").answered(student, teacher, tmp_path / "out.ipynb")
    assert [c.source for c in nbformat.read(tmp_path / "out.ipynb", 4).cells][0] == "half = 0.5\nmy_share = round(half, 2)\nhalf"


# --- offline.py ---

def fake_pip(monkeypatch, offline, *, works=True):
    """Let `pip wheel` write one wheel, or fail; returns the list of what it was asked for."""
    asked = []

    def run(command, check):
        asked.append((command, Path(command[command.index("-r") + 1]).read_text(encoding="utf-8")))
        folder = Path(command[command.index("--wheel-dir") + 1])
        (folder / "torch-2.13.0.whl").write_bytes(b"wheel")
        if not works:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(offline.subprocess, "run", run)
    return asked


def test_the_archive_holds_the_checkout_and_its_wheels(tool, tmp_path, monkeypatch, capsys):
    offline = tool("offline")
    asked = fake_pip(monkeypatch, offline)
    assert offline.main(["--to", str(tmp_path / "a.tar"), "--extra-index-url", "https://a.example"]) == 0
    (command, requirements), = asked
    assert command[-2:] == ["--extra-index-url", "https://a.example"] and "torch==2.13.0" in requirements and "-e" not in requirements
    assert {"pip", "setuptools>=77"} <= set(command)
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = set(archive.getnames())
        made_for = archive.extractfile("smaller-models/wheelhouse/MADE_FOR").read().decode()
    assert {f"smaller-models/{n}" for n in ("Makefile", "requirements.txt", "book/glossary.md", "tests/test_walk.py", "wheelhouse/torch-2.13.0.whl")} <= names
    assert not [n for n in names if "/.venv" in n or "/_build" in n]
    assert made_for.startswith("Python 3.") and "1 packages" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_when_pip_fails_there_is_no_archive_and_the_last_one_stays(tool, tmp_path, monkeypatch, capsys):
    offline = tool("offline")
    fake_pip(monkeypatch, offline, works=False)
    (tmp_path / "a.tar").write_text("the last one")
    assert offline.main(["--to", str(tmp_path / "a.tar")]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert (tmp_path / "a.tar").read_text() == "the last one" and [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_copy_of_the_checkout_holds_nobodys_work_and_not_itself(tool, tmp_path):
    root = tmp_path / "root"
    for name in ("book/a.md", "handed_in/ada/a.ipynb", "marks.csv", "marks week 3.csv", "studies/units/u.json", ".venv/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    checkout = tool("checkout")
    copy = checkout.copy_checkout(tmp_path / "copy", root)
    assert [p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()] == ["book/a.md"]
    for inside in (root / "copy", root / "book" / "copy", root):
        with pytest.raises(SystemExit, match="inside the checkout"):
            checkout.copy_checkout(inside, root)
    assert (checkout.copy_checkout(root / "_build" / "copy", root) / "book" / "a.md").is_file()


@pytest.mark.parametrize("content", ["text", b"bytes"])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tool, tmp_path, content):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        tool("checkout").write_atomically(tmp_path / "taken", content)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    tool("checkout").write_atomically(tmp_path / "new", content)
    assert (tmp_path / "new").read_bytes() == (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("unpacked", [True, False])
def test_make_asks_no_other_place_where_there_is_a_wheelhouse(tmp_path, unpacked):
    for name in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    if unpacked:
        (tmp_path / "wheelhouse").mkdir()
        (tmp_path / "wheelhouse" / "MADE_FOR").write_text("Python 3.11, Linux x86_64\n")
    if shutil.which("make") is None:
        skip("there is no make on this machine, whose Makefile this is about")
    said = subprocess.run(["make", "--dry-run", "book"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert ("--no-index --find-links wheelhouse" in said) == unpacked == ("are for $(cat wheelhouse/MADE_FOR)" in said)
    assert "-r requirements.txt" in said
