"""On full MNIST: few bits with a learned step, and the CNN in 8-bit integers, against the float32 network with the same fine-tuning.

Rows hold counts on the 10,000 test images, paired with the control: `gained` are right here and wrong there. `payload_bytes` are the
numbers alone, `file_bytes` the whole safetensors file. `cpu_ratio_64` is the CPU time in ONNX Runtime with 64 images, over the
control's, with one thread; only the integers have one, since packed weights are multiplied as float32.
"""
from common import CNN, LENET
from runner import Study, main
from torch import nn

from course_lib import data, deploy, files, models, report, training
from course_lib.quantization import calibration, qat, static

EPOCHS, RATE = {LENET: (8, 6), CNN: (5, 3)}, {LENET: 2e-3, CNN: 3e-3}
TUNING_RATE = 1e-3
CONTROL = "float32, fine-tuned"
INTEGERS = {"int8, a scale for each channel": True, "int8, a scale for each layer": False}


def unit(network: str, seed: int) -> list[dict]:
    """Train; fine-tune in float32, with 2 bits and with 1; store what was trained, and turn the CNN into integers."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    start = (models.lenet_300_100 if network == LENET else models.cnn)(digits.channels, digits.image_size)
    epochs, tuning_epochs = EPOCHS[network]
    dense, _ = training.fit(start, digits.train, epochs=epochs, lr=RATE[network], seed=seed)

    def tuned(model):
        return training.fit(model, digits.train, epochs=tuning_epochs, lr=TUNING_RATE, seed=seed + 1)[0]

    candidates = {CONTROL: tuned(dense), "float32": dense}
    for bits, name in ((2, "2 bits, learned step"), (1, "1 bit, learned step")):
        candidates[name] = qat.to_stored(tuned(qat.fake_quantized(dense, bits, method="learned step")))
    times = {}
    if network == CNN:
        control = candidates[CONTROL]
        grids = calibration.calibrate(control, digits.validation.images)
        integers = {name: static.quantize_static(control, grids, per_channel=each) for name, each in INTEGERS.items()}
        candidates |= integers
        times = {row.name: row.latency for row in report.measure({CONTROL: control} | integers, digits.test, batches=(1, 64))}
    return rows(candidates, times, digits.test)


def rows(candidates: dict[str, nn.Module], times: dict, test: data.Split) -> list[dict]:
    """A row for each model; the first is the control."""
    right = {name: training.predict(model, test.images) == test.labels for name, model in candidates.items()}
    control, found = right[CONTROL], []
    for name, model in candidates.items():
        row = {"model": name, "accuracy": int(right[name].sum()) / len(test), "n": len(test),
               "gained": int((right[name] & ~control).sum()), "lost": int((control & ~right[name]).sum()),
               "payload_bytes": files.payload_bytes(model), "file_bytes": files.saved_bytes(model)}
        if name in times:
            row["onnx_bytes"] = len(deploy.onnx_bytes(model, test.images[:64]))
        for (_, batch), latency in times.get(name, {}).items():
            ratio = latency.cpu_ratio
            row |= {f"cpu_ratio_{batch}": ratio.value, f"cpu_ratio_{batch}_low": ratio.low, f"cpu_ratio_{batch}_high": ratio.high}
        found.append(row)
    return found


if __name__ == "__main__":
    main(Study("quantization_mnist", (LENET, CNN), (0, 1, 2), unit, dataset="mnist", jobs=1))
