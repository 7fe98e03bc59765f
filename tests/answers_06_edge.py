"""Right and planted wrong answers to the exercises of book/06_edge.ipynb, for test_exercises.py; see answers_quantization.py."""
import numpy as np


def missed(arrived, ended, deadline):
    return 1 - np.mean(ended - arrived <= deadline)


def missed_in_place(arrived, ended, deadline):
    ended[np.isnan(ended)] = np.inf
    return float(np.mean(ended - arrived > deadline))


def joules(busy_ms, period_ms, watts):
    return 3600 * watts * min(1, busy_ms / period_ms)


TAKES = {"dense": 0.006, "student": 0.0006}
RESULTS = {"06_edge": {"takes": TAKES}}

EXERCISES = [
    ("06_edge", "check_1", [1012, 501 * 12 - 500 * 10, 1012.0], [1000, 1010, 500 * 12 - 499 * 10, 22, 6012, "1012"]),
    ("06_edge", "check_2", [missed, lambda a, e, d: float((np.isnan(e) | (e - a > d)).mean())],
     [lambda a, e, d: float((e - a > d).mean()),                                # dropped ones forgotten
      lambda a, e, d: float(1 - (e - a < d).mean()),                            # the deadline itself
      lambda a, e, d: float(np.nanmean(e - a > d)), lambda a, e, d: float(1 - (e <= d).mean()),
      lambda a, e, d: 100 * missed(a, e, d), missed_in_place]),
    ("06_edge", "check_3", [joules, lambda b, p, w: w * 60 * 60 * (b if b < p else p) / p],
     [lambda b, p, w: 3600 * w * b / p, lambda b, p, w: 60 * w * min(1, b / p), lambda b, p, w: 3600 * w * min(1, p / b),
      lambda b, p, w: w * min(1, b / p), 2160.0]),
    ("06_edge", "check_4", [{"dense": 10.0, "student": 1.0}, {name: 1000 * s / 0.6 for name, s in TAKES.items()}],
     [{"dense": 0.01, "student": 0.001}, {"dense": 3.6, "student": 0.36}, {"dense": 1.0, "student": 10.0}, {"dense": 10.0}, 10.0]),
]
