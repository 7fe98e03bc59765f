"""What a runtime gains and what compression gains: one CNN, dense and compressed, in three runtimes, side by side in one run.

    python benchmarks/runtimes.py [--blocks 30] [--quick] [--no-memory]

The source article's CNN and LeNet-5 are the dense networks. The compressed forms are half the channels, a low rank, 8-bit integers, the student
16-16-16, and the student in integers. Each runs in eager PyTorch, ONNX Runtime and ExecuTorch (XNNPACK) with one thread, for 1 and 64
images. All take turns in random order in the same blocks. The weights are random: time does not depend on them. Which forms are as accurate as the dense networks, the
studies `deployment_cnn` and `distillation_lenet5` say (full MNIST, five seeds): the student, also in ExecuTorch's integers.

Columns: µs of CPU time of a call; `runtime`: how many times faster than the same form in eager PyTorch; `form`: how many times faster
than the article's CNN in the same runtime, with its 95 % interval, and by wall time; `LeNet-5`: the same against LeNet-5. A form and a runtime multiply: eager CNN to
compressed form in the runtime is runtime(CNN) × form. "floor" is a single small matrix, nearly an empty call: no model in that runtime can be faster.
File: safetensors, ONNX, .pte (made for one batch size). Memory: peak of loading and running once, beyond a process that has imported the runtime,
median of fresh processes; the floor's is what the runtime takes for itself. Import: seconds of a fresh process, less one that imports numpy only.
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from course_lib import deploy, files, low_rank, memory, mobile, models, results, timing
from course_lib.report import format_bytes

EAGER, ONNX, PTE = RUNTIMES = ("eager PyTorch", "ONNX Runtime", "ExecuTorch")
CNN, LENET, STUDENT, FLOOR = "CNN 32-64", "LeNet-5", "student", "784-10 (floor)"
BATCHES = (1, 64)
AIMS = {(CNN, 1): 2.5, (CNN, 64): 6.0, (LENET, 1): 7.0, (LENET, 64): 15.0}
IMPORTS = {"numpy": "import numpy", EAGER: "import numpy, torch", ONNX: "import numpy, onnxruntime",
           PTE: "import numpy, torch, executorch.extension.pybindings._portable_lib"}


def forms() -> dict[str, nn.Module]:
    """The networks with random weights, in float32; the first is the reference."""
    torch.manual_seed(0)
    cnn = models.cnn()
    return {name: model.eval() for name, model in {
        CNN: cnn, LENET: models.lenet5(), "half the channels": models.cnn(widths=(16, 32)),
        "rank 16": low_rank.factorize(cnn, {"3": 16}), STUDENT: models.student(widths=(16, 16, 16)),
        FLOOR: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))}.items()}


def contents(built: dict[str, nn.Module], batch: int) -> dict[tuple[str, str], bytes]:
    """The files of every form by runtime and name; the CNN and the student also in int8."""
    images, found = torch.rand(max(2, batch), 1, 28, 28), {}
    for name, model in built.items():
        found[ONNX, name] = deploy.onnx_bytes(model, images)
        found[PTE, name] = mobile.pte_bytes(model, images[:batch])
    for name in (CNN, STUDENT):
        seen = torch.rand(64, 1, 28, 28)
        found[ONNX, f"{name}, int8"] = deploy.quantize_onnx(found[ONNX, name], seen, mode="static", per_channel=True, reduce_range=True)
        found[PTE, f"{name}, int8"] = mobile.pte_bytes(built[name], images[:batch], calibration=seen)
    return found


def measure(built: dict[str, nn.Module], found: dict[tuple[str, str], bytes], batch: int, blocks: int) -> timing.Timings:
    """Every form in every runtime, in turn; names are "runtime | form"."""
    images = torch.rand(batch, 1, 28, 28)
    array = images.numpy()
    calls = {f"{EAGER} | {name}": lambda model=model: model(images) for name, model in built.items()}
    for (runtime, name), content in found.items():
        run = (deploy.load_onnx if runtime == ONNX else mobile.load_pte)(content)
        calls[f"{runtime} | {name}"] = lambda run=run: run(array)
    with torch.inference_mode():
        return timing.compare(calls, blocks=blocks)


def peaks(built: dict[str, nn.Module], found: dict[tuple[str, str], bytes], batch: int, repeats: int) -> dict[tuple[str, str], float]:
    """Peak memory of each form in each runtime, bytes."""
    images = np.zeros((batch, 1, 28, 28), dtype=np.float32)
    peak = {key: memory.file_peak(content, images, runtime=key[0], repeats=repeats).value for key, content in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in built.items():
            if name != FLOOR:                           # no builder of the course made it
                path = Path(folder, "model.safetensors")
                files.save(model, path)
                peak[EAGER, name] = memory.peak_bytes(
                    f"with torch.inference_mode():\n    files.load({str(path)!r})(torch.zeros({batch}, 1, 28, 28))",
                    setup="import torch\nfrom course_lib import files, models, low_rank", repeats=repeats).value
    return peak


def import_seconds(repeats: int = 5) -> dict[str, float]:
    """Median seconds of a fresh process that imports a runtime, less one that imports numpy only."""
    taken = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) - statistics.median(taken["numpy"]) for name, t in taken.items() if name != "numpy"}


def table(timed: timing.Timings, sizes: dict[tuple[str, str], int], peak: dict[tuple[str, str], float], batch: int) -> list[str]:
    """A line for each runtime and form."""
    lines = [f"batch {batch}; eager CNN against itself: {timed.control(clock='cpu')!r} CPU, {timed.control()!r} wall",
             f"{'runtime':14} {'form':18} {'µs':>8} {'runtime':>8}   {'form, CPU':22} {'wall':>6} {'LeNet-5':>8} {'file':>9} {'memory':>9}"]
    for key in timed.calls:
        if " | " not in key:
            continue
        runtime, name = key.split(" | ")
        same = f"{EAGER} | {name}"
        gain = 1 / timed.ratio(key, to=same, clock="cpu").value if same in timed.calls else float("nan")
        cpu = timed.ratio(f"{runtime} | {CNN}", to=key, clock="cpu")
        wall = timed.ratio(f"{runtime} | {CNN}", to=key).value
        lenet = timed.ratio(f"{runtime} | {LENET}", to=key, clock="cpu").value
        size, most = sizes.get((runtime, name)), peak.get((runtime, name))
        lines.append(f"{runtime:14} {name:18} {1e6 * timed.seconds(key, clock='cpu'):8.1f} {gain:8.2f}   "
                     f"{f'{cpu.value:.2f} [{cpu.low:.2f}, {cpu.high:.2f}]':22} {wall:6.2f} {lenet:8.2f} "
                     f"{format_bytes(size) if size else '–':>9} {format_bytes(round(most)) if most is not None else '–':>9}")
    return lines


def aims(timed: dict[int, timing.Timings]) -> list[str]:
    """The student against the dense networks in the same runtime, in float32 and in ExecuTorch's integers: is the aim reached?"""
    lines = []
    for (dense, batch), aim in AIMS.items():
        for runtime, form in [*((runtime, STUDENT) for runtime in RUNTIMES), (PTE, f"{STUDENT}, int8")]:
            gain = timed[batch].ratio(f"{runtime} | {dense}", to=f"{runtime} | {form}", clock="cpu")
            lines.append(f"{form:13} against {dense:9} batch {batch:2}, {runtime:13}: {gain.value:6.2f} [{gain.low:.2f}, {gain.high:.2f}], "
                         f"aim {aim:4}: " + ("reached" if gain.low >= aim else "missed"))
    return lines


