"""Right and planted wrong answers to the exercises of book/06_budgets.ipynb, for test_exercises.py; see answers_quantization.py."""
import itertools

import pandas as pd


def peak(source, branches, *, orders=itertools.permutations, choose=min, keeps=True, waits=lambda i, n: i < n - 1, reads=True):
    """The smallest peak over all orders, with each of its parts to be broken."""
    def of(order):
        live, kept = [0], 0
        for i, sizes in enumerate(order):
            for j, size in enumerate(sizes):
                read = source if j == 0 else sizes[j - 1]
                live.append(kept + read * reads + size + (source if j and waits(i, len(order)) else 0))
            kept += sizes[-1] * keeps
        return max(live)
    return choose(of(order) for order in orders(branches))


def peak_by_rule(source, branches):
    """Liu's rule: first the branch whose need falls most until its end; the last one alone lets the input go, so try each as the last."""
    def need(sizes):
        return max(source + sizes[0], *(source + a + b for a, b in zip(sizes, sizes[1:])), 0) - sizes[-1]
    def with_last(i):
        return [*sorted(branches[:i] + branches[i + 1:], key=need, reverse=True), branches[i]]
    return min(peak(source, with_last(i), orders=lambda b: [b]) for i in range(len(branches)))


def peak_that_empties_its_input(source, branches):
    right = peak(source, branches)
    branches.clear()
    return right


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
    ("06_budgets", "check_1", [peak, peak_by_rule],
     [lambda source, branches: peak(source, branches, orders=lambda b: [b]),                    # the order as given
      lambda source, branches: peak(source, branches, choose=max),
      lambda source, branches: peak(source, branches, keeps=False),                             # what is finished is gone
      lambda source, branches: peak(source, branches, waits=lambda i, n: False),                # the input is gone after the first step
      lambda source, branches: peak(source, branches, waits=lambda i, n: True),                 # and here it never goes
      lambda source, branches: peak(source, branches, reads=False),                             # only what is written counts
      lambda source, branches: peak(source, branches, orders=lambda b: [sorted(b, key=max, reverse=True)]),
      lambda source, branches: peak(source, branches, orders=lambda b: [sorted(b, key=lambda s: s[-1] - max(map(sum, zip(s, s[1:])), default=0))]),
      lambda source, branches: max(peak(source, branches), 2 * sum(sizes[-1] for sizes in branches)),     # and joined, in a room of its own
      lambda source, branches: source + sum(map(sum, branches)), peak_that_empties_its_input, 510]),
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
