"""Right and planted wrong answers to the exercises of book/06_cloud.ipynb, for test_exercises.py; see answers_quantization.py."""
import json
import math

from course_lib.intervals import Estimate


def batches(arrivals, wait, most, *, restart=False, strict=False, at_most=0):
    """Sizes of batches, with each of its rules to be broken."""
    sizes, clock = [], None
    for t in arrivals:
        late = clock is not None and (t - clock >= wait if strict else t - clock > wait)
        if clock is None or late or sizes[-1] >= most + at_most:
            sizes, clock = [*sizes, 0], t
        sizes[-1] += 1
        clock = t if restart else clock
    return sizes


def emptying(arrivals, wait, most):
    sizes = batches(arrivals, wait, most)
    arrivals.clear()
    return sizes


def status(body, most, *, limit=100, number=(int, float), finite=True, least=1, order=("size", "JSON")):
    """The status of a list of numbers, with each of its rules to be broken."""
    if len(body) > limit and order[0] == "size":
        return 413
    try:
        values = json.loads(body)
    except ValueError:
        return 400
    if len(body) > limit:
        return 413
    ok = isinstance(values, list) and least <= len(values) <= most
    return 200 if ok and all(type(v) in number and (not finite or math.isfinite(v)) for v in values) else 422


def always_422(body, most):
    found = status(body, most)
    return 422 if found == 400 else found


RESULTS = {"06_cloud": {
    "BODIES": [b"[1, 2.5]", b"[]", b"[1, 2, 3]", b"7", b"{", b"", b"[NaN]", b'["1"]', b"[true]", b"[null]", b"{}", b"[[1]]",
               b"\xff\xfe", b"[1e999]", b"[-1]" + b" " * 96, b"[-1]" + b" " * 97, b"x" * 101],
    "raw_bodies": Estimate(0.21, 0.19, 0.24), "in_json": Estimate(0.90, 0.80, 0.95), "one": Estimate(0.85, 0.80, 0.97)}}

EXERCISES = [
    ("06_cloud", "check_1", [5 / 8, 0.5 / (1 - 1 / 5)], [1 / 2, 3 / 8, 4 / 5, 2 / 5, 8 / 5, "5 / 8"]),
    ("06_cloud", "check_2", [batches, lambda *a: [int(n) for n in batches(*a)]],
     [lambda *a: batches(*a, restart=True),             # the clock starts again with every request
      lambda *a: batches(*a, strict=True),              # who comes at the last moment is too late
      lambda *a: batches(*a, at_most=1),                # one too many
      lambda arrivals, wait, most: batches(arrivals, wait, 10**9),
      lambda arrivals, wait, most: batches(arrivals, 10**9, most),
      lambda *a: batches(*a)[:-1],                      # the last batch is forgotten
      lambda *a: len(batches(*a)), emptying, [4, 1]]),
    ("06_cloud", "check_3", [status, lambda body, most: int(status(body, most))],
     [lambda *a: status(*a, order=("JSON", "size")),    # reads what is too large
      lambda *a: status(*a, limit=99), lambda *a: status(*a, limit=101), lambda *a: status(*a, finite=False),
      lambda *a: status(*a, number=(int, float, bool)), lambda *a: status(*a, number=(float,)), lambda *a: status(*a, least=0),
      lambda body, most: status(body, most + 1), lambda body, most: status(body, most - 1), always_422,
      lambda body, most: str(status(body, most)), 422]),
    ("06_cloud", "check_4", [("raw", False), tuple(["raw", False])],
     [("compressed", False), ("raw", True), ("compressed", True), "raw", (False, "raw")]),
]
