"""The ruler's energy column: joules of each model, measured, declared and modelled beside each other.

The tiers stand in lines of their own and are never mixed. What is compared is always the ratio to the first model;
amounts go into the caption, since a declared or modelled one spans a factor of ten or more and all rows would overlap.
Book: chapter 1, "Column 5: energy".
"""
import contextlib
import dataclasses
from collections.abc import Callable

from . import energy, intervals, timing
from .declared import LayerCost

__all__ = ["Joules", "caption", "cells", "joules_of", "relative"]

BRACKETS = (energy.ON_CHIP, energy.DRAM)
WINDOW_SECONDS, BLOCKS = 0.15, 6        # short, for a notebook; a figure to be quoted needs a study
Key = tuple[str, int]                   # runtime and batch size


@dataclasses.dataclass(frozen=True)
class Joules:
    """Energy of one model per inference, and its ratio to the first model's.

    declared, measured: an amount and a ratio by (runtime, batch size); measured is empty where there is no counter.
    unresolved: where the ratio of CPU times is not to be told from 1, the A/A control considered.
    modelled: an amount and a ratio by (batch size, bracket), as executed; empty where the constants do not
    have the model's data type. sentence: what this machine can say.
    """
    declared: dict[Key, tuple[energy.Energy, energy.Ratio]]
    measured: dict[Key, tuple[energy.Energy, energy.Ratio]]
    modelled: dict[tuple[int, str], tuple[energy.Energy, energy.Ratio]]
    unresolved: frozenset[Key]
    sentence: str


def joules_of(costs: dict[str, list[LayerCost]], timed: dict[Key, timing.Timings],
              functions: dict[Key, dict[str, Callable[[], object]]], batches: tuple[int, ...], *,
              counter: energy.Counter | None = None, seed: int = 0) -> dict[str, Joules]:
    """The column for models that were counted and timed; the first is the reference.

    Args: costs: the layers of each model; timed, functions: per runtime and batch size, what was timed.
          counter: None for the one that `energy.best_available` finds on this machine, if any.
    """
    found = energy.best_available() if counter is None else None
    counter = found.counter if found else counter
    sentence = found.sentence if found else f"It is measured by {counter.method}: {counter.boundary}."
    try:
        measured = {} if counter is None else {
            key: energy.compare(each, counter=counter, window_seconds=WINDOW_SECONDS, blocks=BLOCKS, inferences=key[1], seed=seed)
            for key, each in functions.items()}
    except energy.CounterError as error:        # a reset, say: the rest of the ruler stands, and the caption says why
        measured, sentence = {}, f"Energy could not be measured in this run: {error}."
    amounts = {(batch, weights): _modelled(costs, batch, weights) for batch in batches for weights in BRACKETS}
    first, column = next(iter(costs)), {}
    for name in costs:
        modelled = {key: (amount[name], amount[name] / amount[first]) for key, amount in amounts.items()
                    if name in amount and first in amount}
        column[name] = Joules({key: _declared(timings, name, key[1]) for key, timings in timed.items()},
                              {key: (paired.energy(name), paired.ratio(name)) for key, paired in measured.items()},
                              modelled, frozenset(k for k, t in timed.items() if not t.differs(name, clock="cpu")), sentence)
    return column


def _modelled(costs: dict[str, list[LayerCost]], batch: int, weights: str) -> dict[str, energy.Energy]:
    """The amount of each model that the constants can price; the others are left out, never zero."""
    amounts = {}
    for name, layers in costs.items():
        with contextlib.suppress(energy.UnpricedOperation):
            amounts[name] = energy.modelled_from_costs(layers, batch=batch, weights=weights)
    return amounts


def _declared(timings: timing.Timings, name: str, inferences: int) -> tuple[energy.Energy, energy.Ratio]:
    seconds = intervals.bootstrap_median(timings.cpu[name] / inferences, seed=timings.seed)
    runs = len(timings.cpu[name])
    return energy.declared(seconds, runs=runs), energy.declared_ratio(timings.ratio(name, clock="cpu"), runs=runs)


def relative(joules: Joules, *, tier: str, batch: int, runtime: str = "ONNX Runtime", weights: str = energy.DRAM) -> energy.Ratio:
    """The ratio to the first model in one tier.

    Raises: ValueError for a tier, batch, runtime or bracket that the column does not have.
    """
    table = {energy.MEASURED: joules.measured, energy.DECLARED: joules.declared, energy.MODELLED: joules.modelled}.get(tier)
    key = (batch, weights) if tier == energy.MODELLED else (runtime, batch)
    if not table or key not in table:
        has = "nothing" if not table else ", ".join(map(str, table))
        raise ValueError(f"the column has no {tier!r} energy for {key}; it has {has}")
    return table[key][1]


def cells(joules: Joules, *, first: bool) -> dict[str, str]:
    """The lines of one model in the table: its ratios to the first model, each line with its tier."""
    lines = {}
    for (runtime, batch), (amount, ratio) in joules.measured.items():
        own = "1" if first else intervals.format_estimate(ratio.estimate)
        joule = f"{energy.format_joules(amount.value)} [{energy.format_joules(amount.low)}, {energy.format_joules(amount.high)}]"
        lines[f"energy measured, batch {batch} ({runtime})"] = f"{own} · {joule}"
    for (runtime, batch), (_, ratio) in joules.declared.items():
        own = intervals.format_estimate(ratio.estimate) + (" ≈" if (runtime, batch) in joules.unresolved else "")
        lines[f"energy declared (= CPU time), batch {batch} ({runtime})"] = "1" if first else own
    for batch in dict.fromkeys(batch for batch, _ in joules.modelled):
        on_chip, dram = (joules.modelled[batch, weights][1].estimate for weights in BRACKETS)
        lines[f"energy modelled (as executed), batch {batch}"] = "1" if first else (
            f"{on_chip.value:.2f} on chip · {dram.value:.2f} DRAM")
    return lines


def caption(joules: Joules, name: str) -> list[str]:
    """What stands below the table, a paragraph for each tier: how it was found, and the amounts of the first model, `name`."""
    text = [f"Energy: ratio to “{name}” per inference. {joules.sentence}"]
    if joules.measured:
        amount, _ = next(iter(joules.measured.values()))
        text.append(f"Measured: {amount.method}; {amount.boundary}; ratios from interleaved blocks.")
    if joules.declared:
        power = next(iter(joules.declared.values()))[0].constants
        text.append("Declared: the ratio of one-thread CPU times, at equal power; another run may shift it by some percent, "
                    f"≈ as for time. “{name}” itself takes anything from "
                    + "; ".join(f"{_range(amount)} (batch {batch}, {runtime})"
                                for (runtime, batch), (amount, _) in joules.declared.items()) + f", at {power}.")
    if joules.modelled:
        constants = next(iter(joules.modelled.values()))[0].constants
        text.append(f"Modelled: operations and bytes as executed, constants of {constants}. “{name}” takes "
                    + "; ".join(f"{_range(amount)} (batch {batch}, {weights})"
                                for (batch, weights), (amount, _) in joules.modelled.items()) + ".")
    return text


def _range(amount: energy.Energy) -> str:
    """Both ends, or one where they agree; the unit once where it is the same."""
    low, high = energy.format_joules(amount.low), energy.format_joules(amount.high)
    if low == high:
        return low
    number, unit = low.split()
    return f"{number if high.endswith(f' {unit}') else low} to {high}"
