"""On full MNIST: the student of a few thousand weights against the source article's CNN, its teacher here.

Rows hold counts on the 10,000 test images, paired with the CNN's: `gained` are right here and wrong there, `lost` the other way.
The other columns are those of `distillation_lenet5`: bytes of the ONNX file, and CPU times in ONNX Runtime over the CNN's with 1 and 64
images, with one thread. Widths, copies and epochs of the student are those of that study; nothing was chosen anew.
"""
from distillation_lenet5 import ALPHA, COPIES, STUDENT_EPOCHS, TEMPERATURE, WIDTHS, rows
from runner import Study, main

from course_lib import data, distillation, models, training

CNN, TAUGHT = "CNN 32-64", "student, taught"
CNN_EPOCHS = 6


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
    return rows({CNN: teacher, TAUGHT: student}, digits)


if __name__ == "__main__":
    main(Study("deployment_cnn", ("full size",), (0, 1, 2, 3, 4), unit, dataset="mnist"))
