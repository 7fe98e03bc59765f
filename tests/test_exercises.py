"""Every checker of the chapters: right answers pass, planted wrong ones are caught, none has no answer yet.

The checker's cell is taken from the notebook itself and run beside the imports and made-up results,
so that no network has to be trained here.
"""
import ast
import functools
import importlib
import math
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from course_lib import intervals, models
from course_lib.checks import WrongAnswer
from course_lib.intervals import Estimate, mean_over_runs
from course_lib.predictors import spearman
from torch.nn import functional as F

BOOK = Path(__file__).parent.parent / "book"


def flat(value):
    return Estimate(value, value, value)


torch.manual_seed(0)        # the tests' own seed comes too late for this one
LENET = models.lenet_300_100()
SMALL = torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])


def to_csr(matrix):
    """The three lists of CSR: row starts, columns, values."""
    csr = matrix.to_sparse_csr()
    return tuple(part.tolist() for part in (csr.crow_indices(), csr.col_indices(), csr.values()))


# What the reader's notebook would hold by then.
RESULTS = {
    "01_one_ruler": {"validation": {"big": 0.97, "middle": 0.965, "small": 0.96, "poor": 0.90},
                     "bytes_of": {"big": 9000, "middle": 300, "small": 500, "poor": 10}},
    "02_pruning_threshold": {"levels": [0.5, 0.8, 0.9, 0.95], "dense_line": flat(0.97),
                             "after": {0.5: flat(0.97), 0.8: flat(0.968), 0.9: flat(0.945), 0.95: flat(0.93)}},
    "02_pruning_how_much": {"dense": LENET, "amounts": {"1.weight": 0.91, "3.weight": 0.84, "5.weight": 0.6},
                            "tuned": {"equal in each layer": 0.93, "global": 0.96, "from the scan": 0.95},
                            "accuracy": lambda model: model},
    "02_pruning_removal": {"small": SMALL, "to_csr": to_csr,
                           "validation": {"CNN 32-64": 0.970, "half removed": 0.968, "3/4 removed": 0.961,
                                          "CNN 8-16 from scratch": 0.964, "ruined": 0.5},
                           "size": {"CNN 32-64": 140_000, "half removed": 52_000, "3/4 removed": 21_700,
                                    "CNN 8-16 from scratch": 21_600, "ruined": 900}},
    "02_pruning_patterns": {"scores": {"dense": 0.956, "ticket": 0.952, "new weights": 0.92, "other zeros": 0.888,
                                       "trained weights": 0.948},
                            "ratios": [Estimate(1.03, 1.01, 1.05), Estimate(1.02, 0.94, 1.04)],
                            "intervals": intervals, "with_ticket": {5: 0.95, 6: 0.96, 7: 0.94, 8: 0.955}, "with_new": {5: 0.93, 6: 0.935, 7: 0.925, 8: 0.93}},
    "05_real_joules": {
        "arm": pd.DataFrame(
            [("RPi 4", 0.30, 75.0), ("RPi 4", 0.20, 70.0), ("RPi 4", 0.10, 69.9), ("RK3588S", 0.05, 75.0)],
            columns=["board", "joules", "top1_percent"]),
        "pruned": pd.DataFrame(
            [(network, batch, pruned, left) for network, batch, pruned, energies in [
                ("VGG16", 64, 0.0, [1.0]), ("VGG16", 64, 0.3, [0.8, 0.8, 0.4]), ("VGG16", 64, 0.5, [0.6, 0.5, 0.3]),
                ("VGG16", 64, 0.65, [0.4, 0.3, 0.3]), ("VGG16", 1, 0.3, [0.1] * 9), ("AlexNet", 64, 0.3, [0.1] * 9)]
             for left in energies], columns=["network", "batch", "pruned", "joules_left"])},
    "05_predicting_joules": {
        "rivals": pd.DataFrame({"supply_volts": [3.0, 1.8], "joules": [0.018, 0.0135]}, index=["Krai", "Skymizer"]),
        "board_row": pd.Series({"macs": 1_000_000, "weight_bytes": 8_000, "activation_bytes": 16_000, "joules": 0.0006})},
}


def ranked(values):
    return [sorted(values).index(v) + 1 for v in values]


def flip(e8, t8, e32, t32, mean=lambda ratios: math.exp(sum(map(math.log, ratios)) / len(ratios))):
    """The first idle power, in steps of 0.1 W, at which the mean net ratio is below 1."""
    for step in range(1000):
        watts = 0.1 * step
        if mean([(a - watts * b) / (c - watts * d) for a, b, c, d in zip(e8, t8, e32, t32)]) < 1:
            return watts


def in_place(weight, q):
    return weight.abs_() >= q * weight.std()


def fast_sparsity(dense, sparse, row, columns):
    """The sparsity above which a row of CSR takes less time; None if it never does."""
    if dense * columns <= row:
        return None
    return max(0.0, 1 - (dense * columns - row) / (sparse * columns))


def lowest_go(scores, amount):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort()[:round(amount * scores.numel())]] = False
    return mask.view_as(scores)


