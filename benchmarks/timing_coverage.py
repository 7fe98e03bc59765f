"""How far to trust the intervals of `timing.compare`: repeat a comparison whose answer is known.

    python benchmarks/timing_coverage.py [--repeats 100] [--fixed]

A small deployed model is timed against itself (the true ratio is 1) and against two calls of itself
(the true ratio is 2, but for the cost of one call from Python). Each comparison is the one that
`report.measure` makes; with --fixed it takes 30 blocks, however wide the intervals are. The table
says in how many repeats the 95 % interval held the truth: about 95 % would be ideal, 90 % is the aim.
"""
import argparse

import numpy as np
import torch
from tqdm import tqdm

from course_lib import deploy, intervals, models, timing


def deployed():
    """A call of a small model in ONNX Runtime, on one image."""
    model, images = models.cnn(widths=(8, 16)).eval(), torch.rand(2, 1, 28, 28)
    run = deploy.load_onnx(deploy.onnx_bytes(model, images))
    image = images[:1].numpy()
    return lambda: run(image)


def main() -> None:
    parser = argparse.ArgumentParser(description="Repeat a timing whose answer is known; report how often it was right.")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--fixed", action="store_true", help="30 blocks each, however wide the intervals")
    options = parser.parse_args()

    torch.manual_seed(0)
    once = deployed()
    candidates = {"once": once, "the same": once, "twice": lambda: (once(), once())}
    rule = {} if options.fixed else {"until": timing.precise(), "max_blocks": 150}
    results = [timing.compare(candidates, seed=seed, **rule)
               for seed in tqdm(range(options.repeats), desc="comparing", disable=None)]

    blocks = [len(result.wall["once"]) for result in results]
    print(f"{options.repeats} comparisons of {min(blocks)} to {max(blocks)} blocks (median {np.median(blocks):g})")
    print(f"{'ratio':>10} {'clock':>6} {'truth':>6} {'median':>7} {'covered':>8}  95 % interval   median width")
    for name, truth in (("the same", 1), ("twice", 2)):
        for clock in ("wall", "cpu"):
            ratios = [result.ratio(name, clock=clock) for result in results]
            covered = sum(ratio.low <= truth <= ratio.high for ratio in ratios)
            share = intervals.wilson(covered, options.repeats)
            width = np.median([(ratio.high - ratio.low) / ratio.value for ratio in ratios])
            value = np.median([ratio.value for ratio in ratios])
            print(f"{name:>10} {clock:>6} {truth:>6} {value:>7.3f} {share.value:>8.0%}  [{share.low:.0%}, {share.high:.0%}]"
                  f"{'':6} {width:.1%}")
    for name, wrong in (("the same", True), ("twice", False)):
        for clock in ("wall", "cpu"):
            mistaken = sum(result.differs(name, clock=clock) is wrong for result in results)
            what = "called different" if wrong else "not told apart"
            print(f"{what} by mistake ({name}, {clock}): {mistaken} of {options.repeats}")


if __name__ == "__main__":
    main()
