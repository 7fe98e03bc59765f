"""Joules of the course's models side by side, to be quoted: long windows, and several process runs to be pooled.

One unit is one fresh process at one batch size. Where the machine has a counter the energy is measured, gross and net of
idle power, in windows of ten seconds; where it has none the ratios are declared, that is those of CPU times, and the rows
say so. Units run one after the other, and want a quiet machine.
"""
from pathlib import Path

import torch
from fresh import answered, fresh_process
from runner import Study, main

from course_lib import deploy, energy, models, pruning, timing

SCRIPT = Path(__file__).resolve()
RUNS = 5


def networks() -> dict[str, torch.nn.Module]:
    """Dense, masked, and with the shapes that structured pruning leaves; the first is the reference."""
    dense, convolutional = models.lenet_300_100(), models.cnn()
    return {"LeNet-300-100": dense, "LeNet masked 90 %": pruning.prune(dense, amount=0.9),
            "LeNet 150-50": models.mlp(hidden=(150, 50)), "CNN 32-64": convolutional,
            "CNN masked 80 %": pruning.prune(convolutional, amount=0.8), "CNN 16-32": models.cnn(widths=(16, 32))}


def process_run(batch: int, seed: int, seconds: float | None = None, blocks: int = 8) -> list[dict]:
    """One process run; seconds: length of a window, by default ten where there is a counter and one where there is none."""
    torch.manual_seed(seed)
    counter = energy.best_available().counter
    seconds = seconds or (energy.HEADLINE_SECONDS if counter else 1.0)
    images, example = torch.rand(batch, 1, 28, 28), torch.rand(64, 1, 28, 28)
    opened = {name: deploy.load_onnx(deploy.onnx_bytes(model, example)) for name, model in networks().items()}
    calls = {name: lambda run=run: run(images.numpy()) for name, run in opened.items()}
    idle = energy.idle(counter, seconds=seconds) if counter else None
    paired = energy.compare(calls, counter=counter, window_seconds=seconds, blocks=blocks, inferences=batch, seed=seed)
    return [row(paired, name, power) for name in (*calls, timing.AGAIN) for power in ([None, idle] if idle else [None])]


def row(paired: energy.Paired, name: str, idle: energy.Idle | None) -> dict:
    """Amount and ratio with all that says how they were found; a declared energy has no single value."""
    amount, ratio = paired.energy(name, idle=idle), paired.ratio(name, idle=idle)
    return {"model": name, "tier": ratio.tier, "method": ratio.method, "boundary": ratio.boundary, "ratio": ratio.estimate.value,
            "ratio_low": ratio.estimate.low, "ratio_high": ratio.estimate.high, "joules_low": amount.low, "joules_high": amount.high,
            "wall_ratio": paired.timings.ratio(name).value, "cpu_ratio": paired.cpu_ratio(name).estimate.value}


def unit(configuration: str, seed: int) -> list[dict]:
    """One process run at the batch size that the configuration names."""
    return fresh_process(SCRIPT, "process_run", batch=int(configuration.split()[-1]), seed=seed)


if __name__ == "__main__" and not answered(process_run):
    main(Study("energy_headline", ("batch 1", "batch 64"), tuple(range(RUNS)), unit,
               dataset="random images", jobs=1, measured=True))
