"""Right and planted wrong answers to the exercises of book/06_budgets.ipynb, for test_exercises.py; see answers_quantization.py."""
import pandas as pd


def peak(tensors, *, until=lambda step, last: step <= last, since=lambda first, step: first <= step, steps=None):
    """The peak of live tensors, with each of its parts to be broken."""
    places = {first for first, _, _ in tensors} if steps is None else steps(tensors)
    return max((sum(size for first, last, size in tensors if since(first, step) and until(step, last)) for step in places),
               default=0)


def peak_that_sorts_its_input(tensors):
    tensors.sort(key=lambda t: -t[2])
    return peak(tensors)


def every_step(tensors):
    return range(max((last for _, last, _ in tensors), default=0) + 1)


def choose(candidates, *, keep=lambda c: (c.file <= 100_000) & (c.memory <= 16_000), by=("validation", "file"), ascending=(False, True)):
    return candidates[keep(candidates)].sort_values(list(by), ascending=list(ascending)).index[0]


# file, memory, validation: the best of all is too large, another has too much memory, and two that fit are equally accurate.
CANDIDATES = pd.DataFrame({
    ("big", "float"): (1_700_000, 80_000, 0.975), ("big", "int8"): (90_000, 20_000, 0.974), ("flat", "int8"): (270_000, 1_000, 0.973),
    ("student", "float"): (34_000, 15_900, 0.962), ("student", "int8"): (16_000, 6_272, 0.962), ("small", "int8"): (12_000, 10_800, 0.95),
}, index=["file", "memory", "validation"]).T
RIGHT = choose(CANDIDATES)


def budgets(sheet, kilo=1024, room=max, firmware=1):
    return kilo * (sheet["flash_KB"] - firmware * sheet["firmware_KB"]), kilo * room(sheet["RAM_KB"]), 3.6 * sheet["mAh"] * sheet["V"]


def budgets_in_place(sheet):
    sheet["RAM_KB"].sort()
    return budgets(sheet, room=lambda pieces: pieces[-1])


RESULTS = {"06_budgets": {"candidates": CANDIDATES}}

EXERCISES = [
    ("06_budgets", "check_1", [peak, lambda tensors: peak(tensors, steps=every_step)],
     [lambda tensors: peak(tensors, until=lambda step, last: step < last),           # gone in its last step
      lambda tensors: peak(tensors, since=lambda first, step: first < step, steps=every_step),
      lambda tensors: sum(size for _, _, size in tensors),                           # as if all lived at once
      lambda tensors: max((size for _, _, size in tensors), default=0),              # the largest alone
      lambda tensors: peak(tensors, steps=lambda t: [last for _, last, _ in t[:1]]),  # only one step
      lambda tensors: peak(tensors) or None, peak_that_sorts_its_input, 250]),
    ("06_budgets", "check_2", [lambda joules, watts, share: share / (1 - share) * watts / joules,
                               lambda joules, watts, share: watts / joules / (1 / share - 1)],
     [lambda joules, watts, share: share * watts / joules,                           # of the rest, not of all
      lambda joules, watts, share: watts / joules,
      lambda joules, watts, share: (1 - share) / share * watts / joules,
      lambda joules, watts, share: share / (1 - share) * joules / watts,             # seconds an image
      lambda joules, watts, share: 60 * share / (1 - share) * watts / joules, 8.0]),
    ("06_budgets", "check_3", [lambda share, left: 1 / (1 - share + share * left),
                               lambda share, left: 1 / (1 - share * (1 - left))],
     [lambda share, left: 1 / (1 - share),                                           # only for left = 0
      lambda share, left: 1 / left if left else 0.0,                                 # as if there were nothing else
      lambda share, left: 1 + share * (1 - left),
      lambda share, left: 1 - share + share * left,                                  # the power, not the life
      lambda share, left: 1 / (1 - share * left), 1.82]),
    ("06_budgets", "check_4", [RIGHT, ("student", "int8")],
     [choose(CANDIDATES, keep=lambda c: c.file > 0),                                 # whatever its size
      choose(CANDIDATES, keep=lambda c: c.file <= 100_000), choose(CANDIDATES, keep=lambda c: c.memory <= 16_000),
      choose(CANDIDATES, by=("file", "memory"), ascending=(True, True)),             # the smallest
      choose(CANDIDATES, ascending=(False, False)), "student", list(RIGHT)]),
    ("06_budgets", "check_5", [budgets, lambda sheet: (*(float(b) for b in budgets(sheet)[:2]), sheet["mAh"] / 1000 * 3600 * sheet["V"])],
     [lambda sheet: budgets(sheet, kilo=1000), lambda sheet: budgets(sheet, kilo=1),
      lambda sheet: budgets(sheet, room=sum),                                        # as if the pieces were one
      lambda sheet: budgets(sheet, room=min), lambda sheet: budgets(sheet, room=lambda pieces: pieces[0]),
      lambda sheet: budgets(sheet, firmware=0),
      lambda sheet: (*budgets(sheet)[:2], sheet["mAh"] * sheet["V"]),                # milliwatt-hours
      lambda sheet: (*budgets(sheet)[:2], 3600 * sheet["mAh"] * sheet["V"]),
      lambda sheet: (*budgets(sheet)[:2], 3.6 * sheet["mAh"]),                       # charge, not energy
      lambda sheet: list(budgets(sheet)), lambda sheet: budgets(sheet)[::-1], budgets_in_place, (401_408, 65_536, 4662.0)]),
]
