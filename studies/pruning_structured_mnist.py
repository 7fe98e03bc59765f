"""From 32-64 channels to a quarter, on full MNIST: accuracy, bytes and time against the dense model with the same fine-tuning.

Rows hold counts on the 10,000 test images, paired with the control: `gained` are right here and wrong there.
`cpu_ratio_64` is the CPU time in ONNX Runtime with 64 images, over the control's, with one thread.
"""
import tempfile
from pathlib import Path

from common import CNN
from runner import Study, main

from course_lib import data, deploy, models, pruning, report, training

EPOCHS, TUNING_EPOCHS, RATE = 5, 5, 3e-3
WIDTHS = (16, 16), (8, 16)
CONTROL = "dense, fine-tuned"


def unit(_: str, seed: int) -> list[dict]:
    """Dense, thinned by the magnitude of units and fine-tuned, and as narrow from scratch with the same number of epochs."""
    digits = data.load(seed=seed)

    def fit(model, epochs):
        return training.fit(model, digits.train, epochs=epochs, lr=RATE, seed=seed)[0]

    training.set_seed(seed)
    dense = fit(models.cnn(digits.channels, digits.image_size), EPOCHS)
    candidates, before = {CONTROL: fit(dense, TUNING_EPOCHS)}, {CONTROL: dense}
    groups = pruning.unit_groups(dense, digits.train.images[:2])
    scores = pruning.unit_magnitude(dense, groups)
    for widths in WIDTHS:
        amounts = {group.name: 1 - width / group.size for group, width in zip(groups, widths)}
        thin = pruning.remove_units(dense, groups, pruning.choose_units(groups, scores, amount=amounts))
        training.set_seed(seed)
        start = models.cnn(digits.channels, digits.image_size, widths=widths)
        name = "-".join(map(str, widths))
        before[f"{name}, removed and fine-tuned"] = thin
        candidates |= {f"{name}, removed and fine-tuned": fit(thin, TUNING_EPOCHS),
                       f"{name}, from scratch": fit(start, EPOCHS + TUNING_EPOCHS)}
    return measured(candidates, before, digits.test)


def measured(candidates: dict, before: dict, test: data.Split) -> list[dict]:
    """A row for each model; the first is the control."""
    right = {name: training.predict(model, test.images) == test.labels for name, model in candidates.items()}
    rows = []
    for row in report.measure(candidates, test, batches=(1, 64)):
        with tempfile.TemporaryDirectory() as folder:
            onnx_bytes = deploy.export_onnx(candidates[row.name], Path(folder, "model.onnx"), test.images[:64])
        correct, control = right[row.name], right[CONTROL]
        rows.append({"model": row.name, "accuracy": row.accuracy.value, "correct": int(correct.sum()), "n": len(test),
                     "gained": int((correct & ~control).sum()), "lost": int((control & ~correct).sum()),
                     "parameters": row.parameters, "macs": row.macs,
                     "onnx_bytes": onnx_bytes, "safetensors_bytes": row.file_bytes,
                     **{f"cpu_ratio_{batch}": latency.cpu_ratio.value for (_, batch), latency in row.latency.items()},
                     **{f"cpu_ratio_{batch}_low": latency.cpu_ratio.low for (_, batch), latency in row.latency.items()},
                     **{f"cpu_ratio_{batch}_high": latency.cpu_ratio.high for (_, batch), latency in row.latency.items()}})
        if row.name in before:
            rows[-1]["accuracy_before"] = training.evaluate(before[row.name], test).value
    return rows


if __name__ == "__main__":
    main(Study("pruning_structured_mnist", (CNN,), (0, 1, 2), unit, dataset="mnist"))
