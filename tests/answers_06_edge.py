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


def changes(alone, beside, deadline, mean=np.nanmean, late=lambda r, deadline: ~(r <= deadline)):
    return (mean(beside) - mean(alone)) / deadline, late(beside, deadline).mean() - late(alone, deadline).mean()


def in_force(answers, dropped, first=-1):
    said = [first]
    for answer, lost in zip(answers, dropped):
        said.append(said[-1] if lost else answer)
    return np.array(said[1:])


def cost(labels, answers, dropped, acted=in_force):
    return float((answers == labels).mean() - (acted(answers, dropped) == labels).mean())


def cost_in_place(labels, answers, dropped):
    before = (answers == labels).mean()
    answers[:] = in_force(answers, dropped)
    return before - (answers == labels).mean()


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
    ("06_edge", "check_5", [changes, lambda a, b, d: (float(np.nanmean(b / d) - np.nanmean(a / d)), (a <= d).mean() - (b <= d).mean())],
     [lambda a, b, d: changes(a, b, 1.0)[:1] + changes(a, b, d)[1:],            # seconds
      lambda a, b, d: changes(a, b, d, mean=np.mean),                           # nan in the mean
      lambda a, b, d: changes(a, b, d, mean=lambda r: np.nan_to_num(r).mean()),  # a dropped one as if it took no time
      lambda a, b, d: changes(a, b, d, mean=np.nanmedian),
      lambda a, b, d: changes(a, b, d, late=lambda r, d: r > d),                # dropped ones forgotten
      lambda a, b, d: changes(a, b, d, late=lambda r, d: ~(r < d)), lambda a, b, d: changes(b, a, d),
      lambda a, b, d: changes(a, b, d)[::-1], lambda a, b, d: tuple(100 * c for c in changes(a, b, d)),
      lambda a, b, d: list(changes(a, b, d)), lambda a, b, d: np.nan_to_num(b, copy=False) is b or changes(a, b, d), 0.25]),
    ("06_edge", "check_6", [cost, lambda labels, answers, dropped: np.mean(answers == labels) - np.mean(in_force(answers, dropped) == labels)],
     [lambda labels, answers, dropped: cost(labels, answers, dropped, lambda a, lost: np.where(lost, -1, a)),    # always wrong
      lambda labels, answers, dropped: cost(labels, answers, dropped, lambda a, lost: np.where(lost, np.roll(a, 1), a)),
      lambda labels, answers, dropped: cost(labels, answers, dropped, lambda a, lost: in_force(a, lost, first=a[0])),
      lambda labels, answers, dropped: cost(labels, answers, dropped, lambda a, lost: in_force(a[::-1], lost[::-1])[::-1]),  # the next one
      lambda labels, answers, dropped: float((answers == labels).mean() - (answers == labels)[~dropped].mean()),  # of the seen only
      lambda labels, answers, dropped: 1 - float((in_force(answers, dropped) == labels).mean()),
      lambda labels, answers, dropped: -cost(labels, answers, dropped), lambda labels, answers, dropped: 100 * cost(labels, answers, dropped),
      lambda labels, answers, dropped: float(dropped.mean()), cost_in_place, 0.25]),
]
