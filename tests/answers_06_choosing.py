"""Right and planted wrong answers to the exercises of book/06_choosing.ipynb, for test_exercises.py; see answers_quantization.py."""
from types import SimpleNamespace

import numpy as np

from course_lib import report


def floor_verdict(low, high, floor):
    return "yes" if low >= floor else "no" if high < floor else "undecided"


def joules(wh, minutes, rate, share):
    return share * wh * 3600 / (rate * minutes * 60)


def front(table, *, ties=False, strict=False):
    rows = [np.array(row, dtype=float) for row in table]

    def beats(b, a):
        if strict:
            return (b < a).all()
        return (b <= a).all() and (ties or (b < a).any())
    return [i for i, own in enumerate(rows) if not any(beats(other, own) for j, other in enumerate(rows) if j != i)]


def front_in_place(table):
    table.sort()
    return front(table)


PAGE = report.choose({"dense": {"lost": 0.0, "bytes": 140_000}, "student": {"lost": 0.004, "bytes": 31_000},
                      "tiny": {"lost": 0.03, "bytes": 4_000}, "large": {"lost": 0.0, "bytes": 900_000}},
                     at_most={"lost": 0.02, "bytes": 200_000})

RESULTS = {"06_choosing": {
    "page": PAGE,
    "front": lambda values: [n for n, own in values.items()
                             if not any((o <= own).all() and (o < own).any() for o in values.values())]}}

EXERCISES = [
    ("06_choosing", "check_1", [0.02 * (1.96 / 0.0025) ** 2, 12_293, 12_300],
     [0.02 * (1.96 / 0.25) ** 2, 0.02 * (1.96 / 0.005) ** 2, 0.02**2 * (1.96 / 0.0025) ** 2, (1.96 / 0.0025) ** 2, "12293"]),
    ("06_choosing", "check_2", [floor_verdict, lambda low, high, floor: {True: "yes"}.get(
        low >= floor, "no" if floor > high else "undecided")],
     [lambda low, high, floor: "yes" if low > floor else "no" if high < floor else "undecided",
      lambda low, high, floor: "yes" if low >= floor else "no" if high <= floor else "undecided",
      lambda low, high, floor: "yes" if high <= floor else "no" if low > floor else "undecided",       # a limit from above
      lambda low, high, floor: "yes" if low >= floor else "no",
      lambda low, high, floor: low >= floor, "yes"]),
    ("06_choosing", "check_3", [joules, lambda wh, minutes, rate, share: wh * share * 60 / (minutes * rate)],
     [lambda wh, minutes, rate, share: share * wh / (rate * minutes * 60),                  # watt-hours
      lambda wh, minutes, rate, share: share * wh * 3600 / (rate * minutes),                # minutes as seconds
      lambda wh, minutes, rate, share: share * wh * 3600 / (minutes * 60),                  # power
      lambda wh, minutes, rate, share: share / 100 * wh * 3600 / (rate * minutes * 60), 0.0267]),
    ("06_choosing", "check_4", [front, lambda table: front([tuple(row) for row in table])],
     [lambda table: front(table, ties=True), lambda table: front(table, strict=True),
      lambda table: front([row[:2] for row in table]), lambda table: [table[i] for i in front(table)], front_in_place]),
    ("06_choosing", "check_5", ["student", str(np.str_("student"))],
     ["dense", "tiny", "large", 31_000, SimpleNamespace(name="student")]),
]
