"""On full MNIST: a student of a few thousand weights against its teacher, dense LeNet-5, and against itself without a teacher.

Rows hold counts on the 10,000 test images, paired with the teacher's: `gained` are right here and wrong there, `lost` the other way.
`onnx_bytes` is the size of the ONNX file. `cpu_ratio_1` and `cpu_ratio_64` are CPU times in ONNX Runtime with 1 and 64 images over
the teacher's, with one thread; `cpu_floor_1` and `cpu_floor_64` those of a network that does nearly nothing (one average over the image,
then ten outputs): no model can be faster than a call. The student's widths were chosen by bytes and time among four small networks, with a look at
validation images of seed 9, which is not in the study.
"""
import numpy as np
from common import accuracy
from runner import Study, main
from torch import nn

from course_lib import data, deploy, distillation, models, timing, training

TEACHER, LABELS, TAUGHT, FLOOR = "LeNet-5", "student, labels", "student, taught", "an empty call"
WIDTHS, COPIES = (16, 16, 16), 10
TEACHER_EPOCHS, STUDENT_EPOCHS = 6, 20
TEMPERATURE, ALPHA = 4.0, 0.5       # fixed beforehand


def unit(configuration: str, seed: int) -> list[dict]:
    """Train LeNet-5; train the student twice from the same start on the same deformed copies, with labels alone and with the teacher."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    start = models.lenet5(digits.channels, digits.image_size)
    teacher, _ = training.fit(start, digits.train, epochs=TEACHER_EPOCHS, lr=2e-3, seed=seed)
    transfer = distillation.transfer_set(teacher, digits.train, copies=COPIES, seed=seed)
    trained = {TEACHER: teacher}
    for name, alpha in ((LABELS, 0.0), (TAUGHT, ALPHA)):
        training.set_seed(seed)
        small = models.student(digits.channels, digits.image_size, widths=WIDTHS)
        trained[name], _ = distillation.distill(small, transfer, epochs=STUDENT_EPOCHS, lr=1e-2, seed=seed,
                                                temperature=TEMPERATURE, alpha=alpha)
    return rows(trained, digits)


def rows(trained: dict[str, nn.Module], digits: data.Dataset) -> list[dict]:
    """A row for each model; the first is the teacher."""
    images, found, reference = digits.test.images[:64], [], next(iter(trained))
    empty = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(digits.channels, 10)).eval()
    content = {name: deploy.onnx_bytes(model, images) for name, model in (trained | {FLOOR: empty}).items()}
    times = {batch: cpu_times(content, images[:batch].numpy()) for batch in (1, 64)}
    right = {name: training.predict(model, digits.test.images) == digits.test.labels for name, model in trained.items()}
    for name, model in trained.items():
        row = {"model": name, "accuracy": accuracy(model, digits), "n": len(digits.test), "onnx_bytes": len(content[name]),
               "gained": int((right[name] & ~right[reference]).sum()), "lost": int((right[reference] & ~right[name]).sum())}
        for batch, timed in times.items():
            for which, key in ((name, "cpu_ratio"), (FLOOR, "cpu_floor")):
                ratio = timed.ratio(which, clock="cpu")
                row |= {f"{key}_{batch}": ratio.value, f"{key}_{batch}_low": ratio.low, f"{key}_{batch}_high": ratio.high}
        found.append(row)
    return found


def cpu_times(content: dict[str, bytes], images: np.ndarray) -> timing.Timings:
    """All models side by side in ONNX Runtime; the first is the reference."""
    runners = {name: deploy.load_onnx(model) for name, model in content.items()}
    return timing.compare({name: lambda run=run: run(images) for name, run in runners.items()}, blocks=60,
                          until=timing.precise(), max_blocks=300)


if __name__ == "__main__":
    main(Study("distillation_lenet5", ("full size",), (0, 1, 2, 3, 4), unit, dataset="mnist"))
