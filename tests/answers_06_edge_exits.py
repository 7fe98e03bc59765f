"""Right and planted wrong answers to the exercises of book/06_edge_exits.ipynb, for test_exercises.py; see answers_quantization.py."""
from types import SimpleNamespace

import torch

FORMS = ("CNN", "with exit", "front alone", "CNN 8-16", "student")
RIGHT = dict(zip(FORMS, (970, 968, 900, 959, 965)))
SPENT = dict(zip(FORMS, (1.0, 0.8, 0.35, 0.4, 0.3)))
TIMED = SimpleNamespace(ratio=lambda name, clock="wall", to=None: SimpleNamespace(value=SPENT[name]))


def leavers(logits, threshold):
    return torch.softmax(logits, dim=1).max(dim=1).values >= threshold


def unstable(logits, threshold):
    powers = logits.exp()
    return (powers / powers.sum(dim=1, keepdim=True)).amax(dim=1) >= threshold


def cost(m1, m2, m3, d, q1, q2):
    return m1 + d + (1 - q1) * (m2 + d) + (1 - q1) * (1 - q2) * m3


class Images:
    labels = torch.zeros(1000).long()

    def __len__(self):
        return 1000


RESULTS = {"06_edge_exits": {
    "confidence": lambda logits: logits.softmax(dim=1).amax(dim=1), "forms": dict.fromkeys(FORMS), "timed": TIMED,
    "digits": SimpleNamespace(test=Images()),
    "answers": {name: (torch.arange(1000) >= n).long() for name, n in RIGHT.items()}}}

EXERCISES = [
    ("06_edge_exits", "check_1", [1 / 9, 1 - 16 / 18, 0.1111], [8 / 9, 9 / 25, 11.1, 1 - 9 / 25, 0.0, "1/9"]),
    ("06_edge_exits", "check_2", [leavers, lambda z, t: z.softmax(1).amax(1) >= t],
     [unstable, lambda z, t: z.softmax(1).amax(1) > t, lambda z, t: z.softmax(0).amax(1) >= t, lambda z, t: z.amax(1) >= t,
      lambda z, t: (z.softmax(1) >= t), lambda z, t: z.sigmoid().amax(1) >= t]),
    ("06_edge_exits", "check_3", [cost, lambda m1, m2, m3, d, q1, q2: m1 + d + (1 - q1) * (m2 + d + (1 - q2) * m3)],
     [lambda m1, m2, m3, d, q1, q2: m1 + d + (1 - q1) * (m2 + d) + (1 - q2) * m3,
      lambda m1, m2, m3, d, q1, q2: m1 + 2 * d + (1 - q1) * (m2 + (1 - q2) * m3),
      lambda m1, m2, m3, d, q1, q2: m1 + d + q1 * (m2 + d + q2 * m3),
      lambda m1, m2, m3, d, q1, q2: m1 + (1 - q1) * (m2 + (1 - q2) * m3), 31.5]),
    ("06_edge_exits", "check_4", ["student", "".join(["stu", "dent"])], ["with exit", "CNN 8-16", "front alone", "CNN", 0.3]),
]
