"""The ruler: one row per model, every column measured the same way.

`measure` takes all models at once, because latencies mean something only side by side. `compare`
shows the rows as a table; `pareto_front` says which models no other beats, `choose` which of them a place allows.
Book: chapter 1, "The ruler".
"""
import copy
import dataclasses

import torch
from torch import nn

from . import choosing, cost, deploy, energy, files, intervals, joules, predictors, timing, training
from .data import Split
from .intervals import format_estimate
from .joules import Joules
from .tables import Comparison, format_bytes, format_seconds

__all__ = ["Latency", "Row", "choose", "columns_of", "compare", "measure", "pareto_front"]

ONNX_RUNTIME, EAGER = "ONNX Runtime", "eager PyTorch"


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one call in one runtime at one batch size, with one thread.

    ratio, cpu_ratio: to the first model, in wall and in CPU time; control: the A/A control of that run;
    differs: the ratio's interval lies outside both 1 and the control.
    """
    seconds: float
    ratio: intervals.Estimate
    cpu_ratio: intervals.Estimate
    control: intervals.Estimate
    differs: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on the ruler. `difference` is the accuracy minus that of the first model, paired.

    latency: keyed by (runtime, batch size); joules: the energy column.
    """
    name: str
    accuracy: training.Accuracy
    difference: intervals.Estimate
    file_bytes: int
    parameters: int
    nonzeros: int
    macs: int
    latency: dict[tuple[str, int], Latency]
    joules: Joules | None = None


def measure(models: dict[str, nn.Module], split: Split, *, batches: tuple[int, ...] = (1, 64),
            runtimes: tuple[str, ...] = (ONNX_RUNTIME,), blocks: int = 30, seed: int = 0,
            counter: energy.Counter | None = None) -> list[Row]:
    """Put models on the ruler, one row each; the first is the reference of every ratio and difference.

    Args:   models: names and models; split: the images to judge them on, at least as many as the largest batch.
            runtimes: "ONNX Runtime" (the deployed form) and "eager PyTorch"; blocks, seed: see `timing.compare`.
            counter: what measures energy; None for the one that this machine has, if any.
    Raises: ValueError for an unknown runtime, no model, or too few images.
    """
    unknown = set(runtimes) - {ONNX_RUNTIME, EAGER}
    if not models or unknown or min(batches, default=1) < 1 or len(split) < max(batches, default=0):
        raise ValueError(f"need a model, batches >= 1, runtimes among {ONNX_RUNTIME!r} and {EAGER!r}, and as many images "
                         f"as the largest batch; got {list(models)}, {list(runtimes)}, {len(split)} images for {batches=}")
    predictions = {name: training.predict(model, split.images) for name, model in models.items()}
    reference = predictions[next(iter(models))]
    latencies, timings, functions = {name: {} for name in models}, {}, {}
    for runtime in runtimes:
        runners = {name: _runner(model, split, runtime) for name, model in models.items()}
        for batch in batches:
            images = split.images[:batch]
            inputs = images.numpy() if runtime == ONNX_RUNTIME else images
            calls = {n: lambda run=run, inputs=inputs: run(inputs) for n, run in runners.items()}
            timed = timing.compare(calls, blocks=blocks, seed=seed, until=timing.precise(), max_blocks=5 * blocks)
            functions[runtime, batch], timings[runtime, batch] = calls, timed
            for name in models:
                latencies[name][runtime, batch] = Latency(
                    timed.seconds(name), timed.ratio(name), timed.ratio(name, clock="cpu"), timed.control(),
                    timed.differs(name))
    costs = {name: cost.layer_costs(model, split.images[:1]) for name, model in models.items()}
    column = joules.joules_of(costs, timings, functions, batches, counter=counter, seed=seed)
    return [Row(name, training.Accuracy(int((predictions[name] == split.labels).sum()), len(split)),
                training.compare_predictions(reference, predictions[name], split.labels), files.saved_bytes(model),
                cost.parameters(model), cost.nonzeros(model), sum(layer.macs for layer in costs[name]), latencies[name],
                column[name])
            for name, model in models.items()]


def _runner(model: nn.Module, split: Split, runtime: str):
    """A function from a batch of images to logits in the given runtime."""
    if runtime == ONNX_RUNTIME:
        return deploy.load_onnx(deploy.onnx_bytes(model, split.images[:64]))
    return torch.no_grad()(copy.deepcopy(model).eval())


