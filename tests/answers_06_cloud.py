"""Right and planted wrong answers to the exercises of book/06_cloud.ipynb, for test_exercises.py; see answers_quantization.py."""
import contextlib
import json
import math
from pathlib import Path

import nbformat
import numpy as np
from course_lib.intervals import Estimate


def shown(notebook, *names):
    """What the notebook's own cells define, to be used in its checkers: the cell of each name, run with NumPy."""
    sources = [c.source for c in nbformat.read(Path(__file__).parent.parent / "book" / f"{notebook}.ipynb", as_version=4).cells
               if c.cell_type == "code" and not c.metadata.get("tags")]
    namespace = {"np": np}
    for name in names:
        source, = [s for s in sources if any(line.startswith((f"def {name}(", f"class {name}:", f"{name} = ")) for line in s.splitlines())]
        exec(source, namespace)
    return namespace


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


def predictor(*, kind=lambda images: images.dtype == np.float32, many=len, alike=lambda images, shape: images.shape[1:] == shape,
              finite=lambda images: np.isfinite(images).all(), axis=1, error=ValueError):
    """A class of predictors, with each of its rules to be broken."""
    class Predictor:
        def __init__(self, scores_of, shape):
            self.scores_of, self.shape = scores_of, shape

        def predict(self, images):
            if not (kind(images) and many(images) and alike(images, self.shape) and finite(images)):
                raise error("refused")
            return self.scores_of(images).argmax(axis=axis)
    return Predictor


def whole(images):
    return True


def first_day(scores_of, shape):
    """A predictor that is no class, and refuses in one line."""
    def predict(images):
        if str(images.dtype) != "float32" or images.shape != (max(len(images), 1), *shape) or not np.all(abs(images) < np.inf):
            raise ValueError
        return np.argmax(scores_of(images), axis=-1)
    return type("Found", (), {"predict": staticmethod(predict)})


def in_finally(starts, question):
    servers = []
    try:
        for start in starts:
            servers += [start()]
        return [server.ask(question) for server in servers]
    finally:
        for server in servers:
            server.stop()


def in_stack(starts, question):
    def entered(start):
        server = start()
        stack.push(lambda *_: server.stop())
        return server

    with contextlib.ExitStack() as stack:
        return [server.ask(question) for server in list(map(entered, starts))]


def at_the_end(starts, question):
    servers = [start() for start in starts]
    answers = [server.ask(question) for server in servers]
    for server in servers:
        server.stop()
    return answers


def started_outside(starts, question):
    servers = [start() for start in starts]
    try:
        return [server.ask(question) for server in servers]
    finally:
        for server in servers:
            server.stop()


def no_interrupt(starts, question):
    servers = []
    try:
        for start in starts:
            servers += [start()]
        answers = [server.ask(question) for server in servers]
    except Exception:
        for server in servers:
            server.stop()
        raise
    for server in servers:
        server.stop()
    return answers


def swallowed(starts, question):
    try:
        return in_finally(starts, question)
    except Exception:
        return []


def first_only(starts, question):
    servers = []
    try:
        servers += [start() for start in starts]
        return [server.ask(question) for server in servers]
    finally:
        for server in servers[:1]:
            server.stop()


def stopped_too_soon(starts, question):
    answers = []
    for start in starts:
        server = start()
        server.stop()
        answers.append(server.ask(question))
    return answers


RESULTS = {"06_cloud": {
    **shown("06_cloud", "brightness", "StandIn", "try_out"),
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
    ("06_cloud", "check_5", [predictor(), first_day],
     [predictor(kind=lambda images: images.dtype.kind == "f"),      # takes float64 as well
      predictor(kind=whole), predictor(many=whole), predictor(finite=whole),
      predictor(finite=lambda images: not np.isnan(images).any()),  # infinity is let through
      predictor(finite=lambda images: (images >= 0).all()),         # nobody asked for that
      predictor(alike=lambda images, shape: True),
      predictor(alike=lambda images, shape: images.shape[1:] == (1, 2)),            # hard-coded
      predictor(alike=lambda images, shape: images[0].size == np.prod(shape)),      # as many numbers, in another shape
      predictor(axis=0), predictor(error=TypeError),
      lambda scores_of, shape: type("Scores", (), {"predict": staticmethod(scores_of)}), "predict"]),
    ("06_cloud", "check_6", [in_finally, in_stack],
     [at_the_end, started_outside, no_interrupt, swallowed, first_only, stopped_too_soon,
      lambda starts, question: [start().ask(question) for start in starts],         # stops none
      lambda starts, question: in_finally(starts, question)[:1], ["WHICH DIGIT?"]]),
]
