"""Right and planted wrong answers to the exercises of book/04_distillation.ipynb, for test_exercises.py; see answers_quantization.py."""
import copy

import torch
from torch.nn import functional as F


def second_choice(logits, labels, lowest=-torch.inf):
    others = logits.clone()
    others[torch.arange(len(labels)), labels] = lowest
    return others.argmax(dim=1)


def second_in_place(logits, labels):
    logits[torch.arange(len(labels)), labels] = -torch.inf
    return logits.argmax(dim=1)


def mixed(student, teacher, labels, T, alpha, *, factor=lambda T: T**2, divide=lambda x: len(x), hard=1, swap=False):
    """The mixed loss, with each of its parts to be broken."""
    p, q = (teacher / T).log_softmax(1), (student / T).log_softmax(1)
    if swap:
        p, q = q, p
    soft = (p.exp() * (p - q)).sum() / divide(student)
    return float(alpha * factor(T) * soft + (1 - alpha) * F.cross_entropy(student / (T if hard == "T" else 1), labels))


def soft_cross_entropy(student, teacher, labels, T, alpha):
    soft = F.cross_entropy(student / T, (teacher / T).softmax(1))      # lacks the teacher's entropy
    return float(alpha * T**2 * soft + (1 - alpha) * F.cross_entropy(student, labels))


def gain(table, same=("size", "augmented", "epochs")):
    taught = next(s for s in table if s["taught"])
    twins = [s["accuracy"] for s in table if not s["taught"] and all(s[key] == taught[key] for key in same)]
    return taught["accuracy"] - twins[0] if twins else None


def gain_to_best(table):
    return max(s["accuracy"] for s in table if s["taught"]) - max(s["accuracy"] for s in table if not s["taught"])


def write_down(teacher, copies, *, evaluate=True, back=True, gradients=False, flat=False):
    """What the teacher says of every copy; with mistakes for those who ask for them."""
    was = teacher.training
    if evaluate:
        teacher.eval()
    with torch.set_grad_enabled(gradients):
        logits = teacher(copies.flatten(0, 1)).unflatten(0, copies.shape[:2]) if flat else torch.stack([teacher(x) for x in copies])
    if back:
        teacher.train(was)
    return logits


def learn(start, copies, said, labels, lr, *, T=4, factor=16, reduction="batchmean", last=-1, share=0.1, swap=False, away=copy.deepcopy,
          optimizer=torch.optim.SGD):
    """A student after steps 2 and 3, with each of its parts to be broken."""
    student = away(start)

    def step(loss, rate):
        student.zero_grad()
        loss.backward()
        optimizer(student.parameters(), lr=rate).step()
    for images, logits in zip(copies, said):
        q, p = (student(images) / T).log_softmax(1), (logits / T).log_softmax(1)
        step(factor * F.kl_div(*((p, q) if swap else (q, p)), log_target=True, reduction=reduction), lr)
    if share:
        step(F.cross_entropy(student(copies[last]), labels), lr * share)
    return student


def by_hand(start, copies, said, labels, lr):
    """The gradient with respect to the logits is T (q - p) / n."""
    student = copy.deepcopy(start)
    steps = [(4, lr, (z / 4).softmax(1)) for z in said] + [(1, lr / 10, torch.eye(3)[labels])]
    for images, (T, rate, aim) in zip([*copies, copies[-1]], steps):
        logits = student(images)
        downhill = T * ((logits / T).softmax(1) - aim).detach() / len(labels)
        for parameter, gradient in zip(student.parameters(), torch.autograd.grad(logits, list(student.parameters()), downhill)):
            parameter.data.sub_(rate * gradient)
    return student


def labels_first(start, copies, said, labels, lr):
    taught = copy.deepcopy(start)
    learn(taught, copies, said[:0], labels, lr, last=0, away=lambda s: s)
    return learn(taught, copies, said, labels, lr, share=0)


RESULTS = {"04_distillation": {
    "runs": [{"size": size, "augmented": augmented, "epochs": epochs, "taught": taught, "accuracy": accuracy}
             for size, augmented, epochs, taught, accuracy in (
                 (32, True, 20, True, 0.950), (32, True, 60, False, 0.960), (64, True, 20, False, 0.970),
                 (32, False, 20, False, 0.920), (32, True, 20, False, 0.955))],
    "validation": {"labels": 0.952, "taught": 0.950, "labels, fine-tuned": 0.954, "taught, fine-tuned": 0.97,
                   "labels, 3 times longer": 0.962},
    "work": {"labels": 5e9, "labels, 3 times longer": 1.6e10, "taught": 3e11}}}

