"""Where a teacher helps: few labels and many images without any; a digit that was never shown; images of other things.

All students of one kind take the same number of steps, with batches of the same size; what they learn from differs.
The temperature and the numbers of labels were set before; the accuracies are those on test images.
"""
import torch
from common import CNN, accuracy
from runner import Study, main
from torch import nn

from course_lib import data, distillation, models, training
from course_lib.data import Split
from course_lib.distillation import UNLABELLED, Targets

NARROW, STRIDED = "784-32-10", "strided 8-12-8"
LABELS = (100, 500, 1000)
COPIES, TEMPERATURE = 4, 4.0


def teach(images: Split, seed: int) -> nn.Module:
    """A teacher: the CNN, trained on deformed images."""
    training.set_seed(seed)
    return training.fit(models.cnn(), images, epochs=5, lr=3e-3, seed=seed)[0]


def learn(transfer: list[Split], seed: int, *, alpha: float = 1.0, student: str = NARROW) -> nn.Module:
    """A student of the teacher's outputs (alpha = 1), or of the labels (0)."""
    training.set_seed(seed)
    fresh = models.mlp(hidden=(32,)) if student == NARROW else models.student()
    return distillation.distill(fresh, transfer, epochs=20, lr=1e-2, temperature=TEMPERATURE, alpha=alpha, seed=seed)[0]


def repeated(images: Split, n: int) -> Split:
    """The first n images, over and over, as many as there are images."""
    which = torch.arange(len(images)) % n
    return Split(images.images[which], images.labels[which])


def asked(teacher: nn.Module, versions: list[Split]) -> list[Split]:
    """The same deformed images, with what another teacher says of them."""
    return [distillation.transfer_set(teacher, Split(v.images, v.labels.labels), copies=0)[0] for v in versions]


def decided(transfer: list[Split]) -> list[Split]:
    """The teacher's decision in place of the label."""
    return [Split(v.images, Targets(v.labels.logits.argmax(dim=1), v.labels.logits)) for v in transfer]


def few_labels(digits: data.Dataset, transfer: list[Split], full: nn.Module, n: int) -> list[dict]:
    """Students and a teacher that know n labels."""
    seed, few = digits.seed, repeated(digits.train, n)
    teacher, own = teach(few, seed), distillation.transfer_set(full, few, copies=COPIES, seed=seed)
    theirs = asked(teacher, transfer)
    students = {"labels only": learn(own, seed, alpha=0), "full teacher, the labelled images": learn(own, seed),
                "own teacher, all images": learn(theirs, seed),
                "own teacher's decisions, all images": learn(decided(theirs), seed, alpha=0), "the teacher itself": teacher}
    return [{"training": how, "labels": f"{n:,}", "student": CNN if model is teacher else NARROW,
             "accuracy": accuracy(model, digits)} for how, model in students.items()]


def needed_shift(model: nn.Module, images: torch.Tensor, digit: int, share: float = 0.1) -> float:
    """What to add to the logit of a digit so that this share of images gets it."""
    with training.evaluating(model):
        logits = model(images)
    others = logits.index_fill(1, torch.tensor([digit]), -torch.inf).amax(dim=1)
    return float((others - logits[:, digit]).quantile(share))


def unseen(digits: data.Dataset, transfer: list[Split]) -> list[dict]:
    """Students that never saw one digit, as they are, and with its bias raised until a tenth of the validation images get it."""
    digit, rows = (3 + digits.seed) % 10, []
    seen = transfer[0].labels.labels != digit
    without = [Split(v.images[seen], v.labels[seen]) for v in transfer]
    there = digits.test.labels == digit
    for student in (NARROW, STRIDED):
        for target, alpha in (("labels", 0.0), ("teacher", 1.0)):
            model = learn(without, digits.seed, alpha=alpha, student=student)
            row = {"training": f"one digit unseen: {target}", "labels": "all", "student": student}
            row["shift"] = needed_shift(model, digits.validation.images, digit)
            for when in ("", "_shifted"):
                right = training.predict(model, digits.test.images) == digits.test.labels
                row |= {f"accuracy{when}": float(right.double().mean()), f"unseen{when}": float(right[there].double().mean())}
                with torch.no_grad():
                    model[-1].bias[digit] += row["shift"]
            rows.append(row)
    return rows


def other_images(teacher: nn.Module, transfer: list[Split], seed: int) -> dict[str, nn.Module]:
    """Students that saw no digit as it stands: digits upside down, and noise."""
    turned = asked(teacher, [Split(v.images.flip(2, 3), v.labels) for v in transfer])
    noise = torch.rand(transfer[0].images.shape, generator=torch.Generator().manual_seed(seed))
    nameless = Split(noise, torch.full((len(noise),), UNLABELLED))
    return {"full teacher, digits upside down": learn(turned, seed),
            "full teacher, noise": learn(distillation.transfer_set(teacher, nameless, copies=0), seed)}


def unit(teacher: str, seed: int) -> list[dict]:
    """All students of one seed, and their teachers."""
    digits = data.load(seed=seed)
    full = teach(digits.train, seed)
    transfer = distillation.transfer_set(full, digits.train, copies=COPIES, seed=seed)
    students = {"the teacher itself": full, "labels only": learn(transfer, seed, alpha=0),
                "full teacher, all images": learn(transfer, seed),
                "full teacher's decisions, all images": learn(decided(transfer), seed, alpha=0),
                **other_images(full, transfer, seed)}
    rows = [{"training": how, "labels": "all", "student": teacher if model is full else NARROW,
             "accuracy": accuracy(model, digits)} for how, model in students.items()]
    return rows + [row for n in LABELS for row in few_labels(digits, transfer, full, n)] + unseen(digits, transfer)


if __name__ == "__main__":
    main(Study("distillation_unlabelled", (CNN,), tuple(range(10)), unit))
