"""The pages for teachers and for those who learn alone say what is so: their times, their links, their commands."""
import re
from pathlib import Path

import pytest
import torch

from course_lib import syllabus
from helpers import run_python

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = {chapter.name: chapter for chapter in syllabus.chapters(BOOK)}
LINK = re.compile(r"\((\w+)\.ipynb(?:#[\w-]+)?\)")


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """The tables below a heading, each a list of rows, each a list of cells; heads and rules are left out."""
    text = (BOOK / page).read_text(encoding="utf-8")
    level = heading.split(" ")[0]
    part = re.split(rf"(?m)^#{{1,{len(level)}}} ", text.split(f"{heading}\n", 1)[1])[0]
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\n)+", part + "\n"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
        found.append(rows[2:])
    return found


def minutes(cell: str) -> int:
    return sum(CHAPTERS[name].minutes for name in LINK.findall(cell))


def test_the_six_weeks_hold_every_notebook_once_and_their_sums_are_right():
    weeks, tracks = tables("teaching.md", "### A lab course of six weeks")
    assert [week[0] for week in weeks] == ["1", "2", "3", "4", "5", "6"]
    for _, lab, lab_minutes, home, home_minutes, _ in weeks:
        assert minutes(lab) == int(lab_minutes) <= 120 and minutes(home) == int(home_minutes.removesuffix(" + track")) <= 120
        assert ("a track" in home) == home_minutes.endswith("track")
    assert [int(total) for *_, total in tracks] == [minutes(cell) for _, cell, _ in tracks]
    named = LINK.findall(" ".join(cell for row in weeks + tracks for cell in row))
    assert sorted(named) == sorted(CHAPTERS)


def test_what_a_week_needs_was_done_before():
    """Each notebook's needs lie earlier in the course (the tracks: anywhere before week 6)."""
    weeks, tracks = tables("teaching.md", "### A lab course of six weeks")
    done = set()
    for _, lab, _, home, _, _ in weeks:
        for name in LINK.findall(lab) + LINK.findall(home):
            needs = set(LINK.findall(CHAPTERS[name].needs)) if name != "06_choosing" else set()
            assert needs <= done | {n for _, cell, _ in tracks for n in LINK.findall(cell)}, (name, needs - done)
            done.add(name)


def test_the_days_parts_take_what_they_say_and_the_day_six_hours():
    rows, = tables("teaching.md", "### A workshop of one day")
    for _, what, stated in rows:
        if LINK.findall(what):
            assert CHAPTERS[LINK.findall(what)[0]].minutes == int(stated)
    assert sum(int(row[-1]) for row in rows) == 6 * 60


def test_the_taster_takes_two_hours():
    rows, = tables("teaching.md", "### A taster of two hours")
    assert sum(int(row[-1]) for row in rows) == 120
    assert all(LINK.findall(" ".join(row)) for row in rows)


@pytest.mark.parametrize("heading", ["## A student, who wants to understand", "## An engineer in a hurry"])
def test_a_paths_minutes_are_those_of_its_chapters(heading):
    rows, = tables("paths.md", heading)
    for _, chapter, stated, _ in rows:
        times = [CHAPTERS[name].minutes for name in LINK.findall(chapter)]
        expected = f"{times[0]}" if len(times) == 1 else f"{min(times)} to {max(times)}"
        assert stated == expected, chapter


def test_sections_that_the_paths_name_exist():
    text = (BOOK / "paths.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        names, sections = LINK.findall(line), re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", line)
        if line.startswith("|") and len(names) == 1:
            source = (BOOK / f"{names[0]}.ipynb").read_text(encoding="utf-8")
            for section in sections:
                assert re.search(rf"#+ {re.escape(section)}", source), (names[0], section)


def test_commands_that_the_pages_name_are_targets_of_the_makefile():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for page in ("teaching.md", "paths.md", "not_here.md"):
        for target in re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)", (BOOK / page).read_text(encoding="utf-8")):
            assert target in targets, target


MISTAKE = re.compile(r"(?m)^- \*\*(Exercise|Question) (\d+)\.\*\* ")


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_its_common_mistakes_and_each_belongs_to_an_exercise_or_question(name):
    text = (BOOK / "mistakes.md").read_text(encoding="utf-8")
    assert text.count(f"]({name}.ipynb)\n") == 1
    part = re.split(r"(?m)^##", text.split(f"]({name}.ipynb)\n", 1)[1])[0]
    found = MISTAKE.findall(part)
    assert len(found) >= 3 and len(found) == len(re.findall(r"(?m)^- ", part))
    exercises = {e.number for e in CHAPTERS[name].exercises}
    assert all(int(n) in exercises if kind == "Exercise" else 1 <= int(n) <= CHAPTERS[name].questions for kind, n in found)
    assert sum(kind == "Exercise" for kind, _ in found) >= 2


def blocks(page: str, heading: str) -> list[str]:
    """The blocks of code below a heading."""
    part = (BOOK / page).read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    return re.findall(r"(?s)```(?:python)?\n(.*?)```", re.split(r"(?m)^#+ ", part)[0])


def test_a_readers_own_models_go_on_the_ruler_as_the_page_says(capsys):
    """Two networks that this course has never seen, on colour images of another size."""
    class Own(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.features, self.head = torch.nn.Conv2d(3, width, 3, stride=2), torch.nn.Linear(width, 4)

        def forward(self, x):
            return self.head(self.features(x).relu().mean((2, 3)))

    code, = blocks("paths.md", "### Your own model on the ruler")
    exec(code, {"model": Own(16), "smaller": Own(4), "images": torch.rand(70, 3, 12, 12), "labels": torch.arange(70) % 4})
    said = capsys.readouterr().out
    assert all(word in said for word in ("mine", "smaller", "accuracy, %", "MACs", "energy modelled", "bytes ≤ 100.0 kB", "lost ≤ 1.0 points"))


def test_on_colab_a_notebook_finds_package_tables_and_results_beside_itself(tool, tmp_path):
    """The last lines of the cell that the page gives, in the unpacked folder; the first ones talk to Colab."""
    cell, = blocks("teaching.md", "### Colab")
    tool("classroom").write("student", tmp_path / "student")
    code = "\n".join(line for line in cell.splitlines() if not line.startswith(("!", "%")))
    assert "!unzip -q -n student.zip\n%cd /content/student/book\n" in cell
    code += "\nimport course_lib\nfrom course_lib import devices, results\nprint(course_lib.__file__, len(devices.load()), len(results.load('pruning_criteria').rows))"
    said = run_python(f"import os\nos.chdir({str(tmp_path / 'student' / 'book')!r})\n{code}")
    assert str(tmp_path / "student") in said and int(said.split()[-1]) > 0
