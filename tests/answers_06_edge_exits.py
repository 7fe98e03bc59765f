"""Right and planted wrong answers to the exercises of book/06_edge_exits.ipynb, for test_exercises.py; see answers_quantization.py."""
import copy
from types import SimpleNamespace

import numpy as np
import torch

FORMS = ("CNN", "with exit", "front alone", "CNN 8-16", "student")
RIGHT = {"validation": dict(zip(FORMS, (970, 968, 900, 959, 965))), "test": dict(zip(FORMS, (970, 962, 900, 961, 955)))}
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
    labels = torch.arange(1000) ** 2 % 10
    images = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 1000


DIGITS = SimpleNamespace(test=Images(), validation=Images())


def named(split):
    """As many of the images right as RIGHT says: another form is the best of the test images than of the validation images."""
    right = RIGHT["test" if split is DIGITS.test else "validation"]
    return {name: (split.labels + (torch.arange(1000) >= n)) % 10 for name, n in right.items()}


with torch.random.fork_rng():
    torch.manual_seed(0)
    CNN = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    STUDENT = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 10))


def door(trained, after, images, labels, lr, *, stem=lambda trained, after: copy.deepcopy(trained).eval()[:after], zero=True, reduction="mean"):
    """A door after one step, with each of its parts to be broken."""
    maps = stem(trained, after)(images).flatten(1).detach()
    made = torch.nn.Linear(maps.shape[1], 10)
    if zero:
        made.load_state_dict({name: torch.zeros_like(p) for name, p in made.state_dict().items()})
    torch.nn.functional.cross_entropy(made(maps), labels, reduction=reduction).backward()
    torch.optim.SGD(made.parameters(), lr=lr).step()
    return made


def by_hand(trained, after, images, labels, lr):
    maps = copy.deepcopy(trained).eval()[:after](images).flatten(1).detach()
    made = torch.nn.Linear(maps.shape[1], 10)
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    loss = -made(maps).log_softmax(1)[torch.arange(len(labels)), labels].mean()
    gradients = torch.autograd.grad(loss, list(made.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(made.parameters(), gradients):
            parameter -= lr * gradient
    return made


def stem_learns(trained, after, images, labels, lr):
    made = door(trained, after, images, labels, lr)
    torch.nn.functional.cross_entropy(trained.eval()(images), labels).backward()
    torch.optim.SGD(trained.parameters(), lr=lr).step()
    return made


def only_weight(*arguments):
    made = door(*arguments)
    torch.nn.init.zeros_(made.bias)
    return made


def _flat(images):
    return np.asarray(images).reshape(len(images), -1)


RUN = {"front": lambda images: _flat(images)[:, :20], "back": lambda features: np.concatenate([features, features[:, :1]], axis=1)[:, ::-1]}


def cascade(front, back, images, threshold, *, stays=lambda sure, threshold: sure < threshold, always=False, columns=(1, 11)):
    out = front(images)
    logits, stay = out[:, columns[0]:columns[1]].copy(), stays(out[:, 0], threshold)
    if always or stay.any():
        logits[stay] = back(out[stay, 11:])
    return logits


def one_by_one(front, back, images, threshold):
    return np.stack([row[1:11] if row[0] >= threshold else back(row[None, 11:])[0] for row in front(images)])


def masked(front, back, images, threshold):
    out = front(images)
    return np.where(out[:, :1] < threshold, back(out[:, 11:]), out[:, 1:11])


def stayers_last(front, back, images, threshold):
    out = front(images)
    stay = out[:, 0] < threshold
    return np.concatenate([out[~stay, 1:11], back(out[stay, 11:])]) if stay.any() else out[:, 1:11]


RESULTS = {"06_edge_exits": {
    "confidence": lambda logits: logits.softmax(dim=1).amax(dim=1), "forms": dict.fromkeys(FORMS), "timed": TIMED,
    "digits": DIGITS, "cnn": CNN, "student": STUDENT, "run": RUN, "threshold": 0.5,
    "named": named}}

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
    ("06_edge_exits", "check_5", [door, by_hand],
     [lambda *a: door(*a, stem=lambda trained, after: copy.deepcopy(trained).train()[:after]),      # means of this batch
      lambda *a: door(*a, stem=lambda trained, after: trained.train()[:after]),                     # and they are changed
      lambda *a: door(*a, stem=lambda trained, after: copy.deepcopy(trained).eval()[:after - 1]), lambda *a: door(*a, zero=False),
      lambda *a: door(*a, reduction="sum"), lambda *a: door(*a[:4], -a[4]), lambda *a: door(*a[:4], 1.0), lambda *a: door(*a[:4], 0.0),
      stem_learns, only_weight, lambda *a: door(*a).weight, lambda *a: torch.nn.Sequential(torch.nn.Flatten(), door(*a)), 0.5]),
    ("06_edge_exits", "check_6", [cascade, one_by_one],
     [masked, stayers_last, lambda *a: cascade(*a, always=True),                                    # called for nobody
      lambda *a: cascade(*a, stays=lambda sure, threshold: sure <= threshold),
      lambda *a: cascade(*a, stays=lambda sure, threshold: sure >= threshold), lambda *a: cascade(*a, columns=(0, 10)),
      lambda front, back, images, threshold: front(images)[:, 1:11], lambda front, back, images, threshold: back(front(images)[:, 11:]),
      lambda *a: cascade(*a).argmax(axis=1), 0.5]),
]
