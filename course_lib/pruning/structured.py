"""Structured pruning: whole channels and neurons go, and what is left is a smaller dense model.

    mask     the unit's weights, biases, batch normalisation's scale and shift become 0: same size, same time
    remove   the same numbers are cut out of every layer of the group: same outputs, smaller layers

A channel whose weights alone are zero still emits a constant, the shift of its batch normalisation: the
mask covers the whole group (`groups`), or the two models would differ.
Book: chapter 2, "From a mask to a smaller model".
"""
import copy
import math

import torch
from torch import nn

from ..models import note_change
from .groups import Group
from .weights import check_fraction

__all__ = ["choose_units", "mask_units", "remove_units", "resize"]


def choose_units(groups: list[Group], scores: dict[str, torch.Tensor], *, amount: float | dict[str, float],
                 round_to: int = 1, scope: str = "layer") -> dict[str, list[int]]:
    """Choose the units with the lowest scores.

    Args:    scores: by name of the group, shape (size,), as from `unit_magnitude`; where they tie, the first goes.
             amount: fraction of the units to remove, or one fraction for each group.
             scope: "layer" takes that share of every group, "global" of all units together.
             round_to: what is left in a group is rounded *up* to a multiple of this, or to the whole group.
             Processors compute channels in blocks of 8 or 16; a block that is half full takes the time
             of a full one, so the units that fill it are free.
    Returns: a plan: the indices that go, by name of the group.
    Raises:  ValueError if a group would lose all its units, or for bad arguments.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number >= 1, such as 8; got {round_to!r}")
    sizes = {group.name: group.size for group in groups}
    shapes = {name: tuple(s.shape) for name, s in scores.items()}
    if shapes != {name: (size,) for name, size in sizes.items()}:
        raise ValueError(f"scores must have one number for each unit of each group, {sizes}; got the shapes {shapes}")
    if not all(torch.isfinite(s).all() for s in scores.values()):
        raise ValueError("scores must be finite; got NaN or infinity (did training diverge?)")
    plan = {}
    for name, goes in _how_many(sizes, scores, amount, scope).items():
        if goes == sizes[name]:
            raise ValueError(f"this removes all {goes} units of group {name}, and nothing would pass; use a smaller amount"
                             + (", or scope='layer'" if scope == "global" else ""))
        left = min(sizes[name], math.ceil((sizes[name] - goes) / round_to) * round_to)
        plan[name] = sorted(scores[name].argsort(stable=True)[: sizes[name] - left].tolist())
    return plan


def _how_many(sizes: dict[str, int], scores: dict[str, torch.Tensor], amount: float | dict[str, float],
              scope: str) -> dict[str, int]:
    """How many units of each group go, before rounding."""
    if scope not in ("layer", "global") or (isinstance(amount, dict) and (scope != "layer" or amount.keys() != sizes.keys())):
        raise ValueError("scope must be 'layer' or 'global', and amount one fraction, or in scope 'layer' one for each group "
                         f"({', '.join(sizes)}); got {scope!r} and {amount!r}")
    for value in amount.values() if isinstance(amount, dict) else [amount]:
        check_fraction(value, "amount")
    if scope == "layer":
        amounts = amount if isinstance(amount, dict) else dict.fromkeys(sizes, amount)
        return {name: round(amounts[name] * size) for name, size in sizes.items()}
    everything = torch.cat([scores[name].double() for name in sizes])
    goes = torch.zeros(len(everything), dtype=torch.bool)
    goes[everything.argsort(stable=True)[: round(amount * len(everything))]] = True
    return {name: int(part.sum()) for name, part in zip(sizes, goes.split(list(sizes.values())))}


@torch.no_grad()
def mask_units(model: nn.Module, groups: list[Group], plan: dict[str, list[int]]) -> nn.Module:
    """Return a copy of `model` in which the units of the plan are zero: same sizes, same cost.

    Weights, biases, and scale and shift of the batch normalisation become zero in every layer that makes
    the unit or normalises it, so that all who read it read 0.
    Raises: ValueError for a plan that does not fit the groups, or groups that do not fit the model.
    """
    masked = copy.deepcopy(model)
    for group, gone in _checked(model, groups, plan):
        for name, repeat in [(maker, 1) for maker in group.makers] + list(group.norms):
            for tensor in masked.get_submodule(name).parameters():
                tensor.unflatten(0, (-1, repeat)).index_fill_(0, torch.tensor(gone, device=tensor.device), 0)
    return masked


def remove_units(model: nn.Module, groups: list[Group], plan: dict[str, list[int]]) -> nn.Module:
    """Return a copy of `model` without the units of the plan; its outputs are those of `mask_units`.

    Args:   groups: from `unit_groups(model, …)`; plan: indices that go, by name of the group; a group that it
            does not name stays whole.
    Raises: ValueError for a plan that does not fit the groups, or groups that do not fit the model.
    Equals: Torch-Pruning, DependencyGraph.get_pruning_group(…).prune() with the same indices.
    """
    keep = {}           # by layer and dimension of its tensors: the units that stay, and features for each
    for group, gone in _checked(model, groups, plan):
        stays = torch.ones(group.size, dtype=torch.bool)
        stays[gone] = False
        stays = stays.nonzero().flatten()
        for name, repeat in [(maker, 1) for maker in group.makers] + list(group.norms):
            keep.setdefault(name, {})[0] = stays, repeat
        for name, repeat in group.readers:
            keep.setdefault(name, {})[1] = stays, repeat
    return _thinned(model, keep)


def resize(model: nn.Module, *, sizes: dict[str, list[int]]) -> nn.Module:
    """Return a copy of `model` whose layers have these sizes: the first weights of each. To load saved models.

    Args:   sizes: [inputs, outputs] by name of the layer; of a batch normalisation, its channels twice.
    Raises: ValueError for a layer that the model does not have.
    """
    if unknown := sizes.keys() - dict(model.named_modules()).keys():
        raise ValueError(f"the model has no layer {', '.join(sorted(unknown))}")
    keep = {name: {1: (torch.arange(n_in), 1), 0: (torch.arange(n_out), 1)} for name, (n_in, n_out) in sizes.items()}
    return _thinned(model, keep)


@torch.no_grad()
def _thinned(model: nn.Module, keep: dict[str, dict[int, tuple[torch.Tensor, int]]]) -> nn.Module:
    """Copy a model with only the kept slices of its layers' tensors, and note the new sizes."""
    copies = {}         # deepcopy takes what it finds here instead of copying: no large tensor is copied whole
    for name, dimensions in keep.items():
        layer = model.get_submodule(name)
        for tensor in [*layer.parameters(), *layer.buffers()]:
            thin = tensor.detach()
            for dim, (stays, repeat) in dimensions.items():
                if dim < thin.dim() and len(stays) * repeat < thin.shape[dim]:
                    thin = _select(thin, dim, stays, repeat)
            if thin.shape != tensor.shape:
                copies[id(tensor)] = nn.Parameter(thin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else thin
    smaller = copy.deepcopy(model, copies)
    sizes = {name: _adopt_size(smaller.get_submodule(name)) for name in keep}
    if sizes:
        note_change(smaller, "pruning", "remove", sizes=sizes)
    return smaller


def _select(tensor: torch.Tensor, dim: int, stays: torch.Tensor, repeat: int) -> torch.Tensor:
    """Keep some units along a dimension, where each has `repeat` features in a row."""
    units = tensor.unflatten(dim, (-1, repeat))
    return units.index_select(dim, stays.to(tensor.device)).flatten(dim, dim + 1)


def _adopt_size(layer: nn.Module) -> list[int]:
    """Set the numbers that a layer keeps about its weight, and return [inputs, outputs]."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
        return [layer.in_features, layer.out_features]
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = layer.weight.shape[0]
        layer.groups = layer.out_channels if layer.groups > 1 else 1            # depthwise
        layer.in_channels = layer.weight.shape[1] * layer.groups
        return [layer.in_channels, layer.out_channels]
    layer.num_features = len(layer.weight)
    return [layer.num_features] * 2


def _checked(model: nn.Module, groups: list[Group], plan: dict[str, list[int]]) -> list[tuple[Group, list[int]]]:
    """The groups that lose units, each with their indices, if everything fits."""
    by_name = {group.name: group for group in groups}
    for name, gone in plan.items():
        if name not in by_name:
            whole = next((g for g in groups if name in g.makers or name in dict(g.norms)), None)
            raise ValueError(f"{name!r} is no group of its own" + (
                f": its units go only together with those of {', '.join(whole.layers)}; name the group {whole.name!r}" if whole
                else f", or one tied to the model's input or output; the groups are {', '.join(by_name)}"))
        size = by_name[name].size
        if not all(type(i) is int and 0 <= i < size for i in gone) or len(set(gone)) != len(gone) or len(gone) >= size:
            raise ValueError(f"group {name} has {size} units: a plan names some of 0 to {size - 1}, each once and not all of "
                             f"them; got {gone}")
    chosen = [(group, list(plan[group.name])) for group in groups if plan.get(group.name)]
    modules = dict(model.named_modules())
    for group, _ in chosen:
        members = [(n, 0, 1) for n in group.makers] + [(n, 0, r) for n, r in group.norms] + [(n, 1, r) for n, r in group.readers]
        for name, dim, repeat in members:
            weight = getattr(modules.get(name), "weight", None)
            if weight is None or weight.dim() <= dim or weight.shape[dim] != group.size * repeat:
                raise ValueError(f"layer {name} has not the {group.size} × {repeat} units or features that its group says: "
                                 "find the groups of this very model with unit_groups")
    return chosen
