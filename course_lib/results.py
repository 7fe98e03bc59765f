"""Stored results of studies: comparisons that take longer than a chapter may, with how they were made.

A study runs one unit for each configuration and seed (`studies/runner.py`); its rows are read here.
Comparisons are paired: both sides come from the same seed, and only the differences are averaged.
Book: chapter 2, "A study over seeds".
"""
import dataclasses
import json
from pathlib import Path

from . import intervals

__all__ = ["FORMAT", "Results", "load", "read"]

FORMAT = "course-lib study, version 1"
FOLDER = Path(__file__).parent.parent / "studies" / "results"


@dataclasses.dataclass(frozen=True)
class Results:
    """Rows of a study and their provenance.

    rows: one dictionary for each thing measured, with its `seed`; provenance: command, versions, machine class, date,
    data set, seeds, and the revision of the source.
    """
    study: str
    rows: list[dict]
    provenance: dict

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.rows})

    def by_seed(self, value: str, **where) -> dict[int, float]:
        """The number called `value` for each seed, of the rows that have all of `where`.

        Raises: ValueError unless each seed has exactly one such row.
        """
        rows = [row for row in self.rows if all(row.get(k) == v for k, v in where.items())]
        found = {row["seed"]: row[value] for row in rows if value in row}
        if not rows or len(found) != len(rows) or sorted(found) != self.seeds:
            raise ValueError(f"study {self.study}: {where} must pick one row with {value!r} for each of {len(self.seeds)} seeds; "
                             f"it picks {len(rows)} rows of {len(found)} seeds")
        return found

    def mean(self, value: str, **where) -> intervals.Estimate:
        """Mean over seeds with its 95 % interval (Student's t)."""
        return intervals.mean_over_runs(list(self.by_seed(value, **where).values()))

    def difference(self, value: str, first: dict, second: dict, **where) -> intervals.Estimate:
        """Mean over seeds of the paired difference, second minus first, with its 95 % interval (Student's t).

        Args: first, second: what picks the two rows of a seed, such as {"plan": "global"}; where: common to both.
        """
        a, b = (self.by_seed(value, **where, **side) for side in (first, second))
        return intervals.mean_over_runs([b[seed] - a[seed] for seed in self.seeds])

    @property
    def caption(self) -> str:
        """One sentence on where the numbers come from."""
        p = self.provenance
        return (f"Study {self.study}: {len(self.seeds)} seeds on {p['dataset']}, made on {p['date']} with torch "
                f"{p['versions']['torch']} on {p['machine']} by `{p['command']}`.")


def load(study: str) -> Results:
    """Read the stored results of a study by its name.

    Raises: FileNotFoundError if there are none; ValueError if the file is damaged or of something else.
    """
    path = FOLDER / f"{study}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results of a study {study!r} in {FOLDER}; they come with the course's repository, "
                                "and `make study` makes them")
    return read(path, study)


def read(path: Path, study: str) -> Results:
    """Read one file of results; see `load`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or half-written ({error}); run the study again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("study") != study:
        raise ValueError(f"{path} does not hold the results of study {study!r}; was it put there by something else?")
    if not content.get("rows") or not content.get("provenance"):
        raise ValueError(f"{path} has no rows or no provenance; run the study again")
    return Results(study, content["rows"], content["provenance"])