def n_of_m(weight, n, m):
    mask = torch.zeros(weight.numel() // m, m, dtype=torch.bool)
    return mask.scatter(1, weight.reshape(-1, m).abs().topk(n).indices, True).view_as(weight)


def one_left_out(a, b):
    """The smallest and the largest rank correlation without one of the pairs."""
    found = [float(spearman(a[:i] + a[i + 1:], b[:i] + b[i + 1:])) for i in range(len(a))]
    return min(found), max(found)


def four_ways(rows, columns, bits, rank, *, pruned=0.1, factor=32, thin=None, small=0.25):
    """The bits that each of the four ways to make a matrix smaller leaves."""
    n = rows * columns
    return {"pruning": 32 * n * pruned, "quantization": bits * n * factor / 32,
            "low-rank factorisation": 32 * (rank * (rows + columns) if thin is None else thin), "distillation": 32 * n * small}


def rms(x):
    return x.square().mean(0).sqrt()


def change(weight, x, k, scores):
    """Mean square change of a layer's outputs without the k weights of the lowest scores."""
    return float((x @ torch.where(lowest_go(scores, k / scores.numel()), 0, weight).T).square().mean())


def shares(layers, amount, *, size=torch.abs, of=None):
    """The fraction of each layer that one threshold takes."""
    every = torch.cat([size(w).flatten() for w in layers])
    threshold = every.sort().values[round(amount * every.numel()) - 1]
    if of is not None:
        threshold = of(torch.stack([w.abs().flatten().quantile(amount) for w in layers]))
    return [float((size(w) <= threshold).double().mean()) for w in layers]


def keep(times, wanted, *, enough=lambda n, wanted: n >= wanted, tie=max, none=lambda times: None):
    """The fastest of the widths that are wide enough, with each of its parts to be broken."""
    fit = {n: t for n, t in times.items() if enough(n, wanted)}
    return tie(n for n in fit if fit[n] == min(fit.values())) if fit else none(times)


def keep_in_place(times, wanted):
    for n in [n for n in times if n < wanted]:
        del times[n]
    return keep(times, wanted)


def verdict(e):
    return "better" if e.low > 0 else "worse" if e.high < 0 else "undecided"


def unpaired(first, second):
    a, b = (mean_over_runs(list(part.values())) for part in (first, second))
    return "better" if a.low > b.high else "worse" if a.high < b.low else "undecided"


# notebook, checker, right answers (at least two), wrong answers (at least three)
EXERCISES = [
    ("01_one_ruler", "check_1",
     [lambda mwh, j: mwh * 3.6e9 / j, lambda mwh, j: 1000 * 1000 * mwh * 60 * 60 * (1 / j)],
     [lambda mwh, j: mwh / j, lambda mwh, j: mwh * 3600 / j, lambda mwh, j: mwh * 3.6e9 * j, lambda mwh, j: 18_000_000_000_000,
      lambda mwh, j: mwh * 6e7 / j, lambda mwh, j: mwh * 3.6e6 / j, lambda mwh, j: j / mwh / 3.6e9, 18_000_000_000_000]),
    ("01_one_ruler", "check_2",
     [lambda side, k, c, d: (side - k + 1) ** 2 * k * k * c * d,
      lambda side, k, c, d: float(d * (c * k * k) * (side + 1 - k) * (side + 1 - k))],
     [lambda side, k, c, d: side**2 * k * k * c * d,                # as if padded
      lambda side, k, c, d: (side - k) ** 2 * k * k * c * d,        # off by one
      lambda side, k, c, d: (side - k + 1) ** 2 * k * c * d,        # one side of the filter
      lambda side, k, c, d: (side - k + 1) ** 2 * k * k * d,        # input channels forgotten
      lambda side, k, c, d: 2 * (side - k + 1) ** 2 * k * k * c * d,
      lambda side, k, c, d: 194_688]),
    ("01_one_ruler", "check_3", [0.008, 8 / 1000, torch.tensor(0.008)], [-0.008, 0.8, 8, 0.032, "0.008", lambda: 0.008]),
    ("01_one_ruler", "check_4", ["middle", "".join(["mid", "dle"])], ["big", "small", "poor", 300, 0.965]),
    ("01_one_ruler", "check_5",
     [lambda low, high, first, second: (low * second, high * second, second / first),
      lambda low, high, first, second: (second * low, second * high, (low * second) / (low * first))],
     [lambda low, high, first, second: (low * first, high * first, second / first),          # the joules of the first model
      lambda low, high, first, second: (low * second, high * second, first / second),        # upside down
      lambda low, high, first, second: (high * second, low * second, second / first),
      lambda low, high, first, second: (low * second, high * second, (low * second) / (high * first)),    # power does not cancel
      lambda low, high, first, second: (second / low, second / high, second / first), (1.0, 2.0, 3.0)]),
    ("01_one_ruler", "check_6",
     [four_ways, lambda r, c, b, k: dict(reversed([*{**four_ways(r, c, b, k), "distillation": 8 * r * c}.items()]))],
     [lambda r, c, b, k: {**four_ways(r, c, b, k), "pruning": 28.8 * r * c},            # what goes
      lambda r, c, b, k: four_ways(r, c, b, k, factor=4),                               # bytes
      lambda r, c, b, k: four_ways(r, c, b, k, thin=k * r * c),
      lambda r, c, b, k: four_ways(r, c, b, k, thin=k * k + r + c),
      lambda r, c, b, k: four_ways(r, c, b, k, thin=2 * k * r),                         # as if it were square
      lambda r, c, b, k: four_ways(r, c, b, k, small=0.5),                              # one side only
      lambda r, c, b, k: {name.title(): n for name, n in four_ways(r, c, b, k).items()},
      lambda r, c, b, k: dict(zip(four_ways(r, c, b, k), [*four_ways(r, c, b, k).values()][::-1])),     # the names mixed up
      lambda r, c, b, k: {name: n for name, n in four_ways(r, c, b, k).items() if name != "distillation"},
      lambda r, c, b, k: [*four_ways(r, c, b, k).values()], lambda r, c, b, k: four_ways(300, 780, 8, 20)]),
    ("02_pruning_threshold", "check_1", [0.5, 1 / 2, 1 - 4 / 8], [50, 0.25, 2, 1, "0.5", True]),
    ("02_pruning_threshold", "check_2",
     [lambda w, q: w.abs() >= q * w.std(), lambda w, q: ~(w.abs() < w.std() * q), lambda w, q: (w**2).sqrt() >= q * w.std()],
     [lambda w, q: w >= q * w.std(),                                # magnitude forgotten
      lambda w, q: w.abs() < q * w.std(),                           # what goes, not what stays
      lambda w, q: w.abs() > q * w.std(),                           # a zero at q = 0 must stay
      lambda w, q: (w - w.mean()).abs() >= q * w.std(),
      lambda w, q: w.abs() >= q * w.var(),
      lambda w, q: (w.abs() >= q * w.std()).float(),                # not a mask
      lambda w, q: w.abs() >= q * w.std(dim=0),                     # wrong axis
      in_place]),
    ("02_pruning_threshold", "check_3",
     [lambda p, r: 1 - (1 - p) ** r, lambda p, r: 1 - functools.reduce(lambda left, _: left * (1 - p), range(r), 1.0)],
     [lambda p, r: p * r, lambda p, r: p**r, lambda p, r: (1 - p) ** r, lambda p, r: 100 * (1 - (1 - p) ** r),
      lambda p, r: 1 - (1 - p) ** (r + 1), lambda p, r: 0.75]),
    ("02_pruning_threshold", "check_5",
     [lambda w, m: w * m, lambda w, m: torch.where(m, w, torch.zeros_like(w)), lambda w, m: w.masked_fill(~m, 0)],
     [lambda w, m: w * ~m, lambda w, m: w, lambda w, m: w[m], lambda w, m: w.mul_(m), lambda w, m: m,
      lambda w, m: torch.tensor([[0.5, -2.0, 0.1], [3.0, 0.0, -1.0]])]),
    ("02_pruning_threshold", "check_4", [0.9, 9 / 10], [0.8, 0.95, 90, 2, 0.5]),
    ("02_pruning_how_much", "check_1", [0.875, 7 / 8, 1 - 1 / 8], [0.5, 0.125, 87.5, 0.75, 7, "7/8"]),
    ("02_pruning_how_much", "check_2",
     [lambda a, n: sum(a[k] * n[k] for k in n) / sum(n.values()),
      lambda a, n: 1 - sum((1 - a[k]) * n[k] for k in a) / sum(n[k] for k in a)],
     [lambda a, n: sum(a.values()) / len(a),                                # every layer counts alike
      lambda a, n: sum(a[k] * n[k] for k in n),                             # a count
      lambda a, n: 1 - sum(a[k] * n[k] for k in n) / sum(n.values()),       # what stays
      lambda a, n: 100 * sum(a[k] * n[k] for k in n) / sum(n.values()),
      lambda a, n: sum(x * m for x, m in zip(a.values(), n.values())) / sum(n.values()),    # names ignored
      lambda a, n: sum(a[k] * n.pop(k) for k in list(a)) / 1000, 0.86]),
    ("02_pruning_how_much", "check_3",
     [lowest_go, lambda s, a: (s.flatten().argsort().argsort() >= round(a * s.numel())).view_as(s)],
     [lambda s, a: s > s.flatten().sort().values[min(s.numel() - 1, round(a * s.numel()))],      # all ties go
      lambda s, a: ~lowest_go(s, a),                                        # what goes
      lambda s, a: lowest_go(-s, a),                                        # the highest
      lambda s, a: lowest_go(s, min(1, a + 1 / s.numel())),                 # one too many
      lambda s, a: lowest_go(s, a).float(), lambda s, a: lowest_go(s, a).flatten(),
      lambda s, a: lowest_go(s.zero_(), a)]),
    ("02_pruning_how_much", "check_4", ["global", "".join(["glo", "bal"])], ["from the scan", "equal in each layer", 0.96, "Global"]),
    ("02_pruning_how_much", "check_5",
     [lambda w, x, k: (change(w, x, k, w.abs()), change(w, x, k, w.abs() * rms(x))),
      lambda w, x, k: tuple(float((F.linear(x, w) - F.linear(x, w * lowest_go(s, k / w.numel()))).pow(2).mean())
                            for s in (w**2, w**2 * (x**2).sum(0)))],
     [lambda w, x, k: (change(w, x, k, w.abs() * rms(x)), change(w, x, k, w.abs())),    # the other way round
      lambda w, x, k: (change(w, x, k, w), change(w, x, k, w * rms(x))),                # magnitude forgotten
      lambda w, x, k: (change(w, x, k, w.abs()), change(w, x, k, w.abs() * x.square().mean().sqrt())),  # one rms for all inputs
      lambda w, x, k: (change(w, x, k, w.abs()), change(w, x, k, rms(x).expand_as(w) + w.abs() * 0)),     # the weight forgotten
      lambda w, x, k: (change(w, x, k, -w.abs()), change(w, x, k, -w.abs() * rms(x))),  # the highest go
      lambda w, x, k: (change(w, x, k, w.abs()), change(w, x, k + 1, w.abs() * rms(x))),        # not the same number
      lambda w, x, k: (change(w, x, k, w.abs()) ** 0.5, change(w, x, k, w.abs() * rms(x)) ** 0.5),
      lambda w, x, k: tuple(float(s.flatten().sort().values[:k].square().sum()) for s in (w.abs(), w.abs() * rms(x))),  # scores, not outputs
      lambda w, x, k: tuple(float((w * ~lowest_go(s, k / w.numel())).square().mean()) for s in (w.abs(), w.abs() * rms(x))),
      lambda w, x, k: [change(w, x, k, w.abs()), change(w, x, k, w.abs() * rms(x))],
      lambda w, x, k: (change(w, x, k, w.abs_()), change(w, x, k, w * rms(x))), (0.1, 0.01)]),
    ("02_pruning_how_much", "check_6",
     [shares, lambda layers, a: shares([w * w for w in layers], a)],
     [lambda layers, a: [a for _ in layers],                                # the same from each
      lambda layers, a: shares(layers, a, size=lambda w: w),                # signed
      lambda layers, a: shares(layers, 1 - a), lambda layers, a: [1 - share for share in shares(layers, a)],
      lambda layers, a: shares([w / w.abs().max() for w in layers], a),     # relative to each layer
      lambda layers, a: [share * w.numel() for share, w in zip(shares(layers, a), layers)],         # a number, not a fraction
      lambda layers, a: [share * w.numel() / sum(v.numel() for v in layers) for share, w in zip(shares(layers, a), layers)],
      lambda layers, a: shares(layers, a, of=torch.mean),                   # the threshold is a mean of the layers' thresholds
      lambda layers, a: shares([w.abs_() for w in layers], a), lambda layers, a: sum(shares(layers, a)) / len(layers), [0.9, 0.5]]),
    ("02_pruning_removal", "check_1", [31 / 32, 0.96875, 1 - 1 / 32], [0.5, 1 / 32, 96.875, 0.875, 0.984375]),
    ("02_pruning_removal", "check_2",
     [lambda s, c, v, x: [sum(v[i] * x[c[i]] for i in range(s[r], s[r + 1])) for r in range(len(s) - 1)],
      lambda s, c, v, x: [sum(w * x[j] for w, j in zip(v[a:b], c[a:b])) for a, b in zip(s[:-1], s[1:])]],
     [lambda s, c, v, x: [sum(v[i] * x[i] for i in range(a, b)) for a, b in zip(s, s[1:])],    # columns forgotten
      lambda s, c, v, x: [sum(v[i] * x[c[i]] for i in range(a, b - 1)) for a, b in zip(s, s[1:])],      # off by one
      lambda s, c, v, x: [sum(v[i] * x[c[i]] for i in range(a, b)) for a, b in zip(s, s[1:]) if a < b],  # empty rows dropped
      lambda s, c, v, x: [sum(v[i] for i in range(a, b)) for a, b in zip(s, s[1:])],
      lambda s, c, v, x: [4.0, 13.0, 0, 15.0], [4.0, 13.0, 0, 15.0]]),
    ("02_pruning_removal", "check_3",
     [lambda keep, h: [c * h * h + i for c in keep for i in range(h * h)],
      lambda keep, h: [i for c in keep for i in range(c * h**2, (c + 1) * h**2)]],
     [lambda keep, h: [c * h + i for c in keep for i in range(h)],          # a side instead of an area
      lambda keep, h: keep,                                                 # as if nothing were flattened
      lambda keep, h: [c + i * 4 for c in keep for i in range(h * h)],      # pixel after pixel
      lambda keep, h: [c * h * h + i + 1 for c in keep for i in range(h * h)],
      lambda keep, h: [0, 1, 2, 3, 8, 9, 10, 11],
      lambda keep, h: [keep.pop(0) * 0 for _ in range(len(keep))]]),
    ("02_pruning_removal", "check_4", [lambda a: (1 - a) ** 2, lambda a: 1 - 2 * a + a * a],
     [lambda a: 1 - a, lambda a: a**2, lambda a: 1 - a**2, lambda a: 100 * (1 - a) ** 2, lambda a: (1 - a) ** 3, 0.25]),
    ("02_pruning_removal", "check_6",
     [fast_sparsity, lambda a, b, c, n: None if a * n <= c else max(0.0, (b * n - a * n + c) / (b * n))],
     [lambda a, b, c, n: max(0.0, 1 - a / b),                               # the rows are free
      lambda a, b, c, n: 1 - (a - c / n) / b if a > c / n else None,        # below 0
      lambda a, b, c, n: max(0.0, 1 - (a - c / n) / b),                     # never, called 1
      lambda a, b, c, n: max(0.0, 1 - (a - c) / b) if a > c else None,      # one weight's price for a row
      lambda a, b, c, n: max(0.0, 1 - (a - c / n) / b) if a >= c / n else None,     # an empty row as fast is not faster
      lambda a, b, c, n: max(0.0, (a - c / n) / b) if a > c / n else None,  # what is left
      lambda a, b, c, n: 100 * (fast_sparsity(a, b, c, n) or 0.0), 0.90625]),
    ("02_pruning_removal", "check_7", [keep, lambda times, n: keep(dict(reversed(times.items())), n)],
     [lambda times, n: n, lambda times, n: min((m for m in times if m >= n), default=None),        # the fewest operations
      lambda times, n: keep(times, 0), lambda times, n: keep(times, n, enough=lambda m, n: m > n), lambda times, n: keep(times, n, tie=min),
      lambda times, n: max((m for m in times if m >= n and m % 8 == 0), default=None),              # a rule in place of a measurement
      lambda times, n: keep(times, n, none=max), lambda times, n: max((m for m in times if m >= n), default=None),
      lambda times, n: min((times[m] for m in times if m >= n), default=None), keep_in_place, 32]),
    ("02_pruning_removal", "check_5", ["CNN 8-16 from scratch", "CNN 8-16" + " from scratch"],
     ["CNN 32-64", "ruined", "half removed", "3/4 removed", 21_600]),
    ("02_pruning_patterns", "check_1",
     [lambda n, m, b: n / m * (1 + math.ceil(math.log2(m)) / b),
      lambda n, m, b: n * (b + (m - 1).bit_length()) / (m * b)],
     [lambda n, m, b: n / m,                                                # places are free
      lambda n, m, b: (m - n) * (b + math.ceil(math.log2(m))) / (m * b),    # what goes; differs for 1:4
      lambda n, m, b: n / m + 1 / b,                                        # true for 2:4 only
      lambda n, m, b: n * (b + math.log2(m)) / (m * b),                     # parts of a bit; differs for 3:6
      lambda n, m, b: n * (b + m) / (m * b), lambda n, m, b: n * (b + math.ceil(math.log2(m))), 0.53125]),
    ("02_pruning_patterns", "check_2",
     [n_of_m, lambda w, n, m: (w.view(-1, m).abs().argsort(1).argsort(1) >= m - n).view_as(w)],
     [lambda w, n, m: ~n_of_m(w, n, m), lambda w, n, m: n_of_m(w, n, m).float(), lambda w, n, m: n_of_m(w, 2, 4),
      lambda w, n, m: n_of_m(w, n, m).view(-1, m), lambda w, n, m: w * n_of_m(w, n, m),
      lambda w, n, m: n_of_m(w.relu(), n, m),                               # magnitude forgotten
      lambda w, n, m: n_of_m(w.t().contiguous(), n, m).t().contiguous().view_as(w),     # along the outputs
      lambda w, n, m: n_of_m(w.zero_(), n, m)]),
    ("02_pruning_patterns", "check_3",
     [lambda i, n, m: math.comb(m, n) ** (i // m), lambda i, n, m: math.prod(math.comb(m, n) for _ in range(0, i, m))],
     [lambda i, n, m: math.comb(i, i * n // m), lambda i, n, m: math.comb(m, n) * (i // m), lambda i, n, m: math.comb(m, n),
      lambda i, n, m: 2**i, lambda i, n, m: math.perm(m, n) ** (i // m), lambda i, n, m: m**n, 36]),
    ("02_pruning_patterns", "check_4",
     [lambda first, last: first.sign() * first.std() * (last != 0),
      lambda first, last: torch.where(last == 0, 0.0, torch.where(first > 0, first.std(), -first.std()))],
     [lambda first, last: last.sign() * first.std(),                        # signs after training
      lambda first, last: first.sign() * first.std(),                       # the mask forgotten
      lambda first, last: first * (last != 0),                              # plain rewinding
      lambda first, last: first.sign() * last.std() * (last != 0), lambda first, last: first.sign() * (last != 0),
      lambda first, last: first.sign() * first.std() * (last == 0), lambda first, last: first.sign_() * 0.4 * (last != 0)]),
    ("02_pruning_patterns", "check_5", ["ticket", "".join(["tick", "et"])],
     ["other zeros", "dense", "trained weights", "new weights", 0.952]),
    ("02_pruning_patterns", "check_6",
     [lambda low, high, c: "shown" if high <= c else "refuted" if low > c else "undecided",
      lambda low, high, c: {(True, True): "shown", (False, False): "refuted"}.get((low <= c, high <= c), "undecided")],
     [lambda low, high, c: "shown" if high < 1 else "refuted" if low > 1 else "undecided",      # faster at all, but not as claimed
      lambda low, high, c: "shown" if (low + high) / 2 <= c else "refuted",                     # the point alone
      lambda low, high, c: "shown" if low <= c else "refuted",                                  # the best case is enough
      lambda low, high, c: "shown" if high < c else "refuted" if low > c else "undecided",      # a tie agrees
      lambda low, high, c: "shown" if high <= c else "refuted" if low >= c else "undecided",
      lambda low, high, c: "shown" if low >= 1 / c else "refuted" if high < 1 / c else "undecided",     # dense over pattern
      lambda low, high, c: "refuted" if high <= c else "shown" if low > c else "undecided",
      lambda low, high, c: "shown" if high <= 0.5 else "refuted" if low > 0.5 else "undecided", "refuted"]),
    ("02_pruning_patterns", "check_7",
     [lambda a, b: verdict(mean_over_runs([a[s] - b[s] for s in a if s in b])),
      lambda a, b: (lambda t: "undecided" if t.pvalue > 0.05 else "better" if t.statistic > 0 else "worse")(
          scipy.stats.ttest_rel(*zip(*((a[s], b[s]) for s in {*a} & {*b}))))],
     [unpaired,                                                     # two intervals side by side
      lambda a, b: verdict(mean_over_runs([x - y for x, y in zip(a.values(), b.values())])),    # in the order they stand in
      lambda a, b: verdict(mean_over_runs([b[s] - a[s] for s in a if s in b])),
      lambda a, b: verdict(mean_over_runs([a.get(s, 0) - b.get(s, 0) for s in {*a} | {*b}])),   # a seed of one side only
      lambda a, b: "better" if sum(a[s] - b[s] for s in a if s in b) > 0 else "worse",          # the mean alone
      lambda a, b: "better" if sum(a[s] > b[s] for s in a if s in b) > len(a) / 2 else "worse",     # seeds won
      lambda a, b: "better" if max(a.values()) > max(b.values()) else "worse", "better"]),
    ("05_energy", "check_1",
     [lambda a, b, low, high: (low * a / (high * b), high * a / (low * b)), lambda a, b, low, high: (a / b * low / high, a / b / (low / high))],
     [lambda a, b, low, high: (a / b, a / b),                       # equal power supposed
      lambda a, b, low, high: (high * a / (low * b), low * a / (high * b)),     # the wrong way round
      lambda a, b, low, high: (low * b / (high * a), high * b / (low * a)),     # b over a
      lambda a, b, low, high: (low * a / (low * b), high * a / (high * b)),     # the watts cancel, so they say
      lambda a, b, low, high: (low * a - high * b, high * a - low * b), (0.2, 1.2)]),
    ("05_energy", "check_2",
     [lambda i, o, b: i * o * (4.6 + 4 * 243.75 / b), lambda i, o, b: 4.6 * i * o + 975.0 * i * o / b],
     [lambda i, o, b: i * o * (4.6 + 4 * 243.75),                   # the batch is forgotten
      lambda i, o, b: i * o * (4.6 + 243.75 / b),                   # a weight of one byte
      lambda i, o, b: i * o * (4.6 / b + 4 * 243.75 / b),           # arithmetic is not shared
      lambda i, o, b: i * o * (3.7 + 4 * 243.75 / b),               # the addition is forgotten
      lambda i, o, b: (i + o) * (4.6 + 4 * 243.75 / b),
      lambda i, o, b: b * i * o * 4.6 + 4 * i * o * 243.75]),       # the whole batch, not one inference
    ("05_energy", "check_3", [lambda byte, mac: 4 * byte / mac, lambda byte, mac: byte / (mac / 4)],
     [lambda byte, mac: byte / mac, lambda byte, mac: mac / (4 * byte), lambda byte, mac: 4 * byte * mac,
      lambda byte, mac: 4 * byte / mac + 1, lambda byte, mac: 212, 212]),
    ("05_energy", "check_4", [(True, False, False, True, False), tuple(n in (0, 3) for n in range(5))],
     [(True, True, False, True, False), (False, False, False, True, False), (True, False, False, True, True),
      (True, False, True, True, False), (True, False, False, True), (1, 4), True]),
    ("05_energy", "check_5",
     [lambda tf, pf, ts, ps, w: (pf - w) * tf < (ps - w) * ts,
      lambda tf, pf, ts, ps, w: pf * tf + w * (9 - tf) < ps * ts + w * (9 - ts)],
     [lambda tf, pf, ts, ps, w: pf * tf < ps * ts,                  # gross only
      lambda tf, pf, ts, ps, w: (pf - w) * tf > (ps - w) * ts,
      lambda tf, pf, ts, ps, w: tf < ts,                            # time only
      lambda tf, pf, ts, ps, w: pf < ps,
      lambda tf, pf, ts, ps, w: pf * tf + w * tf < ps * ts + w * ts, True]),
    ("05_energy_compressed", "check_1",
     [lambda low, high, m: ("equivalent" if 1 / (1 + m) <= low and high <= 1 + m else
                            "different" if high < 1 / (1 + m) or low > 1 + m else "undecided"),
      lambda low, high, m: ("equivalent" if max(high, 1 / low) <= 1 + m else
                            "different" if low > 1 + m or 1 / high > 1 + m else "undecided")],
     [lambda low, high, m: "equivalent" if low <= 1 <= high else "different",           # shows nothing, and is called equal
      lambda low, high, m: ("equivalent" if 1 - m <= low and high <= 1 + m else
                            "different" if high < 1 - m or low > 1 + m else "undecided"),       # 1 - m
      lambda low, high, m: "equivalent" if 1 / (1 + m) <= low and high <= 1 + m else "different",
      lambda low, high, m: ("equivalent" if low <= 1 + m and high >= 1 / (1 + m) else "different"),     # a part of it
      lambda low, high, m: ("equivalent" if 1 / (1 + m) <= low and high <= 1 + m else
                            "different" if high < 1 or low > 1 else "undecided"),
      lambda low, high, m: "undecided", "equivalent"]),
    ("05_energy_compressed", "check_2",
     [lambda n, w, a, z: (1.0, ((1 - z) * (5 * n + 200 * w) + 10 * a) / (5 * n + 200 * w + 10 * a)),
      lambda n, w, a, z: (1, 1 - z * (n + 40 * w) / (n + 40 * w + 2 * a))],
     [lambda n, w, a, z: (1.0, 1 - z),                                                  # activations forgotten
      lambda n, w, a, z: (1 - z, 1 - z),
      lambda n, w, a, z: (((1 - z) * (5 * n + 200 * w) + 10 * a) / (5 * n + 200 * w + 10 * a), 1.0),    # the wrong way round
      lambda n, w, a, z: (1.0, ((1 - z) * 5 * n + 200 * w + 10 * a) / (5 * n + 200 * w + 10 * a)),      # zeros are still read
      lambda n, w, a, z: (1.0, (5 * n + (1 - z) * 200 * w + 10 * a) / (5 * n + 200 * w + 10 * a)),
      lambda n, w, a, z: (1.0, (z * (5 * n + 200 * w) + 10 * a) / (5 * n + 200 * w + 10 * a)),
      lambda n, w, a, z: ((1 - z) * (5 * n + 200 * w) + 10 * a) / (5 * n + 200 * w + 10 * a), (1.0, 0.1)]),
    ("05_energy_compressed", "check_3", [one_left_out, lambda a, b: tuple(f(float(spearman(np.delete(a, i), np.delete(b, i)))
                                                                       for i in range(len(a))) for f in (min, max))],
     [lambda a, b: (float(spearman(a, b)),) * 2,                    # nothing is left out
      lambda a, b: one_left_out(a, b)[::-1],
      lambda a, b: one_left_out(a[:-1], b[:-1]),                    # the last one is never there
      lambda a, b: list(one_left_out(a, b)),
      lambda a, b: tuple(f(float(spearman(np.delete(a, i), b[:-1])) for i in range(len(a))) for f in (min, max)),   # only in one list
      lambda a, b: one_left_out(a, b)[0], (0.8, 1.0)]),
    ("05_energy_compressed", "check_4",
     [lambda options, n: min(options, key=lambda name: options[name][0] + n * options[name][1]),
      lambda options, n: sorted((once + n * each, name) for name, (once, each) in options.items())[0][1]],
     [lambda options, n: min(options, key=lambda name: options[name][1]),               # what came before is forgotten
      lambda options, n: min(options, key=lambda name: options[name][0]),
      lambda options, n: min(options, key=lambda name: options[name][0] * n + options[name][1]),
      lambda options, n: max(options, key=lambda name: options[name][0] + n * options[name][1]),
      lambda options, n: min(once + n * each for once, each in options.values()),       # joules, and no name
      lambda options, n: "thin", "thin"]),
    ("05_energy_compressed", "check_5",
     [lambda ram, core, stretch: (ram * stretch + core) / (ram + core),
      lambda ram, core, stretch: 1 + (stretch - 1) * ram / (ram + core)],
     [lambda ram, core, stretch: stretch,                                               # as if all of it grew
      lambda ram, core, stretch: (ram + core * stretch) / (ram + core),
      lambda ram, core, stretch: ram * stretch / (ram + core),
      lambda ram, core, stretch: (ram * stretch + core) / ram,
      lambda ram, core, stretch: (ram * stretch + core) - (ram + core),
      lambda ram, core, stretch: 1.0, 2.0]),
    ("05_real_joules", "check_1",
     [lambda b, a: (a - b) % 2**32 * 2**-14, lambda b, a: (a - b + (2**32 if a < b else 0)) / 16_384,
      lambda b, a: ((a - b) & 0xFFFFFFFF) / 2**14],
     [lambda b, a: (a - b) * 2**-14,                                # the tool's own way
      lambda b, a: abs(a - b) * 2**-14,
      lambda b, a: max(a - b, 0) * 2**-14,                          # throws the window away
      lambda b, a: (a - b + 2**32) * 2**-14,                        # always one register
      lambda b, a: (a - b) % (2**32 - 1) * 2**-14,                  # off by one
      lambda b, a: (a - b) % 2**32,                                 # steps, not joules
      lambda b, a: (a - b) % 2**31 * 2**-14]),
    ("05_real_joules", "check_2",
     [lambda j, a, w: min(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: sorted((x, y) for x, y in zip(j, a) if y >= w)[0][0]],
     [lambda j, a, w: min(j),                                       # whatever the accuracy
      lambda j, a, w: min((x for x, y in zip(j, a) if y > w), default=0.0),     # a tie is enough
      lambda j, a, w: j[a.index(min(y for y in a if y >= w))],      # the least accurate one that is enough
      lambda j, a, w: max(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: next(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: j.sort() or min(j)]),
    ("05_real_joules", "check_3", [0.5, 1 / 2, torch.tensor(0.5)],
     [0.3,                                                          # the best of the ways, another batch or network
      0.65,                                                         # the worst of the ways
      0.0, 50, "0.5", lambda rows: 0.5]),
    ("05_real_joules", "check_4",
     [flip, lambda e8, t8, e32, t32: flip(*map(np.array, (e8, t8, e32, t32)), mean=lambda r: np.prod(r) ** (1 / len(r)))],
     [lambda e8, t8, e32, t32: 0.0,                                 # gross
      lambda e8, t8, e32, t32: flip([np.median(e8)], [np.median(t8)], [np.median(e32)], [np.median(t32)]),  # of no network
      lambda e8, t8, e32, t32: flip(e8, t8, e32, t32, mean=np.median),
      lambda e8, t8, e32, t32: flip(e8, t8, e32, t32, mean=max),    # the last network to flip
      lambda e8, t8, e32, t32: flip([sum(e8)], [sum(t8)], [sum(e32)], [sum(t32)]),      # the totals
      lambda e8, t8, e32, t32: flip(e8, t8, e32, t32) - 0.1,        # still above 1
      lambda e8, t8, e32, t32: flip(e32, t32, e8, t8), 3.8]),       # upside down
    ("05_real_joules", "check_5", [0.2, 1 / 5, torch.tensor(0.2)], [0.05, 0.1, 0.3, 200.0, 70.0, "0.2"]),
    ("05_predicting_joules", "check_1",
     [lambda x, y: 1 - 6 * sum((a - b) ** 2 for a, b in zip(ranked(x), ranked(y))) / (len(x) * (len(x) ** 2 - 1)),
      lambda x, y: float(np.corrcoef(ranked(x), ranked(y))[0, 1]), lambda x, y: spearman(x, y)],
     [lambda x, y: float(np.corrcoef(x, y)[0, 1]),                 # of the amounts, not of the ranks
      lambda x, y: 1 - sum((a - b) ** 2 for a, b in zip(ranked(x), ranked(y))) / (len(x) * (len(x) ** 2 - 1)),
      lambda x, y: 6 * sum((a - b) ** 2 for a, b in zip(ranked(x), ranked(y))) / (len(x) * (len(x) ** 2 - 1)),
      lambda x, y: 1 - 6 * sum((a - b) ** 2 for a, b in zip(ranked(x), ranked(y))) / len(x) ** 3,
      lambda x, y: 1 - 6 * sum(abs(a - b) for a, b in zip(ranked(x), ranked(y))) / (len(x) * (len(x) ** 2 - 1)),
      lambda x, y: 1 - 6 * sum((a - b) ** 2 for a, b in zip(sorted(x), sorted(y))) / (len(x) * (len(x) ** 2 - 1)),
      lambda x, y: x.sort() or 1.0, 1.0]),
    ("05_predicting_joules", "check_2",
     [lambda m, e, new_m, new_e: abs(sum(e) / sum(m) * new_m / new_e - 1),
      lambda m, e, new_m, new_e: abs(sum(e) / sum(m) * new_m - new_e) / new_e],
     [lambda m, e, new_m, new_e: sum(e) / sum(m) * new_m / new_e - 1,           # with its sign
      lambda m, e, new_m, new_e: abs(sum(e) / sum(m) * new_m - new_e),          # joules, not relative
      lambda m, e, new_m, new_e: abs(new_e / (sum(e) / sum(m) * new_m) - 1),    # relative to the prediction
      lambda m, e, new_m, new_e: abs((sum(e) + new_e) / (sum(m) + new_m) * new_m / new_e - 1),      # it was seen
      lambda m, e, new_m, new_e: abs(sum(x / y for x, y in zip(e, m)) / len(m) * new_m / new_e - 1),
      lambda m, e, new_m, new_e: abs(sum(m) / sum(e) * new_m / new_e - 1),
      lambda m, e, new_m, new_e: m.append(new_m) or 0.0]),
    ("05_predicting_joules", "check_3",
     [lambda f, s: s + (1 - s) * f, lambda f, s: 1 - (1 - f) * (1 - s), lambda f, s: f + s - f * s],
     [lambda f, s: f,                                               # in proportion
      lambda f, s: f + s,                                           # the whole, not only the rest, shrinks
      lambda f, s: (1 - s) * f,                                     # the constant is forgotten
      lambda f, s: f + (1 - f) * (1 - s),
      lambda f, s: 1 - (s + (1 - s) * f),                           # what is saved, not what is left
      lambda f, s: 0.625, 0.625]),
    ("05_predicting_joules", "check_4", [("Krai", 1.25), ("Krai", 0.0135 / (0.018 * 1.8 / 3)), ("Krai", 1.2501)],
     [("Skymizer", 0.018 / 0.0135),                                 # as published
      ("Krai", 0.018 / 0.0135), ("Krai", 0.8),                      # upside down
      ("Skymizer", 1.25), ("Krai", 0.0135 / (0.018 * (1.8 / 3) ** 2)), "Krai", 1.25, ["Krai", 1.25]]),
    ("05_predicting_joules", "check_5", [("on chip", 1000.0), ("on chip", 0.0006 / (0.3e-6 + 0.3e-6)), ("on chip", 1001.0)],
     [("DRAM", 0.0006 / (0.3e-6 + 8e-9 * 243.75 * 1e3 + 0.2e-6)),   # the chip has none
      ("DRAM", 1000.0), ("on chip", 0.0006 / 0.4e-6),               # the activations are forgotten
      ("on chip", 2000.0),                                          # arithmetic only
      ("on chip", 1 / 1000), ("on chip", 1e-9), 1000.0, ["on chip", 1000.0]]),
]
for path in sorted(Path(__file__).parent.glob("answers_*.py")):      # those of other chapters
    answers = importlib.import_module(path.stem)
    EXERCISES += answers.EXERCISES
    RESULTS |= answers.RESULTS
CASES = [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in EXERCISES]


@functools.cache
def notebook(name):
    return nbformat.read(BOOK / f"{name}.ipynb", as_version=4)


def cells(name, tag):
    return [c.source for c in notebook(name).cells if c.cell_type == "code" and tag in c.metadata.get("tags", [])]


def checker(name, function, answer_name=None):
    """Run the imports and the checker's cell of a notebook with `...` as answer; return the checker."""
    source, = [c for c in cells(name, "checker") if f"def {function}(" in c]
    answers = {line.split(" = ")[0]: ... for cell in cells(name, "answer") for line in cell.splitlines()}
    namespace = {**RESULTS.get(name, {}), **answers}
    imports = [node for node in ast.parse(cells(name, "imports")[0]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), name, "exec"), namespace)
    exec(source, namespace)
    return namespace[function]


@pytest.mark.parametrize("name, function, right, wrong", CASES)
def test_before_an_answer_the_checker_says_so_and_raises_nothing(name, function, right, wrong, capsys):
    checker(name, function)
    assert capsys.readouterr().out == "not attempted yet\n"


@pytest.mark.parametrize("name, function, right, wrong", CASES)
def test_right_answers_pass(name, function, right, wrong, capsys):
    check = checker(name, function)
    assert len(right) >= 2
    for answer in right:
        check(answer)
    assert capsys.readouterr().out.count("correct\n") == len(right)


@pytest.mark.parametrize("name, function, right, wrong", CASES)
def test_planted_wrong_answers_are_caught_with_a_hint(name, function, right, wrong):
    check = checker(name, function)
    assert len(wrong) >= 3
    for answer in wrong:
        with pytest.raises(WrongAnswer, match="Hint: .{10}"):
            check(answer)


def test_every_checker_of_the_book_is_tried_here():
    tried = {(name, function) for name, function, _, _ in EXERCISES}
    found = {(path.stem, line.split("(")[0].removeprefix("def "))
             for path in BOOK.glob("*.ipynb") for cell in cells(path.stem, "checker")
             for line in cell.splitlines() if line.startswith("def check")}
    assert found == tried


@pytest.mark.parametrize("name", sorted({case[0] for case in EXERCISES}))
def test_every_answer_has_a_checker_and_a_solution(name):
    solved = [cell for cell in cells(name, "solution") if "check_" in cell]        # one may have a sequel
    assert len(cells(name, "answer")) == len(cells(name, "checker")) == len(solved)
