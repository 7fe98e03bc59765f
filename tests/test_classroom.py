"""The student's and the teacher's notebooks, and the marking of what is handed in."""
import ast
import builtins
import copy
import csv
import importlib
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from course_lib import syllabus
from course_lib.checks import WrongAnswer
from test_exercises import EXERCISES, RESULTS, checker

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = syllabus.chapters(BOOK)
NAMES = [chapter.name for chapter in CHAPTERS]
CASES = [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in EXERCISES]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both versions of all notebooks, as the targets write them."""
    sys.path.insert(0, str(ROOT / "tools"))
    classroom, target = importlib.import_module("classroom"), tmp_path_factory.mktemp("class")
    for version in classroom.VERSIONS:
        classroom.write(version, target / version)
    sys.path.remove(str(ROOT / "tools"))
    return target


def cells(path: Path):
    """The cells of a notebook, each with its set of tags."""
    return [(cell, set(cell.metadata.get("tags", []))) for cell in nbformat.read(path, as_version=4).cells]


# --- the two versions ---

@pytest.mark.parametrize("name", NAMES)
def test_the_student_gets_everything_but_outputs_and_solutions(written, name):
    book = [cell for cell, tags in cells(BOOK / f"{name}.ipynb") if "solution" not in tags]
    student = [cell for cell, _ in cells(written / "student" / "book" / f"{name}.ipynb")]
    assert [(c.id, c.source, c.metadata) for c in student] == [(c.id, c.source, c.metadata) for c in book]
    assert all(not cell.outputs and cell.execution_count is None for cell in student if cell.cell_type == "code")


@pytest.mark.parametrize("name", NAMES)
def test_what_unfolds_an_answer_is_a_solution_or_a_question(name):
    """An untagged fold after the first exercise would show its answer to the students."""
    found, seen_answer = [], False
    for cell, tags in cells(BOOK / f"{name}.ipynb"):
        seen_answer |= "answer" in tags
        if seen_answer and cell.cell_type == "markdown" and "<details" in cell.source and not tags & {"solution", "question"}:
            found.append(cell.source[:80])
        assert not ("solution" in tags and cell.cell_type == "markdown" and cell.source.startswith("#")), "a heading would go, too"
    assert found == []


def defined(tree) -> set[str]:
    """Every name that the code binds."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {(a.asname or a.name).split(".")[0] for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    return names | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_the_students_notebook_needs_what_a_solution_defines(written, name):
    known = set(dir(builtins)) | {"get_ipython", "display"}
    for cell, _ in cells(written / "student" / "book" / f"{name}.ipynb"):
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            known |= defined(tree)
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
            assert used <= known, f"{used - known}: {cell.source[:60]}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_untouched_no_checker_passes_and_none_raises(written, chapter, capsys):
    """With made-up results in place of the trained models; a whole run is `make walk`."""
    found = cells(written / "student" / "book" / f"{chapter.name}.ipynb")
    imports, = [cell.source for cell, tags in found if "imports" in tags]
    namespace = dict(RESULTS.get(chapter.name, {}))
    body = [node for node in ast.parse(imports).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(body, []), chapter.name, "exec"), namespace)
    for cell, tags in found:
        if tags & {"answer", "checker"}:
            exec(cell.source, namespace)
    assert capsys.readouterr().out == "not attempted yet\n" * len(chapter.exercises)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=NAMES)
def test_the_teachers_solutions_pass_every_checker(written, chapter):
    """nbval runs these cells, and a wrong answer raises; here: each checker is called there, and its stored word is "correct"."""
    found = cells(written / "teacher" / "book" / f"{chapter.name}.ipynb")
    passed = set()
    for cell, tags in found:
        if "solution" in tags and cell.cell_type == "code":
            assert "hide-input" not in tags and "source_hidden" not in cell.metadata.get("jupyter", {})
            said = "".join(output.get("text", "") for output in cell.outputs)
            called = {node.func.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            passed |= {name for name in called if name.startswith("check_")} if "correct\n" in said else set()
    assert passed == {exercise.checker for exercise in chapter.exercises}


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_shows_how_and_does_not_ask_the_checker(name):
    """Whoever unfolds a solution wants to see the steps: it uses no function that only a checker defines."""
    found = cells(BOOK / f"{name}.ipynb")
    functions = {"checker": set(), "other": set()}
    for cell, tags in found:
        if cell.cell_type == "code":
            kind = "checker" if "checker" in tags else "other"
            functions[kind] |= {node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)}
    hidden = {name for name in functions["checker"] - functions["other"] if not name.startswith("check_")}
    for cell, tags in found:
        if "solution" in tags and cell.cell_type == "code":
            used = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            assert not used & hidden, f"{used & hidden}: {cell.source[:80]}"


