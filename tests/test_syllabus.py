"""What the notebooks promise is read as it stands there."""
import json
import re

import pytest

from course_lib import syllabus

HEAD = """# A title

**Is it
so?**

After this notebook you can

1. do one thing in 8 bits. It goes on,
2. do another
   over two lines.

*You need* [the first](01.ipynb). *It takes* about 45 minutes to read and do; the machine needs one.
"""
EXERCISE = "### Exercise 1: count (objectives 1 and 2)\n\nCount."
CHECKER = "def check_1(answer):\n    pass"


def write(path, *cells, seconds=3.5):
    made = [{"cell_type": kind, "source": [line + "\n" for line in source.split("\n")], "metadata": {"tags": tags}}
            for kind, source, tags in cells]
    path.write_text(json.dumps({"cells": made, "metadata": {"course": {"seconds": seconds}}}), encoding="utf-8")
    return path


def good(head=HEAD, exercise=EXERCISE, checker=CHECKER):
    return [("markdown", head, []), ("markdown", exercise, []), ("code", checker, ["checker"]),
            ("markdown", "**Question 1.** Why?", ["question"])]


def test_a_chapter_is_read(tmp_path):
    chapter = syllabus.read(write(tmp_path / "01_a.ipynb", *good()))
    assert chapter == syllabus.Chapter(
        "01_a", "A title", "Is it so?", {1: "do one thing in 8 bits. It goes on", 2: "do another over two lines"},
        (syllabus.Exercise(1, "count", (1, 2), "check_1"),), "[the first](01.ipynb).", 45, 3.5, 1)
    assert chapter.holes == []


@pytest.mark.parametrize("exercise, holes", [
    ("### Exercise 1: count (objective 2)", [1]), ("### Exercise 1: count", [1, 2]), ("### Exercise 1: count (objective 12)", [1, 2])])
def test_an_objective_without_an_exercise_is_a_hole(tmp_path, exercise, holes):
    assert syllabus.read(write(tmp_path / "01_a.ipynb", *good(exercise=exercise))).holes == holes


def test_an_exercise_without_a_checker_fills_no_hole(tmp_path):
    cells = [good()[0], good()[1], ("markdown", "### Exercise 2: again (objective 1)", []), ("code", "def check_2(a):\n    pass", ["checker"])]
    chapter = syllabus.read(write(tmp_path / "01_a.ipynb", *cells))
    assert [e.checker for e in chapter.exercises] == ["", "check_2"] and chapter.holes == [2]


@pytest.mark.parametrize("cells, message", [
    (good(head=HEAD.replace("*You need*", "Needed:")), "You need"), (good(head=HEAD.replace("about 45 minutes", "a while")), "how many minutes"),
    (good(head=HEAD.replace("**", "")), "nothing in it"), (good(checker="check = None"), "def (check_"),
    ([good()[0], good()[2]], "below no exercise"), ([*good(), ("code", CHECKER.replace("1", "2"), ["checker"])], "the second below one"),
    ([], "IndexError")])
def test_what_is_missing_is_named(tmp_path, cells, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        syllabus.read(write(tmp_path / "01_a.ipynb", *cells))


@pytest.mark.parametrize("content", ['{"cells": [', '{"cells": [], "metadata": {}}', "{}", '{"cells": [{}], "metadata": {}}'])
def test_a_notebook_that_was_never_stored_is_named(tmp_path, content):
    (tmp_path / "01_a.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"01_a.ipynb was never run and stored, or is damaged"):
        syllabus.read(tmp_path / "01_a.ipynb")


@pytest.mark.parametrize("text, minutes", [("about an hour", 60), ("about half an hour", 30), ("about 50 minutes", 50)])
def test_the_time_is_read_in_words(tmp_path, text, minutes):
    assert syllabus.read(write(tmp_path / "01_a.ipynb", *good(head=HEAD.replace("about 45 minutes", text)))).minutes == minutes


def test_chapters_are_the_numbered_notebooks_in_order(tmp_path):
    for name in ("02_b", "01_a", "10_c", "run_times"):
        write(tmp_path / f"{name}.ipynb", *good())
    assert [c.name for c in syllabus.chapters(tmp_path)] == ["01_a", "02_b", "10_c"]


def test_chapters_come_in_the_order_of_the_table_of_contents(tmp_path):
    (tmp_path / "book").mkdir()
    for name in ("02_b", "01_a", "02_a", "03_new"):
        write(tmp_path / "book" / f"{name}.ipynb", *good())
    (tmp_path / "_toc.yml").write_text("root: book/intro\nparts:\n- chapters:\n  - file: book/01_a\n  - file: book/02_b\n  - file: book/02_a\n")
    assert [c.name for c in syllabus.chapters(tmp_path / "book")] == ["01_a", "02_b", "02_a", "03_new"]
