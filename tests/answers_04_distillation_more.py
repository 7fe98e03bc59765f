"""Right and planted wrong answers to the exercises of "More than logits: other ways to teach", for test_exercises.py.

RESULTS: by notebook, what the reader's notebook would hold by then. EXERCISES: notebook, checker, right answers (at
least two), wrong answers (at least three).
"""
import torch
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
]
