"""Every checker of the chapters: right answers pass, planted wrong ones are caught, none has no answer yet.

The checker's cell is taken from the notebook itself and run beside the imports and made-up results,
so that no network has to be trained here.
"""
import functools
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from course_lib.checks import WrongAnswer
from course_lib.intervals import Estimate

BOOK = Path(__file__).parent.parent / "book"


def flat(value):
    return Estimate(value, value, value)


# What the reader's notebook would hold by then.
RESULTS = {
    "01_one_ruler": {"validation": {"big": 0.97, "middle": 0.965, "small": 0.96, "poor": 0.90},
                     "bytes_of": {"big": 9000, "middle": 300, "small": 500, "poor": 10}},
    "02_pruning_threshold": {"levels": [0.5, 0.8, 0.9, 0.95], "dense_line": flat(0.97),
                             "after": {0.5: flat(0.97), 0.8: flat(0.968), 0.9: flat(0.945), 0.95: flat(0.93)}},
    "05_real_joules": {"arm": pd.DataFrame(
        [("RPi 4", 0.30, 75.0), ("RPi 4", 0.20, 70.0), ("RPi 4", 0.10, 69.9), ("RK3588S", 0.05, 75.0)],
        columns=["board", "joules", "top1_percent"])},
}


def in_place(weight, q):
    return weight.abs_() >= q * weight.std()


# notebook, checker, right answers (at least two), wrong answers (at least three)
EXERCISES = [
    ("01_one_ruler", "check_1",
     [lambda wh, j: wh * 3600 / j, lambda wh, j: wh * 60 * 60 * (1 / j)],
     [lambda wh, j: wh / j, lambda wh, j: wh * 3600 * j, lambda wh, j: 18_000_000, lambda wh, j: wh * 60 / j, 18_000_000]),
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
    ("05_real_joules", "check_1",
     [lambda f, s: s + (1 - s) * f, lambda f, s: 1 - (1 - f) * (1 - s), lambda f, s: f + s - f * s],
     [lambda f, s: f,                                               # in proportion
      lambda f, s: f + s,                                           # the whole, not only the rest, shrinks
      lambda f, s: (1 - s) * f,                                     # the constant is forgotten
      lambda f, s: f + (1 - f) * (1 - s),
      lambda f, s: 1 - (s + (1 - s) * f),                           # what is saved, not what is left
      lambda f, s: 0.625, 0.625]),
    ("05_real_joules", "check_2",
     [lambda b, a: (a - b) % 2**32 * 2**-14, lambda b, a: (a - b + (2**32 if a < b else 0)) / 16_384,
      lambda b, a: ((a - b) & 0xFFFFFFFF) / 2**14],
     [lambda b, a: (a - b) * 2**-14,                                # the tool's own way
      lambda b, a: abs(a - b) * 2**-14,
      lambda b, a: max(a - b, 0) * 2**-14,                          # throws the window away
      lambda b, a: (a - b + 2**32) * 2**-14,                        # always one register
      lambda b, a: (a - b) % (2**32 - 1) * 2**-14,                  # off by one
      lambda b, a: (a - b) % 2**32,                                 # steps, not joules
      lambda b, a: (a - b) % 2**31 * 2**-14]),
    ("05_real_joules", "check_3",
     [lambda j, a, w: min(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: sorted((x, y) for x, y in zip(j, a) if y >= w)[0][0]],
     [lambda j, a, w: min(j),                                       # whatever the accuracy
      lambda j, a, w: min((x for x, y in zip(j, a) if y > w), default=0.0),     # a tie is enough
      lambda j, a, w: j[a.index(min(y for y in a if y >= w))],      # the least accurate one that is enough
      lambda j, a, w: max(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: next(x for x, y in zip(j, a) if y >= w),
      lambda j, a, w: j.sort() or min(j)]),
    ("05_real_joules", "check_4",
     [lambda pa, ta, pb, tb: (pb * tb - pa * ta) / (tb - ta), lambda pa, ta, pb, tb: (pa * ta - pb * tb) / (ta - tb)],
     [lambda pa, ta, pb, tb: (pa * ta - pb * tb) / (tb - ta),       # the sign
      lambda pa, ta, pb, tb: pb * tb - pa * ta,                     # joules, not watts
      lambda pa, ta, pb, tb: (pa - pb) / (tb - ta),
      lambda pa, ta, pb, tb: (pa + pb) / 2,
      lambda pa, ta, pb, tb: (pb * tb - pa * ta) / (tb + ta), 2.67]),
    ("05_real_joules", "check_5", [0.2, 1 / 5, torch.tensor(0.2)], [0.05, 0.1, 0.3, 200.0, 70.0, "0.2"]),
]
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
    namespace = {**RESULTS[name], **answers}
    imports = "\n".join(line for line in cells(name, "imports")[0].splitlines() if line.startswith(("import", "from")))
    exec(imports, namespace)
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
    assert len(cells(name, "answer")) == len(cells(name, "checker")) == len(cells(name, "solution"))
