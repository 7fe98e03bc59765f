"""Right and planted wrong answers to the exercises of book/06_mobile.ipynb, for test_exercises.py; see answers_quantization.py."""
import math

import numpy as np
import pandas as pd


def peak(tensors, *, last_step=lambda last: last, combine=sum, steps=None):
    """The most bytes in one step, with each of its parts to be broken."""
    steps = steps or (lambda tensors: range(max((last for _, last, _ in tensors), default=0) + 1))
    return max((combine(size for first, last, size in tensors if first <= step <= last_step(last)) for step in steps(tensors)),
               default=0)


def peak_in_place(tensors):
    found = peak(tensors)
    tensors.clear()
    return found


def neighbours(tensors):
    """A chain, whatever the lifetimes say."""
    sizes = [size for _, _, size in tensors]
    return max((a + b for a, b in zip(sizes, sizes[1:])), default=0)


def gains(dense, small, floor):
    return dense / small, (dense - floor) / (small - floor) if small > floor else None


def same(wanted, got, tolerance, *, scale=lambda wanted: np.abs(wanted).max(), distance=lambda wanted, got: np.abs(wanted - got),
         all_of=np.all, judged=lambda got: ~np.isnan(got).any(axis=1)):
    """Whether a file does the same, and how often it names the same class, with each of their parts to be broken."""
    close = all_of(distance(wanted, got) <= tolerance * scale(wanted))
    return bool(close), float(((wanted.argmax(axis=1) == got.argmax(axis=1)) & judged(got)).mean())


def by_loop(wanted, got, tolerance):
    bound, close, agree = tolerance * max(abs(z) for row in wanted for z in row), True, 0
    for a, b in zip(wanted.tolist(), got.tolist()):
        close &= all(abs(x - y) <= bound for x, y in zip(a, b))
        agree += not any(map(math.isnan, b)) and a.index(max(a)) == b.index(max(b))
    return close, agree / len(wanted)


def files(calls, decided=("network", "images", "size", "kernels")):
    return len({tuple(call[key] for key in decided) for call in calls})


def files_in_place(calls):
    found = files(calls)
    for call in calls:
        call.pop("label", None)
    return found


RESULTS = {"06_mobile": {
    "choices": pd.DataFrame({
        "dense, float": {"bytes": 143_528, "accuracy": 0.970, "time": 1.16},
        "dense, int8": {"bytes": 42_536, "accuracy": 0.975, "time": 0.66},
        "student, float": {"bytes": 34_728, "accuracy": 0.956, "time": 0.30},
        "student, int8": {"bytes": 16_040, "accuracy": 0.954, "time": 0.27},
        "huge": {"bytes": 500_000, "accuracy": 0.976, "time": 0.1}}).T}}

EXERCISES = [
    ("06_mobile", "check_1", [35, 35.0], [34, 36, 9, 0.25, 31, "35"]),
    ("06_mobile", "check_2", [peak, lambda tensors: peak(sorted(tensors))],
     [lambda tensors: sum(size for _, _, size in tensors),                          # all at once
      lambda tensors: max((size for _, _, size in tensors), default=0),             # the largest alone
      lambda tensors: peak(tensors, last_step=lambda last: last - 1),               # gone before it is read
      lambda tensors: peak(tensors, last_step=lambda last: last + 1),               # kept one step too long
      neighbours,
      lambda tensors: max(sum(size for first, last, size in tensors if first <= step <= last) for step, _, _ in tensors),
      peak_in_place, 180]),
    ("06_mobile", "check_3", [gains, lambda dense, small, floor: tuple(gains(dense, small, floor))],
     [lambda dense, small, floor: gains(dense, small, floor)[::-1],
      lambda dense, small, floor: (dense / small, (dense - floor) / (small - floor) if small >= floor + 1e-12 else 0.0),
      lambda dense, small, floor: (dense / small, (dense - floor) / small),         # the floor from one only
      lambda dense, small, floor: (dense / small, abs((dense - floor) / (small - floor or 1))),
      lambda dense, small, floor: (small / dense, gains(dense, small, floor)[1]),   # upside down
      lambda dense, small, floor: list(gains(dense, small, floor)), 3.75]),
    ("06_mobile", "check_4", ["student, float", ", ".join(["student", "float"])],
     ["student, int8", "dense, int8", "huge", "dense, float", 0.30]),
    ("06_mobile", "check_5", [files, lambda calls: len({(c["kernels"], c["size"], c["images"], c["network"]) for c in calls})],
     [len,                                                                          # one for each call
      lambda calls: len({str(sorted(c.items())) for c in calls}),                   # whatever differs
      lambda calls: files(calls, ("network",)), lambda calls: files(calls, ("network", "images", "size")),
      lambda calls: files(calls, ("network", "size", "kernels")), lambda calls: files(calls, ("network", "images", "kernels")),
      lambda calls: files(calls, ("network", "images", "size", "kernels", "threads")),
      lambda calls: max(1, files(calls)), lambda calls: {c["network"] for c in calls}, files_in_place, 2]),
    ("06_mobile", "check_6", [same, by_loop],
     [lambda *a: same(*a, scale=lambda wanted: np.abs(wanted)),                         # a bound of its own for each logit
      lambda *a: same(*a, scale=lambda wanted: np.abs(wanted).max(axis=1, keepdims=True)),        # for each image, for each class
      lambda *a: same(*a, scale=lambda wanted: np.abs(wanted).max(axis=0)), lambda wanted, got, t: (same(got, wanted, t)[0], same(wanted, got, t)[1]),
      lambda *a: same(*a, scale=lambda wanted: max(np.abs(wanted).max(), np.nanmax(np.abs(a[1])))),
      lambda *a: same(*a, scale=lambda wanted: 1.0), lambda *a: same(*a, scale=lambda wanted: wanted.max()),        # no magnitude
      lambda *a: same(*a, distance=lambda wanted, got: wanted - got), lambda *a: same(*a, all_of=np.mean),
      lambda *a: same(*a, distance=lambda wanted, got: np.nan_to_num(np.abs(wanted - got))),                        # a nan is no difference
      lambda *a: same(*a, judged=lambda got: np.full(len(got), True)), lambda *a: (same(*a)[0], 100 * same(*a)[1]),
      lambda *a: (same(*a)[0], int(same(*a)[1] * len(a[0]))), lambda *a: same(*a)[::-1], lambda *a: (True, 1.0), (True, 1.0)]),
]