def accuracy() -> list[str]:
    """What the studies say of the student's accuracy against both dense networks."""
    found = []
    for study, dense, form in (("deployment_cnn", CNN, ""), ("distillation_lenet5", LENET, ""), ("deployment_cnn", CNN, ", int8")):
        stored = results.load(study)
        d = stored.difference("accuracy", {"model": dense}, {"model": f"student, taught{form}"})
        found.append(f"student{form} minus {dense}: {100 * d.value:+.2f} points [{100 * d.low:+.2f}, {100 * d.high:+.2f}] ({stored.caption})")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The gain of the runtime and the gain of the compression.")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="5 blocks, no memory")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, which takes most of the time")
    options = parser.parse_args(arguments)
    blocks, with_memory = (5, False) if options.quick else (options.blocks, not options.no_memory)
    begin, built, timed = time.perf_counter(), forms(), {}
    for batch in BATCHES:
        found = contents(built, batch)
        sizes = {key: len(content) for key, content in found.items()}
        sizes |= {(EAGER, name): files.saved_bytes(model) for name, model in built.items() if name != FLOOR}
        timed[batch] = measure(built, found, batch, blocks)
        peak = peaks(built, found, batch, repeats=3) if with_memory else {}
        print("\n".join(table(timed[batch], sizes, peak, batch)), end="\n\n", flush=True)
    print("How many times faster, in the same runtime:", *aims(timed), *accuracy(), sep="\n")
    print("import: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in import_seconds().items()))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
