"""Hinton's experiment on the whole of MNIST: a wide teacher, and a smaller student with and without it.

All 60,000 training images are used, since nothing is chosen. The teacher sees deformed images, and the student plain ones, as in
Hinton et al. 2015; "jittered" is the control that the paper does not have, the student on deformed images with labels alone.
Rows hold the errors on the 10,000 test images; `gained` are right here and wrong with the student on labels, `lost` the other way.
The configuration "a part of it" is the same on 6,000 images for two epochs: minutes, to try a cluster with.
"""
import torch
from runner import Study, main

from course_lib import data, distillation, models, training

FULL, PART = "full size", "a part of it"
EPOCHS, RATE, TEMPERATURE, ALPHA = {FULL: 20, PART: 2}, 1e-3, 20.0, 0.5     # fixed beforehand
TEACHER, LABELS = "teacher 1200-1200", "student 800-800, labels"
JITTERED, TAUGHT = "student 800-800, jittered", "student 800-800, taught"


def unit(configuration: str, seed: int) -> list[dict]:
    """Train the teacher; train the student three times from the same start, on as many images in the same order."""
    digits = data.load(seed=seed)
    train = data.Split(*(torch.cat([getattr(part, name) for part in (digits.train, digits.validation)])
                         for name in ("images", "labels")))
    if configuration == PART:
        train = train.first(6000)

    def fit(hidden, part, loss=torch.nn.functional.cross_entropy, **options):
        training.set_seed(seed)
        start = models.mlp(digits.channels, digits.image_size, hidden=hidden)
        return training.fit(start, part, epochs=EPOCHS[configuration], lr=RATE, batch_size=128, seed=seed, loss=loss, **options)[0]

    teacher = fit((1200, 1200), train)
    told = distillation.transfer_set(teacher, train, copies=0)
    taught = distillation.distillation_loss(temperature=TEMPERATURE, alpha=ALPHA)
    trained = {TEACHER: teacher, LABELS: fit((800, 800), train, augmented=False), JITTERED: fit((800, 800), train),
               TAUGHT: fit((800, 800), told, taught, augmented=False)}
    right = {name: training.predict(model, digits.test.images) == digits.test.labels for name, model in trained.items()}
    return [{"model": name, "errors": int((~r).sum()), "accuracy": int(r.sum()) / len(r), "n": len(r),
             "gained": int((r & ~right[LABELS]).sum()), "lost": int((right[LABELS] & ~r).sum())} for name, r in right.items()]


if __name__ == "__main__":
    main(Study("distillation_mnist", (FULL, PART), (0, 1, 2, 3), unit, dataset="mnist"))
