"""Joules of one inference on an NVIDIA card, by NVML: dense, fewer channels, and bfloat16, side by side.

    pip install nvidia-ml-py
    python benchmarks/gpu_energy.py [--batch 64] [--seconds 10] [--blocks 5]

A residual network with 128 and 256 channels on images of 224×224 (random numbers; about 6.5 billion multiply-accumulates,
more than ResNet-50) is large enough to load a card. "half the channels" has the shape that structured
pruning leaves, "bfloat16" the same weights in two bytes. Windows of at least 10 seconds are interleaved in random order;
idle power is measured first. Run it three times or more and pool the ratios (`energy.pool`) before quoting one. This
course has run it against a stand-in for NVML only, never on a card, and shows no figures from one.
"""
import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn

from course_lib import energy, models


def variants(small: bool = False) -> dict[str, nn.Module]:
    """Networks by name, the dense one first; `small` is for a rehearsal without a card."""
    shape = {"channels": 3, "image_size": 32 if small else 224, "classes": 1000}
    width = 4 if small else 128
    dense = models.resnet(**shape, width=width)
    return {"dense": dense, "half the channels": models.resnet(**shape, width=width // 2), "bfloat16": copy.deepcopy(dense).bfloat16()}


def runners(networks: dict[str, nn.Module], *, batch: int, size: int, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """A function for each model that infers one batch and waits until the card has finished it."""
    def runner(model: nn.Module):
        model = model.to(device).eval()
        images = torch.rand(batch, 3, size, size, device=device, dtype=next(model.parameters()).dtype)

        @torch.no_grad()
        def run() -> torch.Tensor:
            logits = model(images)
            if device == "cuda":
                torch.cuda.synchronize()        # else the counter is read while the card still works
            return logits
        return run
    return {name: runner(model) for name, model in networks.items()}


def report(functions: dict, counter: energy.Counter, *, batch: int, seconds: float, blocks: int,
           idle: energy.Idle | None) -> list[str]:
    """Lines for people: joules per image and the ratio to the first, gross and net of idle power."""
    paired = energy.compare(functions, counter=counter, window_seconds=seconds, blocks=blocks, inferences=batch)
    lines = [f"idle: {idle.watts} W"] if idle else []
    for power in (None, idle) if idle else (None,):
        for name in functions:
            lines += [f"{name}: {paired.energy(name, idle=power)}", f"    ratio to the first: {paired.ratio(name, idle=power)}"]
        lines.append(f"the first against itself: {paired.control(idle=power)}")
    return lines


def main(arguments: list[str] | None = None, *, counter: energy.Counter | None = None, device: str = "cuda",
         small: bool = False) -> None:
    """Run it; counter, device and small stand in for a card, for tests."""
    parser = argparse.ArgumentParser(description="Joules of one inference on an NVIDIA card.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a window")
    parser.add_argument("--blocks", type=int, default=5)
    options = parser.parse_args(arguments)
    if counter is None:
        found = energy.best_available("cuda")
        if found.counter is None or not torch.cuda.is_available():
            raise SystemExit(found.sentence if found.counter is None else "PyTorch sees no CUDA card")
        counter = found.counter
    torch.manual_seed(0)
    idle = energy.idle(counter, seconds=options.seconds, windows=max(2, options.blocks))
    functions = runners(variants(small), batch=options.batch, size=32 if small else 224, device=device)
    for line in report(functions, counter, batch=options.batch, seconds=options.seconds, blocks=options.blocks, idle=idle):
        print(line)


if __name__ == "__main__":
    main()
