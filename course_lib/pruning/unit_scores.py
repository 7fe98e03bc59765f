"""What a unit is worth: four answers, each with one number for every channel or neuron of a group.

    unit_magnitude    Σ |w|               over all its weights, in every layer of the group
    unit_taylor       (Σ w · ∂L/∂w)²      over the weights that read it: what the loss does if they read 0
    unit_activation   mean |a|            of what it sends to its readers, on real images
    unit_random       uniform             the control that every criterion must beat

Book: chapter 2, "From a mask to a smaller model".
"""
import copy

import torch
from torch import nn
from torch.nn import functional as F

from .groups import Group

__all__ = ["unit_activation", "unit_magnitude", "unit_random", "unit_taylor"]


@torch.no_grad()
def unit_magnitude(model: nn.Module, groups: list[Group], *, p: float = 1) -> dict[str, torch.Tensor]:
    """Sum of |w|^p over each unit's weights: its own, its batch normalisation's scales, its readers'.

    Returns: by name of the group, shape (size,), divided by the group's mean, so that groups of
             different layers can be compared. Biases do not count.
    Raises:  ValueError for NaN or infinite weights.
    Equals:  Torch-Pruning, GroupMagnitudeImportance(p=p), which leaves depthwise convolutions out; p=2 is its default.
    """
    scores = {}
    for group in groups:
        own = [(name, 0) for name in group.makers] + [(name, 0) for name, _ in group.norms]
        sums = 0
        for name, dim in own + [(name, 1) for name, _ in group.readers]:
            sizes = model.get_submodule(name).weight.abs()
            sums = sums + _sum_per_unit(sizes if p == 1 else sizes ** p, dim, group.size)
        if not torch.isfinite(sums).all():
            raise ValueError(f"weights must be finite; group {group.name} has NaN or infinity (did training diverge?)")
        scores[group.name] = _relative(sums)
    return scores


@torch.enable_grad()
def unit_taylor(model: nn.Module, groups: list[Group], images: torch.Tensor, labels: torch.Tensor, *,
                batch_size: int = 128) -> dict[str, torch.Tensor]:
    """The squared change of the mean loss over the images, to first order, if a unit's readers read 0.

    Every way from a unit to the loss leads through the weights that read it. If its values shrink by a
    small share, the loss changes by that share of Σ w · g over these weights, g their gradients.
    Args:    images, labels: as in training, shapes (n, …) and (n,).
    Returns: by name of the group, shape (size,); comparable between groups as they are.
    Source:  Molchanov et al. 2019, eq. 8 with a gate behind the unit.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    for batch in torch.arange(len(images)).split(batch_size):
        loss = F.cross_entropy(model(images[batch]), labels[batch], reduction="sum") / len(images)
        loss.backward()                 # gradients of the batches add up
    changes = {name: layer.weight.detach() * layer.weight.grad for name, layer in _readers(model, groups).items()}
    return {group.name: sum(_sum_per_unit(changes[name], 1, group.size) for name, _ in group.readers) ** 2
            for group in groups}


@torch.no_grad()
def unit_activation(model: nn.Module, groups: list[Group], images: torch.Tensor, *,
                    batch_size: int = 500) -> dict[str, torch.Tensor]:
    """Mean magnitude of what each unit sends to its readers, over images, places and readers.

    Returns: by name of the group, shape (size,), divided by the group's mean.
    """
    model, sums = copy.deepcopy(model).eval(), {}
    for name, layer in _readers(model, groups).items():
        def record(_, inputs, name=name):
            batch = inputs[0].abs().flatten(2).mean(2) if inputs[0].dim() > 2 else inputs[0].abs()
            sums[name] = sums.get(name, 0) + batch.double().sum(0)
        layer.register_forward_pre_hook(record)
    for batch in images.split(batch_size):
        model(batch)
    return {group.name: _relative(sum(sums[name].unflatten(0, (group.size, -1)).mean(1) for name, _ in group.readers))
            for group in groups}


def unit_random(groups: list[Group], *, seed: int) -> dict[str, torch.Tensor]:
    """Scores that know nothing: uniform between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in groups}


def _sum_per_unit(values: torch.Tensor, dim: int, units: int) -> torch.Tensor:
    """Sum of all values that belong to one unit; dimension 0 or 1 holds one or several for each, in a row."""
    values = values.sum(0) if dim == 1 else values
    return values.unflatten(0, (units, -1)).flatten(1).sum(1)


def _relative(scores: torch.Tensor) -> torch.Tensor:
    return scores / scores.mean() if scores.any() else scores


def _readers(model: nn.Module, groups: list[Group]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for group in groups for name, _ in group.readers}
