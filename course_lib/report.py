"""The ruler: one row per model, every column measured the same way.

`measure` takes all models at once, because latencies mean something only side by side. `compare`
shows the rows as a table; `pareto_front` says which models no other beats. Book: chapter 1, "The ruler".
"""
import copy
import dataclasses
import html
import re

import torch
from torch import nn

from . import cost, deploy, energy, files, intervals, joules, predictors, timing, training
from .data import Split
from .intervals import format_estimate
from .joules import Joules

__all__ = ["Comparison", "Latency", "Row", "compare", "format_bytes", "format_seconds", "measure",
           "pareto_front"]

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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of rows that shows itself in a notebook, with the conditions below it, a line for each column."""
    frame: object
    caption: str

    def _repr_html_(self) -> str:
        # Intervals and times on a line of their own keep the table narrow.
        cells = self.frame.map(_lines).rename(index=_lines, columns=html.escape)
        return (f'<div tabindex="0" style="overflow-x: auto; white-space: nowrap">{cells.to_html(escape=False)}</div>'
                + "".join(map(_paragraph, self.caption.splitlines())))

    def __repr__(self) -> str:
        return f"{self.frame.to_string()}\n{self.caption}"


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


def _paragraph(line: str) -> str:
    """A line of the caption, small, with what it is about in bold."""
    topic, _, text = html.escape(line).partition(": ")
    return f'<p style="font-size: 0.875em; margin: 0.4em 0"><b>{topic}:</b> {text}</p>'


def _lines(text: str) -> str:
    return re.sub(r" (?=[([])|(?<=\)), | · ", "<br>", text)


def pareto_front(rows: list[Row], cost_of) -> list[str]:
    """Names of the rows that no other row beats: none is as accurate and as cheap, and better in one.

    Args: cost_of: from a row to a number, smaller is better, e.g. `lambda row: row.file_bytes`.
    """
    if not rows:
        return []
    best = predictors.pareto_mask([cost_of(row) for row in rows], [row.accuracy.value for row in rows])
    return [row.name for row, beats_all in zip(rows, best) if beats_all]


def format_bytes(n: int) -> str:
    """Bytes for people: 1,234 B, 12.3 kB, 1.07 MB (powers of 1000)."""
    if n < 10_000:
        return f"{n:,} B"
    return f"{n / 1e3:.1f} kB" if n < 999_950 else f"{n / 1e6:.2f} MB"


def format_seconds(seconds: float) -> str:
    """Seconds for people: 12.3 µs, 1.23 ms, 1.23 s."""
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:       # 999.9 µs rounds to 1 ms
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
