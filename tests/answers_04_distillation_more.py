"""Right and planted wrong answers to the exercises of "More than logits: other ways to teach", for test_exercises.py.

RESULTS: by notebook, what the reader's notebook would hold by then. EXERCISES: notebook, checker, right answers (at
least two), wrong answers (at least three).
"""
import math
import statistics

import torch
from course_lib import intervals
from torch.nn import functional as F

NOTEBOOK = "04_distillation_more"


def map_of(maps, pick=lambda squares: squares.amax(dim=1)):
    return F.normalize(pick(maps**2).flatten(1), dim=1)


def distances(maps, p=2):
    rows = maps.flatten(1)
    return torch.cdist(rows, rows, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def by_distance(maps):
    d = distances(maps)
    return d / d[~torch.eye(len(d), dtype=torch.bool)].mean()


def gradients(f, w, t, scale=lambda error: 2 / error.numel()):
    error = f @ w.T - t
    return scale(error) * error.T @ f, scale(error) * error @ w


def verdicts(runs, *, paired=True, budget=True, interval=True):
    """A word for each way against "logits"; with mistakes for those who ask for them."""
    steps, base = runs["logits"]
    words = {}
    for name in [name for name in runs if name != "logits"]:
        its_steps, its = runs[name]
        if paired:
            e = intervals.mean_over_runs([a - b for a, b in zip(its, base)])
            low, high = (e.low, e.high) if interval else (e.value, e.value)
        else:
            one, two = intervals.mean_over_runs(its), intervals.mean_over_runs(base)
            low, high = one.low - two.high, one.high - two.low
        words[name] = "better" if low > 0 else "worse" if high < 0 else "undecided"
        if budget and its_steps != steps:
            words[name] = "not comparable"
    return words


def one_more(published, ours, t, *, one=1, spread=statistics.stdev):
    return abs(published - statistics.mean(ours)) <= t * spread(ours) * math.sqrt(one + 1 / len(ours))


RESULTS = {NOTEBOOK: {
    "accuracy": {"dense": 0.95, "pruned: all labels": 0.93, "pruned: 100 labels": 0.75, "pruned: its dense self": 0.925,
                 "2 bits: all labels": 0.94, "2 bits: 100 labels": 0.93, "2 bits: its dense self": 0.94},
    "size": {"dense": 1_067_000, "pruned: all labels": 36_900, "pruned: 100 labels": 36_800, "pruned: its dense self": 37_000,
             "2 bits: all labels": 69_600, "2 bits: 100 labels": 69_600, "2 bits: its dense self": 69_601}}}

EXERCISES = [
    (NOTEBOOK, "check_1",
     [map_of, lambda maps: F.normalize(maps.abs().amax(dim=1).flatten(1) ** 2, dim=1)],
     [lambda maps: map_of(maps, lambda squares: squares.sum(dim=1)),                        # the sum
      lambda maps: F.normalize(maps.amax(dim=1).flatten(1) ** 2, dim=1),                    # largest first, then squared
      lambda maps: F.normalize(maps.abs().amax(dim=1).flatten(1), dim=1),                   # not squared
      lambda maps: (maps**2).amax(dim=1).flatten(1),                                        # any norm
      lambda maps: (maps**2).amax(dim=1).flatten(1) / (maps**2).amax(dim=1).norm(),         # one norm for all
      lambda maps: map_of(maps, lambda squares: squares.amax(dim=(2, 3))), 1.0]),           # a number for each channel
    (NOTEBOOK, "check_2",
     [by_distance, lambda maps: distances(maps) * len(maps) * (len(maps) - 1) / distances(maps).sum()],
     [lambda maps: distances(maps) / distances(maps).mean(),                                # the zeros count too
      distances,                                                                            # the scale counts
      lambda maps: distances(maps) ** 2 / distances(maps).mean() ** 2,                      # squared
      lambda maps: distances(maps, 1) * len(maps) * (len(maps) - 1) / distances(maps, 1).sum(),
      lambda maps: by_distance(maps).flatten(), lambda maps: by_distance(maps) / 2]),
    (NOTEBOOK, "check_3",
     [gradients, lambda f, w, t: tuple(2 * g / t.numel() for g in ((f @ w.T - t).T @ f, (f @ w.T - t) @ w))],
     [lambda f, w, t: gradients(f, w, t)[::-1],                                             # the wrong way round
      lambda f, w, t: gradients(f, w, t, lambda error: 2),                                  # the sum, not the mean
      lambda f, w, t: gradients(f, w, t, lambda error: 1 / error.numel()),
      lambda f, w, t: gradients(f, w, t, lambda error: -2 / error.numel()),
      lambda f, w, t: gradients(f, w, t, lambda error: 2 / len(error)),                     # over places only
      lambda f, w, t: (gradients(f, w, t)[0], torch.zeros_like(f)),                         # nothing for the student
      lambda f, w, t: gradients(f, w, t)[0]]),
    (NOTEBOOK, "check_4", ["pruned: its dense self", "pruned: " + "its dense self"],
     ["pruned: all labels", "pruned: 100 labels", "2 bits: its dense self", "dense", 0.925]),
    (NOTEBOOK, "check_5",
     [verdicts, lambda runs: {name: verdicts({"logits": runs["logits"], name: run})[name] for name, run in runs.items() if name != "logits"}],
     [lambda runs: verdicts(runs, paired=False),                            # two means, each with its own interval
      lambda runs: verdicts(runs, budget=False),                            # whatever the steps
      lambda runs: verdicts(runs, interval=False),                          # the mean alone
      lambda runs: {n: {"better": "worse", "worse": "better"}.get(v, v) for n, v in verdicts(runs).items()},    # the wrong way round
      lambda runs: verdicts(runs) | {"logits": "undecided"}, lambda runs: list(verdicts(runs).values()), "better"]),
    (NOTEBOOK, "check_6",
     [one_more, lambda p, x, t: not abs(p - sum(x) / len(x)) > t * statistics.stdev(x) * math.sqrt(1 + 1 / len(x))],
     [lambda p, x, t: one_more(p, x, t, one=0),                             # the interval of the mean
      lambda p, x, t: one_more(p, x, t, spread=statistics.pstdev),          # n in place of n - 1
      lambda p, x, t: one_more(p, x, 1.0),                                  # without t
      lambda p, x, t: min(x) <= p <= max(x), lambda p, x, t: not one_more(p, x, t),
      lambda p, x, t: one_more(p, x, 1.96), lambda p, x, t: one_more(p, x, t, spread=statistics.variance), True]),
]
