"""Which models may go to a place: a table of results, the place's limits, and what the measurements can say.

A measured number has an interval. If all of it lies within a limit, the model qualifies; if all of it lies outside, it does
not; and if the limit lies inside the interval, the measurement does not decide. Among the models that may qualify, the Pareto
front has those that no other beats in everything that is limited. Book: chapter 6, "Three answers, not two".
"""
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from . import tables
from .intervals import Estimate

__all__ = ["NO", "UNDECIDED", "YES", "Choice", "Limit", "choose", "front_of", "verdict"]

YES, NO, UNDECIDED = "yes", "no", "undecided"
_FORMATS = {"bytes": tables.format_bytes, "seconds": tables.format_seconds, "accuracy": lambda x: f"{100 * x:.1f} %",
            "lost": lambda x: f"{100 * x:.1f} points"}
_FRACTIONS = ("accuracy", "lost")
_PREFIXES = ((1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
Table = dict[str, dict[str, Estimate]]              # model, column


def choose(results, *, at_most: Mapping[str, float] | None = None, at_least: Mapping[str, float] | None = None) -> "Choice":
    """Say which models qualify under the limits, and which of those no other beats.

    Args:   results: a DataFrame with a row for each model, or a dictionary of dictionaries, model to column to value. A value is
            a number or an Estimate. `report.choose` also takes the rows of the ruler.
            at_most, at_least: limits by column, both ends included. "lost" is the accuracy lost against the first model, as
            a fraction: 0.01 is a point.
    Raises: ValueError for no model, no limit, a column that is not there, a limit that is no finite number (or no fraction, for
            "accuracy" and "lost"), an interval that does not hold its own value, or a gap (NaN) in a column that is limited: a
            model that was not measured has not passed.
    """
    table, limits = _table(results), _limits(at_most or {}, at_least or {})
    _check(table, limits)
    # 1. each model, each limit: yes, no, or undecided
    verdicts = {name: {limit: verdict(row[limit.column], limit) for limit in limits} for name, row in table.items()}
    # 2. a model qualifies if it keeps every limit, and is out if it surely breaks one
    answers = {name: NO if NO in of.values() else UNDECIDED if UNDECIDED in of.values() else YES for name, of in verdicts.items()}
    # 3. of those that are not out, the ones that no other beats in what is limited
    left = [name for name in table if answers[name] != NO]
    return Choice(table, limits, verdicts, answers, front_of(table, limits, left))


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on one column, itself allowed; `upper`: no more than it, else no less."""
    column: str
    value: float
    upper: bool

    def __str__(self) -> str:
        return f"{self.column} {'≤' if self.upper else '≥'} {_shown(self.column, self.value)}"


def verdict(value: Estimate, limit: Limit) -> str:
    """YES if the whole interval keeps the limit, NO if none of it does, UNDECIDED if the limit lies inside."""
    inner, outer = (value.low, value.high) if limit.upper else (-value.high, -value.low)
    bound = limit.value if limit.upper else -limit.value
    return YES if outer <= bound else NO if inner > bound else UNDECIDED


def front_of(table: Table, limits: Sequence[Limit], names: Sequence[str]) -> list[str]:
    """The names that no other beats: none is as good in every limited column, and better in one.

    Compared are the values, not their intervals: a lead inside the noise still counts here.
    """
    values = {name: np.array([table[name][k.column].value * (1 if k.upper else -1) for k in limits]) for name in names}
    return [name for name in names
            if not any((values[other] <= values[name]).all() and (values[other] < values[name]).any() for other in names)]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the limits leave; it shows itself as a table.

    table: values by model and column; verdicts: by model and limit; answers: YES, NO or UNDECIDED for each model; front: the
    Pareto front among the models whose answer is not NO, in the columns that are limited.
    """
    table: Table
    limits: tuple[Limit, ...]
    verdicts: dict[str, dict[Limit, str]]
    answers: dict[str, str]
    front: list[str]

    @property
    def qualified(self) -> list[str]:
        """The models that surely keep every limit."""
        return [name for name, answer in self.answers.items() if answer == YES]

    @property
    def undecided(self) -> list[str]:
        """The models that break no limit for sure, but may break one."""
        return [name for name, answer in self.answers.items() if answer == UNDECIDED]

    def why(self, name: str) -> str:
        """The limits that a model breaks, or may break; empty if it qualifies.

        Raises: ValueError for a model that is not in the table.
        """
        if name not in self.answers:
            raise ValueError(f"no model {name!r} in the table; there are {', '.join(map(repr, self.answers))}")
        return "; ".join(f"{'breaks' if found == NO else 'may break'} {limit}"
                         for limit, found in self.verdicts[name].items() if found != YES)

    @property
    def comparison(self) -> tables.Comparison:
        """A row for each model: its answer, whether it is on the front, and its values in the columns that are limited."""
        import pandas as pd
        frame = pd.DataFrame.from_dict({name: {
            "qualifies": self.answers[name], "front": "●" if name in self.front else "",
            **{str(limit): _cell(limit.column, self.table[name][limit.column]) + _MARKS[self.verdicts[name][limit]]
               for limit in self.limits}} for name in self.table}, orient="index")
        frame.index = frame.index.map(str)
        return tables.Comparison(frame, "Qualifies: every interval lies within its limit; undecided: a limit lies inside an interval (?); "
                                        "no: an interval lies beyond its limit (✗).\n"
                                        "Front: ● no other model that may qualify is as good in every limited column and better in one.")

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()

    def __repr__(self) -> str:
        return repr(self.comparison)


_MARKS = {YES: "", NO: " ✗", UNDECIDED: " ?"}


def _table(results) -> Table:
    if hasattr(results, "to_dict"):                             # a DataFrame, a row for each model
        for what, names in (("model", results.index), ("column", results.columns)):
            if not names.is_unique:
                raise ValueError(f"each {what} needs a name of its own; got {list(names)}")
        results = results.to_dict(orient="index")
    if not isinstance(results, Mapping) or not all(isinstance(row, Mapping) for row in results.values()):
        raise ValueError("results must be a DataFrame with a row for each model, or a dictionary of dictionaries, model to column "
                         f"to value; got {type(results).__name__}")
    return {name: {column: _estimate(value) for column, value in row.items()} for name, row in results.items()}


def _estimate(value) -> Estimate | None:
    """A number as an interval without width; None for what is no number."""
    if isinstance(value, Estimate):
        return value
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return Estimate(float(value), float(value), float(value)) if number else None


def _limits(at_most: Mapping[str, float], at_least: Mapping[str, float]) -> tuple[Limit, ...]:
    for given in (at_most, at_least):
        if not isinstance(given, Mapping):
            raise ValueError(f'limits are a dictionary, column to limit, e.g. {{"bytes": 100_000}}; got {given!r}')
    limits = [Limit(column, value, side) for side, given in ((True, at_most), (False, at_least)) for column, value in given.items()]
    for limit in limits:
        if isinstance(limit.value, bool) or not isinstance(limit.value, (int, float, np.number)) or not math.isfinite(limit.value):
            raise ValueError(f"a limit must be a finite number; got {limit.value!r} for {limit.column!r}")
        if limit.column in _FRACTIONS and abs(limit.value) >= 1:
            raise ValueError(f"{limit.column!r} is a fraction: 0.01 is one point or one percent; got the limit {limit.value!r}")
    return tuple(limits)


def _check(table: Table, limits: tuple[Limit, ...]) -> None:
    if not table or not limits:
        raise ValueError(f"need at least one model and one limit; got {len(table)} models and {len(limits)} limits")
    for column in dict.fromkeys(limit.column for limit in limits):
        for name, row in table.items():
            value = row.get(column)
            if value is None or any(math.isnan(end) for end in (value.value, value.low, value.high)):
                known = ", ".join(sorted(k for k, v in row.items() if v is not None))
                raise ValueError(f"{name!r} has no number in column {column!r}; it has {known}. A model that was not measured has "
                                 "not passed: measure it, or leave it out")
            if not value.low <= value.value <= value.high:
                raise ValueError(f"an interval must hold its value, low <= value <= high; got {value!r} for {name!r} in {column!r}")


def _cell(column: str, value: Estimate) -> str:
    if value.low == value.high:
        return _shown(column, value.value)
    return f"{_shown(column, value.value)} [{_shown(column, value.low)}, {_shown(column, value.high)}]"


def _shown(column: str, value: float) -> str:
    if math.isinf(value):
        return f"{value}"
    if column in _FORMATS:
        return _FORMATS[column](int(value) if column == "bytes" else value)
    if column == "joules" and value > 0:
        scale, prefix = next((pair for pair in _PREFIXES if value >= 0.9995 * pair[0]), _PREFIXES[-1])
        return f"{value / scale:.3g} {prefix}J"
    return f"{value:,.4g}" if isinstance(value, float) and value % 1 else f"{int(value):,}"
