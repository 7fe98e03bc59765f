"""Pruning by magnitude or any other score: the weights that matter least become zero.

    by threshold:  w becomes 0 if |w| < t, and stays as it is otherwise
    by amount:     of the n weights that are left, the round(amount · n) with the lowest scores become 0

Removed weights stay removed because `Masks` sets them back to zero after every training step.
Book: chapter 2, "Pruning by threshold" and "Which weights, how many, when".
"""
import copy
import math

import torch
from torch import nn

from .scores import magnitude
from .weights import check_fits, check_fraction, exact_magnitudes, prunable

__all__ = ["Masks", "apply_masks", "keep_masks", "prune", "prune_threshold", "rewind", "threshold_for", "threshold_mask"]


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
    return exact_magnitudes(weight) >= threshold


def threshold_for(model: nn.Module, *, sparsity: float) -> float:
    """The threshold that removes the given share of all prunable weights together.

    Args:    sparsity: fraction to remove, from 0 to 1.
    Returns: a threshold t such that exactly k = round(sparsity · n) of the n weights have |w| < t, where no
             two weights tie at the cut. With ties there, all of them stay: fewer than k go.
    Raises:  ValueError for a sparsity outside [0, 1] or a model without prunable weights.
    """
    check_fraction(sparsity, "sparsity")
    magnitudes = torch.cat([exact_magnitudes(w).flatten() for w in prunable(model).values()])
    ordered = magnitudes.sort().values
    k = round(sparsity * len(ordered))
    # The first weight that stays has the threshold as its magnitude; past the last, just above it.
    return float(ordered[k]) if k < len(ordered) else math.nextafter(float(ordered[-1]), math.inf)


@torch.no_grad()
def prune_threshold(model: nn.Module, *, threshold: float) -> nn.Module:
    """Return a copy of `model` in which every weight with |w| < threshold is zero.

    Biases and batch normalisation stay: they are few, and each one matters.
    """
    return apply_masks(model, {name: threshold_mask(w, threshold=threshold) for name, w in prunable(model).items()})


def prune(model: nn.Module, *, amount: float | dict[str, float], scope: str = "global",
          scores: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """Return a copy of `model` without the given share of the weights that are left in it.

    Args:   amount: fraction of the weights that are not zero yet; or one fraction for each weight tensor.
            On a dense model this is its sparsity afterwards; 0.5 twice leaves a quarter.
            scope: "global" compares all weights with each other, "layer" only those of one layer.
            scores: what each weight is worth, by name and in its shape; default |w|.
    Raises: ValueError for an amount outside [0, 1], weights or scores that are not finite, or scores that do not fit.
    Equals: torch.nn.utils.prune, L1Unstructured with an amount; where weights tie at the cut, those
            that come first go.
    """
    sizes = magnitude(model)            # raises for NaN or infinite weights, whatever the scores
    return apply_masks(model, keep_masks(model, sizes if scores is None else scores, amount=amount, scope=scope))


def keep_masks(model: nn.Module, scores: dict[str, torch.Tensor], *, amount: float | dict[str, float],
               scope: str = "global") -> dict[str, torch.Tensor]:
    """Mark the weights that stay when `prune` removes the lowest scores; arguments as there.

    Returns: bool masks by weight name. Weights that are zero already are marked False.
    """
    weights = prunable(model)
    check_fits(weights, scores, "scores")
    alive = {name: w != 0 for name, w in weights.items()}
    if isinstance(amount, dict) or scope == "layer":
        amounts = amount if isinstance(amount, dict) else dict.fromkeys(weights, amount)
        if amounts.keys() != weights.keys():
            raise ValueError(f"amount must name every weight tensor: {', '.join(weights)}; got {', '.join(amounts)}")
        return {name: _keep(scores[name], alive[name], amounts[name]) for name in weights}
    if scope != "global":
        raise ValueError(f"scope must be 'global' or 'layer'; got {scope!r}")
    together = _keep(*(torch.cat([x[name].flatten() for name in weights]) for x in (scores, alive)), amount)
    parts = together.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts)}


def _keep(scores: torch.Tensor, alive: torch.Tensor, amount: float) -> torch.Tensor:
    """All but the round(amount · n) lowest scores of the n that are alive; linear in their number."""
    check_fraction(amount, "amount")
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite; got NaN or infinity (did training diverge?)")
    left = scores[alive]
    k = round(amount * len(left))
    if k == 0:
        return alive
    cut = left.kthvalue(k).values
    goes = left < cut
    ties = (left == cut).nonzero().flatten()
    goes[ties[: k - int(goes.sum())]] = True
    keep = alive.clone()
    keep[alive] = ~goes
    return keep


@torch.no_grad()
def apply_masks(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    """Return a copy of `model` with the weights zero where their mask is False.

    Raises: ValueError for masks that are not boolean, have other names or other shapes.
    """
    weights = prunable(model)
    check_fits(weights, masks, "masks")
    copies = {}         # deepcopy takes what it finds here instead of copying: each weight is copied once
    for name, weight in weights.items():
        if masks[name].dtype != torch.bool:
            raise ValueError(f"the mask of {name} must be boolean, True for what stays; got {masks[name].dtype}")
        copies[id(weight)] = nn.Parameter((weight * masks[name]).add_(0), weight.requires_grad)      # −0.0 + 0 is 0.0
    return copy.deepcopy(model, copies)


def rewind(pruned: nn.Module, initial: nn.Module) -> nn.Module:
    """Return a copy of `initial`, the model before training, with the weights zero that are zero in `pruned`.

    This is the "winning ticket" of the lottery ticket hypothesis.
    Source: Frankle & Carbin 2019, sec. 2.
    """
    return apply_masks(initial, Masks(pruned).kept)


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
