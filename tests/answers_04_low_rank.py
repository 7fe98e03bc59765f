"""Right and planted wrong answers to the exercises of "Low rank: one matrix as two", for test_exercises.py."""
import math

import torch
from torch import nn


def pair(layer, rank, *, first_bias=False, old_bias=True, balanced=True, squares=False):
    u, values, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    values = values[:rank] ** (2 if squares else 1)
    in_left, in_right = (values.sqrt(), values.sqrt()) if balanced else (values, torch.ones(rank))
    first, last = nn.Linear(layer.in_features, rank, bias=first_bias), nn.Linear(rank, layer.out_features)
    first.weight, last.weight = nn.Parameter(in_right[:, None] * vt[:rank]), nn.Parameter(u[:, :rank] * in_left)
    if old_bias:
        last.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, last)


def zero_bias(layer, rank):
    made = pair(layer, rank, first_bias=True)
    nn.init.zeros_(made[0].bias)
    return made


def multiplied_out(layer, rank):
    made, whole = pair(layer, rank), nn.Linear(layer.in_features, layer.out_features)
    whole.weight, whole.bias = nn.Parameter((made[1].weight @ made[0].weight).detach()), made[1].bias
    return whole


def swapped(layer, rank):
    u, values, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    made = pair(layer, rank)
    made[0].weight, made[1].weight = nn.Parameter(vt[-rank:] * 1.0), nn.Parameter(u[:, -rank:] * values[-rank:])     # the smallest
    return made


def cut(matrix, rank):
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(values[:rank]) @ vt[:rank]


def output_error(w, x, r):
    return float((x @ cut(w, r).T - x @ w.T).norm() / (x @ w.T).norm())


def fast_rank(n, batch, call, per_mac):
    return max((r for r in range(n) if r == 0 or 2 * call + 2 * n * r * batch * per_mac < call + n * n * batch * per_mac))


RESULTS = {"04_low_rank": {
    "validation": {"dense": 0.966, "rank 32": 0.958, "rank 16": 0.956, "rank 8": 0.876, "784-31-10": 0.928, "784-16-10": 0.918},
    "size": {"dense": 1_067_008, "rank 32": 196_456, "rank 16": 101_464, "rank 8": 53_968, "784-31-10": 99_036, "784-16-10": 51_328}}}

EXERCISES = [
    ("04_low_rank", "check_1",
     [lambda m, n, s: int(s * m * n / (m + n)), lambda m, n, s: max(r for r in range(min(m, n) + 1) if r * (m + n) <= s * m * n)],
     [lambda m, n, s: round(s * m * n / (m + n)),                   # may break the budget
      lambda m, n, s: s * m * n / (m + n),                          # not whole
      lambda m, n, s: int(s * min(m, n)),                           # a fraction of the full rank
      lambda m, n, s: int(m * n / (m + n)),                         # break-even, whatever the budget
      lambda m, n, s: max(1, int(s * m * n / (m + n))),             # even rank 1 may be too much
      lambda m, n, s: int(s * m * n / (m + n + 1)),                 # the diagonal stored as well
      lambda m, n, s: (int(s * m * n) - 1) // (m + n),              # "less than" in place of "at most"
      54]),
    ("04_low_rank", "check_2",
     [pair, lambda layer, rank: pair(layer, rank, balanced=False)],
     [lambda layer, rank: pair(layer, rank, first_bias=True),       # a random bias
      lambda layer, rank: pair(layer, rank, old_bias=False),        # the old one dropped
      lambda layer, rank: pair(layer, rank, squares=True),          # the values in both factors
      zero_bias,                                                    # numbers that are not needed
      multiplied_out, swapped, lambda layer, rank: layer,           # not replaced
      lambda layer, rank: pair(layer, 1), "two layers"]),
    ("04_low_rank", "check_3",
     [lambda v, r: float(torch.tensor(v[r:], dtype=torch.float64).norm() / torch.tensor(v, dtype=torch.float64).norm()),
      lambda v, r: (1 - sum(x * x for x in v[:r]) / sum(x * x for x in v)) ** 0.5],
     [lambda v, r: sum(v[r:]) / sum(v),                             # the values, not their squares
      lambda v, r: sum(x * x for x in v[r:]) / sum(x * x for x in v),       # the root is forgotten
      lambda v, r: sum(x * x for x in v[r:]) ** 0.5,                # not relative
      lambda v, r: (sum(x * x for x in v[:r]) / sum(x * x for x in v)) ** 0.5,      # what is kept
      lambda v, r: (sum(x * x for x in v[r + 1:]) / sum(x * x for x in v)) ** 0.5,  # one too few
      lambda v, r: v[r] / v[0] if r < len(v) else 0.0,              # another norm, the largest stretch
      0.6]),
    ("04_low_rank", "check_4",
     [lambda left, a, c, b: left @ a + c - b, lambda left, a, c, b: (left * a).sum(dim=1) - (b - c)],
     [lambda left, a, c, b: a.new_zeros(len(left)) + c - b,         # the first bias is forgotten
      lambda left, a, c, b: left @ a + c,                           # the old one is
      lambda left, a, c, b: left @ a - b,
      lambda left, a, c, b: b - left @ a - c,                       # the other way round
      lambda left, a, c, b: left @ (a + c[:left.shape[1]]) - b,
      lambda left, a, c, b: left @ a + c + b, 0.0]),
    ("04_low_rank", "check_5", ["rank 16", "".join(["rank", " 16"])],
     ["rank 32", "dense", "rank 8", "784-16-10", "784-31-10", 0.956]),
    ("04_low_rank", "check_6",
     [output_error, lambda w, x, r: float((x @ (w - cut(w, r)).T).norm() / (x @ w.T).norm())],
     [lambda w, x, r: float((w - cut(w, r)).norm() / w.norm()),                 # of the weights
      lambda w, x, r: float((x @ w.T - cut(x @ w.T, r)).norm() / (x @ w.T).norm()),     # the outputs themselves cut
      lambda w, x, r: output_error(w, x, r) ** 2,                               # the root is forgotten
      lambda w, x, r: output_error(w, x, r) * float((x @ w.T).norm()),          # not relative
      lambda w, x, r: output_error(w, x, r - 1) if r > 1 else 1.0,              # one term too few
      lambda w, x, r: 100 * output_error(w, x, r), 0.447]),
    ("04_low_rank", "check_7",
     [fast_rank, lambda n, b, c, t: max(0, math.ceil(n / 2 - c / (2 * n * b * t)) - 1)],
     [lambda n, b, c, t: fast_rank(n, b, 0, t),                     # break-even of the weights
      lambda n, b, c, t: fast_rank(n, b, 2 * c, t),                 # a third call
      lambda n, b, c, t: fast_rank(n, 1, c, t),                     # the batch is forgotten
      lambda n, b, c, t: max(0, math.floor(n / 2 - c / (2 * n * b * t))),       # "as much" counts, too
      lambda n, b, c, t: n / 2 - c / (2 * n * b * t),               # not whole, and below 0
      lambda n, b, c, t: fast_rank(n, b, b * c, t),                 # a call for each input
      lambda n, b, c, t: fast_rank(n, b, c, t) + 1, 112]),
]
