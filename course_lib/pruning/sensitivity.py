"""How much in which layer: prune one layer at a time, see what it costs, and spend the loss where it buys most.

Book: chapter 2, "Which weights, how many, when".
"""
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from .masks import prune
from .weights import check_fraction, prunable

__all__ = ["Sensitivity", "amounts_for", "scan"]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What pruning each layer alone does.

    levels: the amounts that were tried, rising from 0; accuracy: for each weight tensor, one value a level.
    """
    levels: tuple[float, ...]
    accuracy: dict[str, list[float]]


def scan(model: nn.Module, judge: Callable[[nn.Module], float], *, levels: Sequence[float]) -> Sensitivity:
    """Prune one layer at a time to each of the levels, leave all others dense, and judge the result.

    Args:   judge: from a model to its accuracy, on validation images; levels: amounts, rising, the first one 0.
    Raises: ValueError for levels that do not rise from 0 or leave [0, 1], or an accuracy that is not finite.
    Source: Han et al. 2015, sec. 3.1 and fig. 6.
    """
    for level in levels:
        check_fraction(level, "each level")
    if len(levels) < 2 or levels[0] != 0 or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels must rise from 0, e.g. [0, 0.5, 0.9]; got {list(levels)}")
    nothing = dict.fromkeys(prunable(model), 0)
    accuracy = {name: [judge(prune(model, amount={**nothing, name: level})) for level in levels] for name in nothing}
    if not np.isfinite(list(accuracy.values())).all():
        raise ValueError(f"judge must give a finite accuracy; got {accuracy}")
    return Sensitivity(tuple(levels), accuracy)


def amounts_for(model: nn.Module, sensitivity: Sensitivity, *, sparsity: float) -> dict[str, float]:
    """Amounts for each layer that give a dense model the wanted sparsity, at an equal loss in every scan.

    1. Allow every layer the same loss of accuracy, when pruned alone.
    2. Read off its curve how much of it may go for that.
    3. Find the allowed loss at which the weights that go add up to the wanted share.

    Raises: ValueError for a sparsity outside [0, 1] or above the highest level of the scan, or a scan of other layers.
    """
    check_fraction(sparsity, "sparsity")
    sizes = {name: weight.numel() for name, weight in prunable(model).items()}
    levels = np.array(sensitivity.levels)
    if sizes.keys() != sensitivity.accuracy.keys():
        raise ValueError(f"the scan is of other layers: {', '.join(sensitivity.accuracy)}, not {', '.join(sizes)}")
    if sparsity > levels[-1]:
        raise ValueError(f"the scan ends at {levels[-1]}, below the wanted sparsity {sparsity}: scan higher levels")
    # A curve that rises by chance is made flat; the tiny slope says "as much as possible" where it is flat.
    losses = {name: np.maximum.accumulate(a[0] - np.array(a)) + 1e-9 * levels for name, a in sensitivity.accuracy.items()}

    def allowed(loss: float) -> dict[str, float]:
        return {name: float(np.interp(loss, losses[name], levels)) for name in sizes}

    low, high = 0.0, max(curve[-1] for curve in losses.values())
    for _ in range(100):                 # bisection: the sparsity grows with the loss
        middle = (low + high) / 2
        amounts = allowed(middle)
        reached = sum(sizes[name] * amounts[name] for name in sizes) / sum(sizes.values())
        low, high = (middle, high) if reached < sparsity else (low, middle)
    return allowed(high)