def compare(rows: list[Row]) -> Comparison:
    """Show rows as a table: units, intervals, and the conditions under which they hold."""
    import pandas as pd
    if not rows:
        raise ValueError("need at least one row to compare")
    first, records, controls = rows[0], {}, {}
    for row in rows:
        record = {"accuracy, %": format_estimate(row.accuracy.interval, "{:.1f}", 100),
                  "Δ points": "–" if row is first else format_estimate(row.difference, "{:+.1f}", 100),
                  "file": format_bytes(row.file_bytes), "non-zeros": f"{row.nonzeros:,}", "MACs": f"{row.macs:,}"}
        for (runtime, batch), latency in row.latency.items():
            own = "1" if row is first else format_estimate(latency.ratio, "{:.2f}") + ("" if latency.differs else " ≈")
            cpu = "" if row is first else f" · CPU {latency.cpu_ratio.value:.2f}"
            record[f"time, batch {batch} ({runtime})"] = f"{own}{cpu} · {format_seconds(latency.seconds)}"
            controls[f"{runtime}, batch {batch}"] = format_estimate(latency.control, "{:.2f}")
        records[row.name] = record | (joules.cells(row.joules, first=row is first) if row.joules else {})
    frame = pd.DataFrame(records)       # a column for each model: few models have many figures
    caption = [f"Accuracy: on {first.accuracy.n:,} test images; Δ: its difference to “{first.name}”. Intervals: 95 %. "
               "File: safetensors."]
    if first.latency:
        caption.append(f"Time: ratio to “{first.name}” with one thread, the ratio of CPU times, and the median time of a call; "
                       "≈ means: not to be told from the first. The first model against itself: "
                       + "; ".join(f"{k}: {v}" for k, v in controls.items()) + ".")
    if first.joules:
        caption += joules.caption(first.joules, first.name)
    return Comparison(frame, "\n".join(caption))


def pareto_front(rows: list[Row], cost_of) -> list[str]:
    """Names of the rows that no other row beats: none is as accurate and as cheap, and better in one.

    Args: cost_of: from a row to a number, smaller is better, e.g. `lambda row: row.file_bytes`.
    """
    if not rows:
        return []
    best = predictors.pareto_mask([cost_of(row) for row in rows], [row.accuracy.value for row in rows])
    return [row.name for row, beats_all in zip(rows, best) if beats_all]


def choose(results, *, at_most: dict[str, float] | None = None, at_least: dict[str, float] | None = None,
           **which) -> choosing.Choice:
    """Say which models a place's limits allow, and which of those no other beats.

    Args:   results: rows of `measure`, with columns as in `columns_of`, which also takes `which`; or a table of one's own.
            at_most, at_least: limits by column; "lost" is the accuracy lost against the first model: 0.01 is a point.
    Raises: as `choosing.choose` and `columns_of`.
    """
    rows = isinstance(results, (list, tuple)) and all(isinstance(row, Row) for row in results)
    if which and not rows:
        raise ValueError(f"{', '.join(which)}: only rows of `measure` can be read in several ways")
    return choosing.choose(columns_of(results, **which) if rows else results, at_most=at_most, at_least=at_least)


def columns_of(rows: list[Row], *, runtime: str = ONNX_RUNTIME, batch: int = 1, tier: str = energy.MODELLED,
               weights: str = energy.DRAM) -> dict[str, dict[str, intervals.Estimate]]:
    """The rows as a table for `choose`: accuracy, lost (against the first row), bytes, parameters, macs, seconds of a call,
    cpu_ratio (its CPU time over the first row's), and joules of an inference, as far as the rows have them in this runtime,
    batch and tier.

    The interval of seconds is that of the ratio to the first row; the first row's own is its A/A control. A modelled or declared
    energy is as wide as its constants are uncertain. Tiers do not mix: one table has one.
    Raises: ValueError for no row, two rows of one name, or an unknown tier.
    """
    if not rows or tier not in (energy.MEASURED, energy.DECLARED, energy.MODELLED):
        raise ValueError(f"need at least one row and a known tier of energy; got {len(rows)} rows and {tier!r}")
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"each row needs a name of its own; got {[row.name for row in rows]}")
    table = {}
    for row in rows:
        counted = {"bytes": row.file_bytes, "parameters": row.parameters, "macs": row.macs}
        own = {name: intervals.Estimate(n, n, n) for name, n in counted.items()}
        own |= {"accuracy": row.accuracy.interval, "lost": intervals.Estimate(
            0.0 - row.difference.value, 0.0 - row.difference.high, 0.0 - row.difference.low)}
        if (timed := row.latency.get((runtime, batch))) is not None:
            ratio = timed.control if row is rows[0] else timed.ratio
            own["cpu_ratio"] = timed.cpu_ratio
            own["seconds"] = intervals.Estimate(timed.seconds, timed.seconds * min(1, ratio.low / ratio.value),
                                                timed.seconds * max(1, ratio.high / ratio.value))
        key = (batch, weights) if tier == energy.MODELLED else (runtime, batch)
        if (amount := getattr(row.joules, tier, {}).get(key)) is not None:
            joule = amount[0]
            middle = (joule.low * joule.high)**0.5 if joule.value is None else joule.value
            own["joules"] = intervals.Estimate(middle, joule.low, joule.high)
        table[row.name] = own
    return table