def test_the_folder_holds_what_the_notebooks_need_and_no_answers(written):
    for version in ("student", "teacher"):
        folder = written / version
        assert {p.name for p in folder.iterdir()} == {
            "_toc.yml", "book", "course_lib", "studies", "pyproject.toml", "requirements.txt", "constraints.txt", "LICENSE", "LICENSE-text", "README.md",
            ".as_written"}
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert {"book/glossary.md", "book/data/devices.csv", "studies/results/pruning_criteria.json"} <= names
        assert ("book/mistakes.md" in names) == ("book/teaching.md" in names) == (version == "teacher")
        linked = [link for name in ("_toc.yml", "book/intro.md") for link in re.findall(r"teaching|mistakes", (folder / name).read_text(encoding="utf-8"))]
        assert bool(linked) == (version == "teacher")       # no link to what is not there
        assert not [n for n in names if "__pycache__" in n or n.endswith((".pyc", ".typ")) or "test" in n.split("/")[0]]
        with zipfile.ZipFile(written / f"{version}.zip") as archive:
            assert {i.filename.removeprefix(f"{version}/") for i in archive.infolist() if not i.is_dir()} == names


def test_a_version_appears_whole_or_not_at_all(tool, tmp_path, monkeypatch):
    classroom = tool("classroom")
    old = tmp_path / "student" / "book"
    old.mkdir(parents=True)
    (old / "mine.txt").write_text("kept")
    monkeypatch.setattr(classroom.shutil, "make_archive", lambda *a, **k: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        classroom.write("student", tmp_path / "student")
    assert (old / "mine.txt").read_text() == "kept" and [p.name for p in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("change", ["", "notebook", "new file", "no seal", "only a zip"])
def test_a_folder_is_replaced_only_if_nobody_has_worked_in_it(tool, written, tmp_path, capsys, change):
    """Neither somebody's answers nor anything else with a folder `book` may be lost."""
    classroom, target = tool("classroom"), tmp_path / "student"
    shutil.copytree(written / "student", target)
    shutil.copy(written / "student.zip", tmp_path)
    notebook = target / "book" / "01_one_ruler.ipynb"
    (target / "book" / "__pycache__").mkdir()               # an editor's and an installation's leavings do not count
    (target / "book" / "__pycache__" / "a.pyc").write_bytes(b"1")
    if change == "notebook":
        notebook.write_text(notebook.read_text(encoding="utf-8").replace("...", "7", 1), encoding="utf-8")
    elif change == "new file":
        (target / "book" / "notes.txt").write_text("mine")
    elif change == "no seal":
        (target / ".as_written").unlink()
    elif change == "only a zip":
        shutil.rmtree(target)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    if not change:
        assert classroom.main(["student", "--to", str(target)]) == 0 and notebook.is_file()
        return
    with pytest.raises(SystemExit):
        classroom.main(["student", "--to", str(target)])
    assert "somebody has worked in it" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- every checker, against answers that are made wrong by rule ---

def changed(value, number, word):
    """The value with every number in it changed by `number`, every text by `word`."""
    if isinstance(value, (bool, np.bool_)):
        return not value
    if isinstance(value, str):
        return word(value)
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return ~value
    if isinstance(value, (int, float, np.number, np.ndarray, torch.Tensor)):
        return number(value)
    if isinstance(value, (list, tuple)):
        return type(value)(changed(v, number, word) for v in value)
    if isinstance(value, dict):
        return {k: changed(v, number, word) for k, v in value.items()}
    return None


WAYS = {        # off by one: in a large number, by a tenth of it (a checker may allow for rounding)
    "off by one": lambda v: changed(v, lambda x: x + 1 + 0.1 * abs(x), lambda w: w + "s"),
    "percent for fraction": lambda v: changed(v, lambda x: x * 100, lambda w: w.upper() if w.upper() != w else w.lower()),
    "the sign": lambda v: changed(v, lambda x: -x, lambda w: f" {w}"),
    "rounded": lambda v: changed(v, lambda x: x // 1 - 1 - 0.1 * abs(x), lambda w: w + "."),
    "as a list": lambda v: [v],
    "as text": lambda v: repr(v),
}


# Checkers that make the arguments anew for each call, so that nobody is harmed if they are changed.
OWN_ARGUMENTS = {("06_cloud", "check_6")}


def refused(check, answer) -> bool:
    try:
        check(answer)
    except WrongAnswer:
        return True
    return False


def spoil(arguments) -> bool:
    """Change the first argument that can be changed in place; False if none can."""
    for a in arguments:
        if isinstance(a, (torch.Tensor, np.ndarray)) and a.size if isinstance(a, np.ndarray) else isinstance(a, torch.Tensor) and a.numel():
            a[...] = ~a if a.dtype in (torch.bool, np.bool_) else a + 1
            return True
        if isinstance(a, list) and a:
            a.append(a[0])
            return True
        if isinstance(a, dict) and a:
            a.pop(next(iter(a)))
            return True
    return False


@pytest.mark.parametrize("name, function, right, wrong", CASES)
def test_a_right_answer_made_wrong_by_rule_is_caught(name, function, right, wrong):
    """Off by one, in percent, with the other sign, rounded, another kind; a function's answer to one example; a changed argument."""
    check, answer = checker(name, function), right[0]
    if not callable(answer):
        spoilt = {way: change(answer) for way, change in WAYS.items()}
    else:
        seen, can_spoil = [], []

        def recorded(*arguments):
            result = answer(*copy.deepcopy(arguments))
            seen.append(copy.deepcopy(result))
            can_spoil.append(spoil(copy.deepcopy(arguments)))
            return result

        check(recorded)
        spoilt = {way: lambda *a, change=change: change(answer(*a)) for way, change in WAYS.items()}
        spoilt["hard-coded to the first example"] = lambda *a: copy.deepcopy(seen[0])
        if any(can_spoil) and (name, function) not in OWN_ARGUMENTS:
            spoilt["argument mutated"] = lambda *a: (copy.deepcopy(answer(*copy.deepcopy(a))), spoil(a))[0]
    missed = [way for way, one in spoilt.items() if not refused(check, one)]
    assert missed == []


@pytest.mark.parametrize("name, function, right, wrong", CASES)
def test_right_answers_of_several_kinds_pass(name, function, right, wrong, capsys):
    """A number may come as any kind of number; two functions must really be two."""
    check = checker(name, function)
    capsys.readouterr()
    value = right[0]
    if callable(value):
        bodies = {(f.__code__.co_code, str(f.__code__.co_consts), f.__code__.co_names, str([c.cell_contents for c in f.__closure__ or ()]))
                  if hasattr(f, "__code__") else f for f in right}
        assert len(bodies) >= 2, "two functions that are the same"
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        for other in (np.float64(value), torch.tensor(float(value), dtype=torch.float64), float(value) * (1 + 1e-9)):
            check(other)
        assert capsys.readouterr().out == "correct\n" * 3


# --- marking ---

QUICK = "05_real_joules"        # a notebook that runs in seconds


@pytest.fixture(scope="module")
def handed_in(written, tmp_path_factory):
    """One notebook with a right, a wrong and a broken answer and checkers that were tampered with; an untouched one; two that are none."""
    folder = tmp_path_factory.mktemp("handed in")
    notebook = nbformat.read(written / "student" / "book" / f"{QUICK}.ipynb", as_version=4)
    book = copy.deepcopy(notebook)                      # as from the book: known by its title only
    del book.metadata["course"]
    nbformat.write(book, folder / "untouched.ipynb")
    answers = [cell for cell in notebook.cells if "answer" in cell.metadata.get("tags", [])]
    answers[1].source = "import sys\ndef my_cheapest(joules, accuracy, wanted):\n    print('so far', file=sys.stderr)\n    print(wanted, end=' ')\n    return min(j for j, a in zip(joules, accuracy) if a >= wanted)"
    answers[2].source = "my_share = 50"
    answers[3].source = "def my_flip_watts(:"
    tampered = next(cell for cell in notebook.cells if "def check_5(" in cell.source)
    tampered.source = "def check_5(answer):\n    print('correct')\ncheck_5(0)"
    notebook.cells = [cell for cell in notebook.cells if "def check_1(" not in cell.source]
    notebook.cells.insert(1, nbformat.v4.new_code_cell("# what does def check_2(answer) want?\ndef check_2(answer):\n    pass"))
    notebook.cells.insert(6, nbformat.v4.new_code_cell("def check(*a, **k):\n    print('correct')"))
    (folder / "ada").mkdir()
    nbformat.write(notebook, folder / "ada" / "my work.ipynb")
    (folder / "damaged.ipynb").write_text('{"cells": [')
    (folder / "no kinds.ipynb").write_text('{"cells": [{"source": "", "metadata": {}}], "metadata": {"course": {"notebook": "05_real_joules"}}, "nbformat": 4, "nbformat_minor": 5}')
    nbformat.write(nbformat.v4.new_notebook(), folder / "other.ipynb")
    return folder


def test_marking_runs_the_courses_own_checkers(tool, handed_in, tmp_path, capsys):
    before = {p: p.read_bytes() for p in handed_in.rglob("*.ipynb")}
    assert tool("mark").main([str(handed_in), "--to", str(tmp_path / "marks.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "marks.csv").open(encoding="utf-8")))
    got = {name: [row["result"] for row in rows if row["file"] == name] for name in sorted({row["file"] for row in rows})}
    assert got == {"ada/my work.ipynb": ["not attempted", "correct", "wrong", "not run", "not attempted"],
                   "damaged.ipynb": ["not run"], "no kinds.ipynb": ["not run"], "other.ipynb": ["not run"], "untouched.ipynb": ["not attempted"] * 5}
    messages = {(row["file"], row["exercise"]): row["message"] for row in rows}
    assert "Hint: keep the rows of VGG16" in messages["ada/my work.ipynb", "3"]
    assert re.fullmatch(r"cell \d+: SyntaxError: .*", messages["ada/my work.ipynb", "4"])     # the cause, not what follows from it
    assert messages["damaged.ipynb", ""] == "cannot be read: NotJSONError"
    assert "no chapter of this course has its title" in messages["other.ipynb", ""]
    assert {p: p.read_bytes() for p in handed_in.rglob("*.ipynb")} == before       # nothing handed in is changed
    said = capsys.readouterr().out
    assert "2: correct, 3: wrong" in said and said.endswith("(5 notebooks, of which 3 could not be marked)\n")


def test_the_marks_so_far_are_kept_when_marking_is_interrupted(tool, handed_in, tmp_path, monkeypatch):
    mark, calls = tool("mark"), []

    def interrupted(path, known):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [dict(zip(mark.FIELDS, ("", QUICK, 1, "1", "correct", "")))]

    monkeypatch.setattr(mark, "mark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mark.main([str(handed_in), "--to", str(tmp_path / "marks.csv")])
    assert len((tmp_path / "marks.csv").read_text().splitlines()) == 3             # the head, and two that were done


def test_an_empty_folder_is_named(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool("mark").main([str(tmp_path)])
    assert "no notebook below" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool("mark").main([str(tmp_path / "nowhere")])
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "a.ipynb").write_text("{}")
    for place in (tmp_path, tmp_path / "nowhere" / "marks.csv"):           # said before anything runs
        with pytest.raises(SystemExit):
            tool("mark").main([str(tmp_path), "--to", str(place)])
        assert "cannot write the table" in capsys.readouterr().err


def test_a_name_that_is_no_text_ends_no_marking(tool, tmp_path):
    (tmp_path / os.fsdecode(b"m\xfcller.ipynb")).write_text("{}")
    assert tool("mark").main([str(tmp_path), "--to", str(tmp_path / "marks.csv")]) == 0
    assert "ller.ipynb" in (tmp_path / "marks.csv").read_text(encoding="utf-8")
