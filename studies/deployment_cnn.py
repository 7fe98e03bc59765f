"""On full MNIST: the student of a few thousand weights against the source article's CNN, its teacher here.

Rows hold counts on the 10,000 test images, paired with the CNN's: `gained` are right here and wrong there, `lost` the other way.
The other columns are those of `distillation_lenet5`: bytes of the ONNX file, and CPU times in ONNX Runtime over the CNN's with 1 and 64
images, with one thread. Widths, copies and epochs of the student are those of that study; nothing was chosen anew. The student in 8-bit integers
is the one that ExecuTorch makes for a phone, with ranges from 512 training images; `pte_bytes` is the size of its file for one image.
"""
import numpy as np
import torch
from distillation_lenet5 import ALPHA, COPIES, STUDENT_EPOCHS, TEMPERATURE, WIDTHS, rows
from runner import Study, main

from course_lib import data, distillation, mobile, models, training

CNN, TAUGHT, INT8 = "CNN 32-64", "student, taught", "student, taught, int8"
CNN_EPOCHS, BATCH = 6, 100


def unit(configuration: str, seed: int) -> list[dict]:
    """Train the article's CNN with all labels; let it teach the student on deformed copies of the same images."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    start = models.cnn(digits.channels, digits.image_size)
    teacher, _ = training.fit(start, digits.train, epochs=CNN_EPOCHS, lr=2e-3, seed=seed)
    transfer = distillation.transfer_set(teacher, digits.train, copies=COPIES, seed=seed)
    training.set_seed(seed)
    small = models.student(digits.channels, digits.image_size, widths=WIDTHS)
    student, _ = distillation.distill(small, transfer, epochs=STUDENT_EPOCHS, lr=1e-2, seed=seed, temperature=TEMPERATURE,
                                      alpha=ALPHA)
    return [*rows({CNN: teacher, TAUGHT: student}, digits), integers(student, teacher, digits)]


def integers(student: torch.nn.Module, teacher: torch.nn.Module, digits: data.Dataset) -> dict:
    """The row of the student in integers, from predictions of ExecuTorch's own runtime."""
    images, labels, seen = digits.test.images, digits.test.labels, digits.train.images[:512]
    run = mobile.load_pte(mobile.pte_bytes(student, images[:BATCH], calibration=seen))
    predicted = torch.from_numpy(np.concatenate([run(part.numpy()).argmax(axis=1) for part in images.split(BATCH)]))
    right, reference = predicted == labels, training.predict(teacher, images) == labels
    return {"model": INT8, "accuracy": float(right.double().mean()), "n": len(labels),
            "pte_bytes": len(mobile.pte_bytes(student, images[:1], calibration=seen)),
            "gained": int((right & ~reference).sum()), "lost": int((reference & ~right).sum())}


if __name__ == "__main__":
    main(Study("deployment_cnn", ("full size",), (0, 1, 2, 3, 4), unit, dataset="mnist"))
