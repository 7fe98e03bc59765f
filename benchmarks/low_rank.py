"""Time of factorised against dense linear layers: the rank at which low rank begins to pay, by MACs and by the clock.

    python benchmarks/low_rank.py [--blocks 20] [--largest 4096] [--quick]

A square layer (n × n, with bias) and its factors of rank n/16, n/8, … 3n/4, n from 64 to 4096, for batches of 1 and 64,
in eager PyTorch and in ONNX Runtime. By multiply-accumulates and by bytes the factors are cheaper below n/2; by the
clock that depends on what a second layer costs to call and on what fits into the caches.

The weights are random: time does not depend on them. Time is CPU time with one thread. For each size, runtime and batch
the dense layer, all factors and an empty call (a model that only passes its input on: the floor under every layer) take
turns in random order; a ratio is the median over blocks of the ratio inside one block, with its 95 % interval. "By the
clock" is the rank at which the ratio of factors to dense layer crosses 1, between the ranks tried; in brackets where the
upper and the lower ends of the intervals cross it. "none" says that not even n/16 is faster, "all" that even 3n/4 is.
"Control" is the dense layer against itself: how far from 1 is noise here.
"""
import argparse
import time

import torch
from torch import nn
from tqdm import tqdm

from course_lib import deploy, low_rank, timing
from course_lib.intervals import Estimate

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)          # rank / n
TURN = 0.003            # seconds that a dense layer's timed call lasts at least
BATCHES, RUNTIMES = (1, 64), ("PyTorch", "ONNX Runtime")


def models(size: int) -> dict[str | int, nn.Module]:
    """The dense layer, its factors by rank, and a model that does nothing."""
    def dense():
        return nn.Sequential(nn.Linear(size, size))

    factors = {rank: low_rank.empty_factorized(dense(), ranks={"0": rank}, method={"0": "channel"})
               for rank in (round(share * size) for share in SHARES)}
    return {"dense": dense().eval(), **factors, "empty": nn.Sequential(nn.Identity()).eval()}


def runnable(model: nn.Module, runtime: str, size: int):
    """A function of a batch, in this runtime."""
    if runtime == "PyTorch":
        return model
    run = deploy.load_onnx(deploy.onnx_bytes(model, torch.rand(2, size)))
    return lambda batch: run(batch.numpy())


@torch.inference_mode()
def measure(functions: dict, batch: torch.Tensor, blocks: int) -> tuple[timing.Timings, int]:
    """All of one size, runtime and batch, side by side; and how often each timed call calls its function.

    As often for all, so that what a call finds in the caches was left there by itself also where the machine is busy.
    """
    times = max(1, round(TURN / min(cpu_seconds(functions["dense"], batch) for _ in range(10))))

    def repeated(run):
        def call():
            for _ in range(times):
                run(batch)
        return call
    return timing.compare({str(name): repeated(run) for name, run in functions.items()}, blocks=blocks), times


def cpu_seconds(run, batch: torch.Tensor) -> float:
    begin = time.process_time()
    run(batch)
    return time.process_time() - begin


def crossing(ranks: list[int], ratios: list[float]) -> float:
    """The first rank at which the ratio reaches 1, linear between neighbours; 0 or infinity where all are above or below."""
    if ratios[0] >= 1:
        return 0.0
    for (r0, y0), (r1, y1) in zip(zip(ranks, ratios), zip(ranks[1:], ratios[1:])):
        if y1 >= 1:
            return r0 + (r1 - r0) * (1 - y0) / (y1 - y0)
    return float("inf")


def break_even(ranks: list[int], ratios: list[Estimate]) -> Estimate:
    """The rank at which the ratio crosses 1: the interval's upper ends cross at the lowest rank."""
    return Estimate(*(crossing(ranks, [getattr(ratio, end) for ratio in ratios]) for end in ("value", "high", "low")))


def shown(rank: float) -> str:
    return {0.0: "none", float("inf"): "all"}.get(rank, f"{rank:.0f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The rank below which factors are faster than a dense layer.")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--largest", type=int, default=4096, help="leave out larger sizes")
    parser.add_argument("--quick", action="store_true", help="5 blocks, sizes up to 512")
    options = parser.parse_args(arguments)
    blocks, largest = (5, min(512, options.largest)) if options.quick else (options.blocks, options.largest)

    torch.manual_seed(0)
    begin = time.process_time()
    print(f"{blocks} blocks, one thread, CPU time; ratios of the factors to the dense layer, below 1 they are faster\n")
    print(f"{'runtime':12} {'batch':>5} {'n':>5} {'dense µs':>9} {'empty':>6}  {'control':7}  "
          + " ".join(f"{f'n·{share:g}':>8}" for share in SHARES) + f"  {'by MACs':>7}  by the clock", flush=True)
    sizes = [size for size in SIZES if size <= largest]
    rows = {}
    for size in tqdm(sizes, desc="sizes", disable=None):
        built = models(size)
        for runtime in RUNTIMES:
            functions = {name: runnable(model, runtime, size) for name, model in built.items()}
            for batch in BATCHES:
                rows[runtime, batch, size] = row(*measure(functions, torch.rand(batch, size), blocks), size)
    for runtime in RUNTIMES:
        for batch in BATCHES:
            for size in sizes:
                print(f"{runtime:12} {batch:5} {size:5} {rows[runtime, batch, size]}", flush=True)
    print(f"\n{time.process_time() - begin:.0f} s of CPU time")


def row(timings: timing.Timings, times: int, size: int) -> str:
    """One line of the table, from the dense layer's time on."""
    ranks = [int(name) for name in timings.calls if name.isdigit()]
    ratios = [timings.ratio(str(rank), clock="cpu") for rank in ranks]
    found = break_even(ranks, ratios)
    dense, empty = (1e6 * timings.seconds(name, clock="cpu") / times for name in ("dense", "empty"))
    return (f"{dense:9.1f} {empty:6.1f}  {timings.control(clock='cpu').value:7.2f}  "
            + " ".join(f"{ratio.value:8.2f}" for ratio in ratios)
            + f"  {low_rank.break_even_rank(size, size):7}  {shown(found.value)} [{shown(found.low)}, {shown(found.high)}]")


if __name__ == "__main__":
    main()
