"""Zeros in a pattern: of every m neighbouring weights at most n are left, most often 2 of 4.

    2:4    0.9  0.1 −0.3  0.2  |  0.0  0.5  0.4 −0.6    becomes    0.9  0  −0.3  0  |  0  0.5  0  −0.6

Every group loses the same share, so a processor built for it knows beforehand where to look: it stores n
values and n small numbers a group, and skips the rest. Neighbours are weights of one output, along the
inputs: in a convolution, the same place in neighbouring channels.
Book: chapter 2, "Patterns and lottery tickets".
"""
from collections.abc import Iterable

import torch
from torch import nn

from .masks import apply_masks
from .scores import magnitude
from .weights import check_fits, prunable

__all__ = ["follows_pattern", "prune_n_m"]


def prune_n_m(model: nn.Module, *, n: int = 2, m: int = 4, layers: Iterable[str] | None = None,
              scores: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """Return a copy of `model` in which, of every m consecutive weights along the inputs, n stay.

    Args:   layers: names of the weights to prune, such as "1.weight"; the others stay as they are. Default:
            all prunable weights; then each must fit, for a layer is never left dense in silence.
            scores: what each weight is worth, by name and in its shape; default |w|. The n highest of a
            group stay; where they tie, those that come first go, and weights that are zero already before all.
    Raises: ValueError unless 1 <= n <= m, for an unknown name, for a layer whose number of inputs is not a
            multiple of m, and for scores that do not fit or are not finite.
    Source: Mishra et al. 2021, sec. 3 and 4.
    Equals: torch.ao.pruning.WeightNormSparsifier(sparsity_level=1, sparse_block_shape=(1, m),
            zeros_per_block=m − n), where no weights tie.
    """
    _check_pattern(n, m)
    weights = prunable(model)
    scores = magnitude(model) if scores is None else scores
    check_fits(weights, scores, "scores")
    chosen = list(weights) if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if unknown := [name for name in chosen if name not in weights] or not chosen and ["none"]:
        raise ValueError(f"layers must name weights of the model, among {', '.join(weights)}; got {', '.join(map(str, unknown))}")
    misfits = [f"{name} ({weights[name].shape[1]})" for name in chosen if weights[name].shape[1] % m]
    if misfits:
        raise ValueError(f"{n}:{m} needs a number of inputs that is a multiple of {m}; it is not in {', '.join(misfits)}. "
                         "Name the weights to prune in layers=[…], and the others stay dense")
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for name in chosen:
        masks[name] = _n_highest(scores[name], weights[name] != 0, n, m)
    return apply_masks(model, masks)


def _n_highest(scores: torch.Tensor, alive: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Mark n weights in each group of m: those alive before those that are not, then by score."""
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite; got NaN or infinity (did training diverge?)")
    groups = _in_groups(scores.masked_fill(~alive, -torch.inf), m)
    goes = groups.argsort(dim=-1, stable=True)[..., : m - n]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, goes, False)
    return keep.flatten(-2).movedim(-1, 1)


def follows_pattern(weight: torch.Tensor, *, n: int = 2, m: int = 4) -> bool:
    """Whether of every m consecutive weights along the inputs (dimension 1) at most n are not zero.

    Raises: ValueError unless 1 <= n <= m, and for a weight whose number of inputs is not a multiple of m.
    """
    _check_pattern(n, m)
    if weight.dim() < 2 or weight.shape[1] % m:
        raise ValueError(f"{n}:{m} needs a weight of shape (outputs, inputs, …) with a multiple of {m} inputs; "
                         f"got {tuple(weight.shape)}")
    return bool((_in_groups(weight, m).count_nonzero(dim=-1) <= n).all())


def _in_groups(tensor: torch.Tensor, m: int) -> torch.Tensor:
    """The inputs as last dimension, in groups of m: (outputs, places…, inputs / m, m)."""
    return tensor.movedim(1, -1).unflatten(-1, (-1, m))


def _check_pattern(n: int, m: int) -> None:
    if type(n) is not int or type(m) is not int or not 1 <= n <= m:
        raise ValueError(f"a pattern n:m needs whole numbers with 1 <= n <= m, such as 2:4; got {n!r}:{m!r}")
