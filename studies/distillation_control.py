"""What does a teacher add to a student that has every label? The same student, start, images and steps, with it and without.

Rows hold counts on the test images, paired with the control without a teacher (targets "labels", same training, same stage):
`gained` are right here and wrong there. `validation` is the accuracy to choose by; `calibration` the calibration error on test
images, in 15 bins. The teacher is paired with the first control, 784-32-10. "half labels": alpha is a half, else 1 (0 for "labels").
"""
import torch
from runner import Study, main
from torch import nn

from course_lib import data, distillation, models, training

EPOCHS, RATE, COPIES = 20, 1e-2, 10
TUNING_EPOCHS, TUNING_RATE = 5, 1e-3
MLP, STRIDED, CNN = "784-32-10", "strided 8-12-8", "CNN 8-16"
AUGMENTED, PLAIN, LONGER = "augmented", "not augmented", "augmented, 3 times longer"
SLOW, FAST = "augmented, a third of the rate", "augmented, 3 times the rate"
FACTORS = {SLOW: 1 / 3, FAST: 3}
HARD, TAUGHT = "labels", "T=4"
# What each kind of targets is: the temperature, and the weight of the teacher. The control is the first in every list.
TARGETS = {HARD: (1, 0)} | {f"T={t}": (t, 1) for t in (1, 2, 4, 8)} | {f"T={t}, half labels": (t, 0.5) for t in (1, 2, 4, 8)}
PLAN = [(MLP, AUGMENTED, tuple(TARGETS))] + [(MLP, how, (HARD, TAUGHT)) for how in (SLOW, FAST, PLAIN, LONGER)] + [
    (STRIDED, how, (HARD, TAUGHT)) for how in (AUGMENTED, PLAIN)] + [(CNN, AUGMENTED, (HARD, TAUGHT))]


def unit(configuration: str, seed: int) -> list[dict]:
    """One teacher, one transfer set, and every student of the plan without the teacher and with it."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    teacher, _ = training.fit(models.cnn(digits.channels, digits.image_size), digits.train, epochs=8, lr=3e-3, seed=seed)
    copies = distillation.transfer_set(teacher, digits.train, copies=COPIES, seed=seed)
    as_they_are = distillation.transfer_set(teacher, digits.train, copies=0)
    rows, control = [], None
    for name, how, kinds in PLAN:
        start, transfer, epochs = built(name, seed, digits), as_they_are if how == PLAIN else copies, EPOCHS * (3 if how == LONGER else 1)
        rate, controls = RATE * FACTORS.get(how, 1), {}
        for targets in kinds:
            temperature, alpha = TARGETS[targets]
            student, _ = distillation.distill(start, transfer, epochs=epochs, lr=rate, temperature=temperature, alpha=alpha, seed=seed)
            stages = {"trained": student}
            if (name, how) == (MLP, AUGMENTED) and targets in (HARD, TAUGHT):
                stages["fine-tuned"], _ = distillation.distill(student, transfer, epochs=TUNING_EPOCHS, lr=TUNING_RATE, alpha=0, seed=seed + 1)
            for stage, model in stages.items():
                controls.setdefault(stage, model)
                rows.append({"student": name, "training": how, "targets": targets, "stage": stage} | judged(model, controls[stage], digits))
        control = control or controls["trained"]
    return [{"student": "teacher", "training": AUGMENTED} | judged(teacher, control, digits)] + rows


def built(name: str, seed: int, digits: data.Dataset) -> nn.Module:
    """A student with fresh weights, the same ones for one seed."""
    training.set_seed(seed)
    builder, options = {MLP: (models.mlp, {"hidden": (32,)}), STRIDED: (models.student, {}), CNN: (models.cnn, {"widths": (8, 16)})}[name]
    return builder(digits.channels, digits.image_size, **options)


def judged(model: nn.Module, control: nn.Module, digits: data.Dataset) -> dict:
    """Accuracy on test and validation images, what was gained and lost against the control, and the calibration error."""
    test = digits.test
    mine, theirs = (training.predict(m, test.images) == test.labels for m in (model, control))
    return {"accuracy": int(mine.sum()) / len(test), "validation": training.evaluate(model, digits.validation).value, "n": len(test),
            "gained": int((mine & ~theirs).sum()), "lost": int((theirs & ~mine).sum()), "calibration": calibration_error(model, test)}


def calibration_error(model: nn.Module, split: data.Split, bins: int = 15) -> float:
    """Mean gap between how sure the model is and how often it is right, over bins of equal width, weighted with their images.

    Source: Guo et al. 2017, eq. 3.
    """
    with training.evaluating(model):
        sure, predicted = torch.softmax(model(split.images), dim=1).double().max(dim=1)
    gap = (predicted == split.labels).double() - sure
    which = (sure * bins).ceil().long().clamp(max=bins) - 1         # (0, 1/15], (1/15, 2/15], …
    return float(torch.zeros(bins, dtype=torch.double).index_add(0, which, gap).abs().sum() / len(split))


if __name__ == "__main__":
    main(Study("distillation_control", ("all labels",), tuple(range(10)), unit))
