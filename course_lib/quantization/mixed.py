"""Not every layer needs the same number of bits: try each alone, and take bits away where they cost least.

A scan asks what a layer loses at each width while the others keep their float weights. A greedy search then
lowers one layer at a time until the model fits the budget. Book: chapter 3, "Bits where they count".
"""
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from .affine import grid_for
from .stored import AffineForm, quantizable, store

__all__ = ["allocate", "per_channel", "quantize_mixed", "scan"]

# From a weight and a number of bits to the form that keeps it.
MakeForm = Callable[[torch.Tensor, int], nn.Module]


def per_channel(weight: torch.Tensor, bits: int) -> AffineForm:
    """The weight on a symmetric grid for each output channel: the usual form."""
    return AffineForm.of(weight, grid_for(weight, bits, symmetric=True, axis=0))


def quantize_mixed(model: nn.Module, bits: dict[str, int], *, form: MakeForm = per_channel) -> nn.Module:
    """Return a copy of `model` whose named layers keep their weights in so many bits; the others stay float32.

    Raises: ValueError as `quantizable`, and for a name that is no linear layer or convolution.
    """
    layers = quantizable(model)
    if unknown := set(bits) - set(layers):
        raise ValueError(f"no layer named {sorted(unknown)}; the model has {', '.join(layers)}")
    return store(model, {name: form(layers[name].weight, width) for name, width in bits.items()})


def scan(model: nn.Module, judge: Callable[[nn.Module], float], *, bits: Sequence[int],
         form: MakeForm = per_channel) -> dict[str, dict[int, float]]:
    """What each layer loses alone: the score of `model` minus that with one layer quantized.

    Args:    judge: from a model to a score, higher is better, on validation images; bits: falling.
    Returns: the loss by layer name and number of bits.
    Raises:  ValueError for bits that do not fall, or a score that is not finite.
    """
    if not bits or list(bits) != sorted(set(bits), reverse=True):
        raise ValueError(f"bits must fall, e.g. (8, 4, 3, 2); got {list(bits)}")
    whole = judge(model)
    loss = {name: {width: whole - judge(quantize_mixed(model, {name: width}, form=form)) for width in bits}
            for name in quantizable(model)}
    if not np.isfinite([value for row in loss.values() for value in row.values()]).all():
        raise ValueError(f"judge must give a finite score; got {whole} for the model, and losses {loss}")
    return loss


def allocate(model: nn.Module, loss: dict[str, dict[int, float]], *, budget: float, cost_of: Callable[[nn.Module], float],
             form: MakeForm = per_channel) -> dict[str, int]:
    """Bits for each layer so that the model costs at most `budget`, by the losses of a `scan`.

    1. Start with the most bits everywhere.
    2. Try the next lower step of each layer. Those with which the model fits are candidates.
    3. Of the others, take the one that loses least for each unit of cost that it saves.
    4. Repeat from 2 until every step fits or is the last, and give the candidate that loses least in all.

    The scan looks at one layer at a time, so the sum of the losses is a guess: judge the result, beside the same
    width everywhere.

    Args:   loss: as `scan` returns it; cost_of: such as the bytes of the model's file; form: as in the scan.
    Raises: ValueError for a scan of other layers, or a budget that the fewest bits everywhere exceed.
    """
    if set(loss) != set(quantizable(model)):
        raise ValueError(f"the scan is of other layers: {', '.join(loss)}, not {', '.join(quantizable(model))}")
    levels = {name: list(row) for name, row in loss.items()}
    # A loss that falls by chance where bits fall is made flat.
    losses = {name: dict(zip(row, np.maximum.accumulate([max(0.0, value) for value in row.values()]))) for name, row in loss.items()}

    def cost(bits: dict[str, int]) -> float:
        return cost_of(quantize_mixed(model, bits, form=form))

    bits, fits = {name: widths[0] for name, widths in levels.items()}, []
    now = cost(bits)
    if now <= budget:
        return bits
    while True:
        steps = []
        for name, width in bits.items():
            if width != levels[name][-1]:
                lower = {**bits, name: levels[name][levels[name].index(width) + 1]}
                then = cost(lower)
                if then <= budget:
                    fits.append((sum(losses[layer][lower[layer]] for layer in lower), then, list(lower.values())))
                elif then < now:
                    steps.append(((losses[name][lower[name]] - losses[name][width]) / (now - then), then, list(lower.values())))
        if not steps:
            break
        _, now, widths = min(steps)
        bits = dict(zip(bits, widths))
    if not fits:
        raise ValueError(f"the model still costs {now:g} with {bits}, more than the budget of {budget:g}")
    return dict(zip(bits, min(fits)[-1]))
