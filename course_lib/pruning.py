"""Pruning by threshold: weights nearest to zero matter least, so those are removed.

    w becomes 0 if |w| < t, and stays as it is otherwise.

Removed weights stay removed because `Masks` sets them back to zero after every training step.
Not here: choosing how much to prune in which layer, and making the model really smaller.
Book: chapter 2, "Pruning by threshold".
"""
import copy
import math

import torch
from torch import nn

__all__ = ["Masks", "prune_threshold", "prunable", "sparsity", "threshold_for", "threshold_mask"]


def threshold_mask(weight: torch.Tensor, *, threshold: float) -> torch.Tensor:
    """Mark the weights that stay: those with |w| >= threshold.

    Args:    weight: floating point, any shape; threshold: a finite number >= 0.
    Returns: bool, shape of `weight`; False exactly where |w| < threshold, compared without rounding
             the threshold to the weight's own precision.
    Raises:  ValueError for a bad threshold, or NaN or infinite weights; TypeError for weights that are
             not floating point.
    Source:  Han et al. 2015, sec. 3.
    """
    if isinstance(threshold, bool) or not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be a finite number >= 0, e.g. 0.05; got {threshold!r}")
    return _magnitudes(weight) >= threshold


def threshold_for(model: nn.Module, *, sparsity: float) -> float:
    """The threshold that removes the given share of all prunable weights together.

    Args:    sparsity: fraction to remove, from 0 to 1.
    Returns: a threshold t such that exactly k = round(sparsity · n) of the n weights have |w| < t, where no
             two weights tie at the cut. With ties there, all of them stay: fewer than k go.
    Raises:  ValueError for a sparsity outside [0, 1] or a model without prunable weights.
    """
    if isinstance(sparsity, bool) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got {sparsity!r}")
    magnitudes = torch.cat([_magnitudes(w).flatten() for w in prunable(model).values()])
    ordered = magnitudes.sort().values
    k = round(sparsity * len(ordered))
    # The first weight that stays has the threshold as its magnitude; past the last, just above it.
    return float(ordered[k]) if k < len(ordered) else math.nextafter(float(ordered[-1]), math.inf)


@torch.no_grad()
def prune_threshold(model: nn.Module, *, threshold: float) -> nn.Module:
    """Return a copy of `model` in which every weight with |w| < threshold is zero.

    Biases and batch normalisation stay: they are few, and each one matters.
    """
    pruned = copy.deepcopy(model)
    for weight in prunable(pruned).values():
        weight[~threshold_mask(weight, threshold=threshold)] = 0
    return pruned


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the linear and convolutional layers, by name: the parameters with two dimensions or more.

    Raises: ValueError if there is none.
    """
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1 and p.numel()}
    if not weights:
        raise ValueError("the model has no weight with two dimensions or more, or it is empty: nothing to prune")
    return weights


def sparsity(model: nn.Module) -> float:
    """Share of the prunable weights that are zero, from 0 to 1."""
    weights = prunable(model).values()
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


class Masks:
    """Remembers which weights of a pruned model are zero, and keeps them zero during training.

    Pass it to `training.fit` as a callback. The optimizer moves every weight, removed ones too:
    momentum and weight decay do not know of the mask. So it is applied again after every step.
    """

    def __init__(self, model: nn.Module):
        self.kept = {name: weight != 0 for name, weight in prunable(model).items()}

    def before_training(self, model: nn.Module) -> None:
        """Refuse a model whose weights have other names or shapes, with a ValueError."""
        if {n: w.shape for n, w in prunable(model).items()} != {n: kept.shape for n, kept in self.kept.items()}:
            raise ValueError("these masks belong to a model with other weights")

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Set the removed weights of `model` to zero again."""
        for name, weight in prunable(model).items():
            weight *= self.kept[name]


def _magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """|w| in double precision, where every half and single number is exact."""
    if not weight.is_floating_point():
        raise TypeError(f"weights must be floating point; got {weight.dtype}")
    if not torch.isfinite(weight).all():
        raise ValueError("weights must be finite; got NaN or infinity (did training diverge?)")
    return weight.detach().double().abs()