EXERCISES = [
    ("04_distillation", "check_1", [1 / 401, 1 / (1 + 20**2), torch.tensor(1 / 401)],
     [1 / 400, 1 / 2, 1 / 21, 400 / 401, 401, "1 / 401"]),
    ("04_distillation", "check_2", [second_choice, lambda logits, labels: second_choice(logits, labels, -1e9)],
     [lambda logits, labels: logits.topk(2, dim=1).indices[:, 1],           # of the answer, not of the label
      lambda logits, labels: second_choice(logits, labels, 0.0),            # a logit may be negative
      lambda logits, labels: logits.argmax(dim=1),
      lambda logits, labels: logits.topk(2, dim=1).values[:, 1],            # how large, not which
      second_in_place, torch.tensor([2, 0, 0])]),
    ("04_distillation", "check_3", [mixed, lambda *a: torch.tensor(mixed(*a))],
     [lambda *a: mixed(*a, factor=lambda T: 1),                             # no T²
      lambda *a: mixed(*a, factor=lambda T: T),
      lambda *a: mixed(*a, divide=lambda x: x.numel()),                     # the plain mean
      lambda *a: mixed(*a, divide=lambda x: 1),                             # a sum over images
      lambda *a: mixed(*a, hard="T"),                                       # softened labels' part
      lambda *a: mixed(*a, swap=True),                                      # KL the other way round
      lambda s, t, y, T, alpha: mixed(s, t, y, T, 1 - alpha),
      lambda s, t, y, T, alpha: T**2 * mixed(s, t, y, T, alpha, factor=lambda T: 1),        # for the labels as well
      soft_cross_entropy, 0.5]),
    ("04_distillation", "check_4", [gain, lambda table: gain(table, ("epochs", "size", "augmented"))],
     [gain_to_best,                                                         # the best there is, whatever its training
      lambda table: gain(table, ("size", "epochs")),                        # without augmentation
      lambda table: gain(table, ("size", "augmented")),                     # other epochs
      lambda table: gain(table, ("augmented", "epochs")),                   # another size
      lambda table: -gain(table) if gain(table) is not None else None,
      lambda table: gain(table) or 0.0, 0.01]),
    ("04_distillation", "check_5", ["labels", "".join(["lab", "els"])],
     ["taught", "labels, 3 times longer", "labels, fine-tuned", 0.952]),
    ("04_distillation", "check_6", [write_down, lambda teacher, copies: write_down(teacher, copies, flat=True)],
     [lambda teacher, copies: write_down(teacher, copies, evaluate=False),                  # in training mode, where that is its mode
      lambda teacher, copies: write_down(teacher, copies, back=False),                      # left in evaluation mode
      lambda teacher, copies: write_down(teacher, copies).flatten(0, 1),                    # which copy an answer is of is lost
      lambda teacher, copies: write_down(teacher, copies, gradients=True),
      lambda teacher, copies: write_down(teacher, copies).softmax(-1),                      # not the logits
      lambda teacher, copies: write_down(teacher, copies[:1]).expand(len(copies), -1, -1),  # one copy judged for all
      lambda teacher, copies: write_down(teacher, copies).mean(0), lambda teacher, copies: write_down(teacher, copies).transpose(0, 1), "logits"]),
    ("04_distillation", "check_7", [learn, by_hand],
     [lambda *a: learn(*a, factor=1), lambda *a: learn(*a, factor=4), lambda *a: learn(*a, T=1, factor=1),
      lambda *a: learn(*a, factor=16 / 15, reduction="sum"), lambda *a: learn(*a, reduction="sum"), lambda *a: learn(*a, swap=True),
      lambda *a: learn(*a, share=0), lambda *a: learn(*a, share=1), lambda *a: learn(*a, last=0),
      lambda *a: learn(*a, away=lambda start: start),                                       # the start learns
      lambda *a: learn(*a, optimizer=torch.optim.Adam), labels_first,
      lambda start, copies, said, labels, lr: learn(start, copies[:1].expand_as(copies), said[:1].expand_as(said), labels, lr),
      lambda start, copies, said, labels, lr: learn(start, copies[-1:], said[-1:], labels, lr),
      lambda *a: learn(*a).state_dict(), lambda *a: learn(*a)(a[1][-1]), 0.5]),
]
