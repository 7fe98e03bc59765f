"""What a notebook of the course promises and asks: objectives, exercises, time. Read from the notebook itself, so nothing is kept twice.

The first cell of a chapter says what one can do afterwards, what one needs before, and how long it takes; the heading of an
exercise names the objectives that it serves, and its checker is a function `check_N`.
Book: "Objectives and exercises".
"""
import dataclasses
import json
import re
from pathlib import Path

__all__ = ["Chapter", "Exercise", "chapters", "read"]

_MINUTES = {"half an hour": 30, "an hour": 60, "an hour and a half": 90, "two hours": 120}


@dataclasses.dataclass(frozen=True)
class Exercise:
    """One exercise: its number, title, the numbers of the objectives that it serves, and the name of its checker ("" if none)."""
    number: int
    title: str
    objectives: tuple[int, ...]
    checker: str


@dataclasses.dataclass(frozen=True)
class Chapter:
    """One notebook.

    name: of the file, without its ending; question: the one that it asks; objectives: by number; needs: what to know before;
    minutes: to read and do, as the notebook says; seconds: of the machine, as stored; questions: how many are at its end.
    """
    name: str
    title: str
    question: str
    objectives: dict[int, str]
    exercises: tuple[Exercise, ...]
    needs: str
    minutes: int
    seconds: float
    questions: int

    @property
    def holes(self) -> list[int]:
        """The objectives that no exercise with a checker serves."""
        served = {n for exercise in self.exercises if exercise.checker for n in exercise.objectives}
        return sorted(set(self.objectives) - served)


def read(path: Path) -> Chapter:
    """Read one notebook of the course.

    Raises: ValueError, naming what is missing, if its first cell or an exercise is not written like the others.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in notebook["cells"]]
        head, seconds = " ".join(cells[0][1].split()), notebook["metadata"]["course"]["seconds"]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} was never run and stored, or is damaged ({type(error).__name__}: {error}): run tools/execute.py") from error
    return Chapter(
        Path(path).stem, _one(r"# (.*)", cells[0][1], path), _one(r"\*\*(.+?)\*\*", head, path),
        {int(n): " ".join(text.split()).rstrip(",.;") for n, text in re.findall(r"(?m)^(\d+)\. (.+(?:\n +.+)*)", cells[0][1])}, _exercises(cells, path),
        _one(r"\*You need\* (.+?) \*It takes\*", head, path), _minutes(_one(r"\*It takes\* (?:about )?(.+?)(?: to read and do)?;", head, path), path),
        seconds, sum("**Question" in source and "question" in tags for _, source, tags in cells))


def chapters(book: Path) -> list[Chapter]:
    """Read all chapters in the folder `book`: the notebooks whose names begin with a number.

    They come in the order of the table of contents, `_toc.yml` beside `book`; without one, by name.
    """
    contents = Path(book).resolve().parent / "_toc.yml"
    named = re.findall(r"file: book/(\S+)", contents.read_text(encoding="utf-8")) if contents.is_file() else []
    place = {name: number for number, name in enumerate(named)}
    paths = sorted(Path(book).glob("[0-9]*.ipynb"), key=lambda path: (place.get(path.stem, len(place)), path.stem))
    return [read(path) for path in paths]


def _exercises(cells, path) -> tuple[Exercise, ...]:
    """Each heading `### Exercise N: title (objective K)`, with the next checker below it."""
    found, open_one = [], None
    for kind, source, tags in cells:
        if kind == "markdown":
            for number, title, aims in re.findall(r"(?m)^### Exercise (\d+): (.+?)(?: \((objectives? [^()]+)\))?$", source):
                open_one = Exercise(int(number), title, tuple(map(int, re.findall(r"\d+", aims))), "")
                found.append(open_one)
        elif "checker" in tags:
            if open_one is None or found[-1].checker:
                raise ValueError(f"{path}: a checker that stands below no exercise, or the second below one")
            found[-1] = dataclasses.replace(open_one, checker=_one(r"def (check_\w+)\(", source, path))
    return tuple(found)


def _minutes(text: str, path) -> int:
    if match := re.fullmatch(r"(\d+) minutes", text):
        return int(match[1])
    if text not in _MINUTES:
        raise ValueError(f"{path}: how many minutes are {text!r}?")
    return _MINUTES[text]


def _one(pattern: str, text: str, path) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{path}: nothing in it is like {pattern!r}")
    return match[1].strip()
