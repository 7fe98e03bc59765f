"""Which weights can be pruned, how many are zero already, and whether numbers given for them fit.

Book: chapter 2, "Pruning by threshold".
"""
import torch
from torch import nn

__all__ = ["prunable", "sparsity"]


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the linear and convolutional layers, by name: the parameters with two dimensions or more.

    Raises: ValueError if there is none, or if two layers share one.
    """
    everything = list(model.named_parameters(remove_duplicate=False))
    owners = {}
    for name, parameter in everything:
        if owners.setdefault(id(parameter), name) != name and parameter.dim() > 1:
            raise ValueError(f"{owners[id(parameter)]} and {name} are one and the same weight; pruning a shared layer "
                             "would change it in two places. Give each its own copy first")
    weights = {name: p for name, p in everything if p.dim() > 1 and p.numel()}
    if not weights:
        raise ValueError("the model has no weight with two dimensions or more, or it is empty: nothing to prune")
    return weights


def sparsity(model: nn.Module) -> float:
    """Share of the prunable weights that are zero, from 0 to 1."""
    weights = prunable(model).values()
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def exact_magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """|w| in double precision, where every half and single number is exact."""
    if not weight.is_floating_point():
        raise TypeError(f"weights must be floating point; got {weight.dtype}")
    if not torch.isfinite(weight).all():
        raise ValueError("weights must be finite; got NaN or infinity (did training diverge?)")
    return weight.detach().double().abs()


def check_fraction(value: float, name: str) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got {value!r}")


def check_fits(weights: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor], what: str) -> None:
    """Raise ValueError unless `tensors` has the names and shapes of `weights`."""
    ours, theirs = ({name: tuple(t.shape) for name, t in x.items()} for x in (weights, tensors))
    if ours != theirs:
        raise ValueError(f"{what} must have the names and shapes of the weights, {ours}; got {theirs}")
