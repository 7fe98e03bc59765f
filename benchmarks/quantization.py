"""Time of quantization beside PyTorch, torchao, numpy and scikit-learn, on 10 thousand to 10 million numbers.

    python benchmarks/quantization.py [--blocks 15] [--largest 7] [--quick]

Five tasks, each with the contestants that can do the same, on normally distributed numbers and one given grid:

    fake quantize   one scale, 8 bits:  fake_quantize        | fake_quantize_per_tensor_affine; torchao
    by channel      256 scales, 8 bits: fake_quantize        | fake_quantize_per_channel_affine; torchao
    to integers     256 scales, 8 bits: quantize             | quantize_per_channel; torchao
    codebook        16 values:          k_means, assign      | scikit-learn's KMeans, same start and rounds
    pack            4 bits and 1 bit:   pack                 | numpy.packbits, after unpackbits for 4 bits

PyTorch has no function that only finds the integers and leaves them as such: quantize_per_channel wraps them in a
tensor type of its own. course_lib and no other contestant looks for NaN and infinity (or, in `pack`, for numbers that
do not fit); that is part of its time.

Time is CPU time with one thread; a ratio is the median over blocks of the ratio of speeds inside one block, in which
all take turns in random order, with its 95 % interval. Above 1, course_lib is faster; the last column says whether
it reaches 0.8 of the fastest. "Growth" is its time for each number, relative to that at the smallest size of the task:
1 is linear. Results of 32 MB and more come from fresh pages that the system must clear; "a copy" shows what of the
growth that is.
"""
import argparse
import contextlib
import gc
import io
import time
import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from tqdm import tqdm

from course_lib import intervals, timing
from course_lib.quantization import affine, codebook, packing

with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import quant_primitives as torchao

TASKS = ("a copy", "fake quantize", "by channel", "to integers", "codebook", "pack 4 bits", "pack 1 bit")
CHANNELS, CENTROIDS, ROUNDS = 256, 16, 20
SHORTEST = 0.02         # seconds; a quick call is repeated until a turn lasts so long


def contestants(task: str, count: int) -> dict[str, callable]:
    """Functions without arguments that all compute the same; the first is ours."""
    generator = torch.Generator().manual_seed(0)
    if task == "a copy":
        x = torch.randn(count, generator=generator)
        return {"ours": x.clone}
    if task == "codebook":
        return codebooks(torch.randn(count, generator=generator))
    if task.startswith("pack"):
        bits = int(task.split()[1])
        codes = torch.randint(2**bits, (count,), generator=generator, dtype=torch.uint8)
        return {"ours": lambda: packing.pack(codes, bits), "numpy": lambda: packed_by_numpy(codes.numpy(), bits)}
    x = torch.randn(CHANNELS, count // CHANNELS, generator=generator)
    axis = None if task == "fake quantize" else 0
    grid = affine.grid_for(x, 8, axis=axis, signed=True)
    scale, zero_point, low, high = grid.scale, grid.zero_point, grid.quant_min, grid.quant_max
    block = tuple(x.shape) if axis is None else (1, x.shape[1])
    if task == "to integers":
        return {"ours": lambda: affine.quantize(x, grid),
                "PyTorch": lambda: torch.quantize_per_channel(x, scale, zero_point, 0, torch.qint8),
                "torchao": lambda: torchao.quantize_affine(x, block, scale, zero_point, torch.int8, low, high)}
    theirs = ((lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)) if axis is None
              else lambda: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, low, high))
    return {"ours": lambda: affine.fake_quantize(x, grid), "PyTorch": theirs,
            "torchao": lambda: torchao._fake_quantize_affine(x, block, scale, zero_point, torch.int8, low, high)}


def codebooks(x: torch.Tensor) -> dict[str, callable]:
    start = torch.linspace(float(x.min()), float(x.max()), CENTROIDS)

    def ours():
        table = codebook.k_means(x, CENTROIDS, init=start, iterations=ROUNDS)
        return table[codebook.assign(x, table).long()]

    def theirs():
        found = KMeans(CENTROIDS, init=start[:, None].numpy(), n_init=1, max_iter=ROUNDS, tol=0).fit(x[:, None].numpy())
        return torch.from_numpy(found.cluster_centers_[found.labels_, 0])

    return {"ours": ours, "scikit-learn": theirs}


def packed_by_numpy(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits > 1:
        codes = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(codes, bitorder="little")


def check(task: str, results: dict) -> None:
    """Raise AssertionError where contestants disagree; ties go either way in PyTorch's integers."""
    ours, *others = [torch.as_tensor(r.int_repr() if getattr(r, "is_quantized", False) else r) for r in results.values()]
    for other in others:
        difference = (ours.double() - other.double()).abs()
        allowed = {"to integers": 1, "codebook": 1e-2}.get(task, 0)
        if difference.max() > allowed and (difference > allowed).float().mean() > 1e-3:
            raise AssertionError(f"{task}: the results differ by {difference.max():.3g}")


def cpu_seconds(run, times: int) -> float:
    gc.collect()
    begin = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - begin) / times


def compare(task: str, count: int, blocks: int, rng: np.random.Generator) -> tuple[float, dict[str, intervals.Estimate]]:
    """Seconds of ours, and our speed relative to each other contestant's."""
    who = contestants(task, count)
    check(task, {name: run() for name, run in who.items()})         # also warms up
    seconds = {name: [] for name in who}
    with timing.one_thread():
        times = {name: max(1, round(SHORTEST / cpu_seconds(run, 1))) for name, run in who.items()}
        for _ in range(blocks):
            for name in rng.permutation(list(who)):
                seconds[name].append(cpu_seconds(who[name], times[name]))
    ours = np.array(seconds["ours"])
    return float(np.median(ours)), {name: intervals.bootstrap_median(np.array(other) / ours)
                                    for name, other in seconds.items() if name != "ours"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of quantization relative to PyTorch, torchao, numpy and scikit-learn.")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--largest", type=int, default=7, help="up to 10^this numbers")
    parser.add_argument("--quick", action="store_true", help="5 blocks, up to 10^6 numbers")
    options = parser.parse_args()
    blocks, largest = (5, 6) if options.quick else (options.blocks, options.largest)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    rng = np.random.default_rng(0)
    print(f"{blocks} blocks, one thread; speed of course_lib relative to the others, above 1 is faster\n")
    print(f"{'task':14} {'numbers':>10} {'ms':>9} {'growth':>6}   {'relative speed':70} >= 0.8 of the fastest", flush=True)
    first = {}
    for task in TASKS:
        for power in tqdm(range(4, largest + 1), desc=task, disable=None, leave=False):
            count = 10**power // CHANNELS * CHANNELS
            seconds, speeds = compare(task, count, blocks, rng)
            growth = seconds / count / first.setdefault(task, seconds / count)
            shown = ", ".join(f"{name} {s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for name, s in speeds.items())
            reached = "yes" if all(s.value >= 0.8 for s in speeds.values()) else "NO"
            print(f"{task:14} {count:10,} {1e3 * seconds:9.3f} {growth:6.2f}   {shown:70} {reached if speeds else ''}", flush=True)


if __name__ == "__main__":
    main()
