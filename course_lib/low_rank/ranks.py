"""Choosing ranks: by what a layer's singular values hold, or by accuracy on the validation part, under a budget.

Each layer could have another rank, and what matters is what the whole model loses and costs. A budget is a number in
the unit of a function `cost_of(model)`: bytes, weights, multiply-accumulates, seconds. Book: chapter 4, "Choosing ranks".
"""
import copy
import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .kernels import largest_ranks, matricise
from .layers import Rank, factorizable, factorize, factorize_layer
from .svd import rank_for_energy, singular_values

__all__ = ["Step", "greedy_ranks", "ranks_by_energy", "ranks_within", "spectra"]

Cost = Callable[[nn.Module], float]


def spectra(layer: nn.Module, *, method: str = "channel", moment: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """The singular values that a rank cuts, the largest first; two lists for "tucker", of the outputs and of the inputs.

    Args: as `factorize_layer`.
    """
    if isinstance(layer, nn.Conv2d) and method == "tucker":
        return tuple(singular_values(layer.weight.movedim(side, 0).flatten(1)) for side in (0, 1))
    matrix = layer.weight if isinstance(layer, nn.Linear) else matricise(layer.weight, method)
    return (singular_values(matrix, moment),)


def ranks_by_energy(model: nn.Module, energy: float, *, method: str = "channel", skip: Iterable[str] = (),
                    moments: dict[str, torch.Tensor] | None = None) -> dict[str, Rank]:
    """For each layer the smallest rank that keeps this share of the squared singular values.

    A layer that would not become smaller is left out, and stays whole.
    Args:   energy: fraction, 0 < energy <= 1; skip: names of layers that stay whole; method, moments: as `factorize`.
    Raises: ValueError for an energy out of range.
    """
    moments = moments or {}
    return _by_energy(_all_spectra(model, method, skip, moments), factorizable(model), energy, method)


def _all_spectra(model, method, skip, moments) -> dict[str, tuple[torch.Tensor, ...]]:
    return {name: spectra(layer, method=method, moment=moments.get(name)) for name, layer in factorizable(model, skip=skip).items()}


def _by_energy(found: dict[str, tuple], layers: dict[str, nn.Module], energy: float, method: str) -> dict[str, Rank]:
    ranks = {name: tuple(rank_for_energy(values, energy) for values in lists) for name, lists in found.items()}
    return {name: rank if len(rank) > 1 else rank[0] for name, rank in ranks.items() if _saves(layers[name], rank, method)}


def _saves(layer: nn.Module, rank: tuple[int, ...], method: str) -> bool:
    """Whether the factors of this rank have fewer weights than the layer."""
    if isinstance(layer, nn.Linear):
        return rank[0] * sum(layer.weight.shape) < layer.weight.numel()
    outputs, inputs, height, width = layer.weight.shape
    if method == "tucker":
        factors = rank[1] * inputs + rank[0] * rank[1] * height * width + rank[0] * outputs
    else:
        factors = rank[0] * sum(matricise(layer.weight, method).shape)
    return factors < layer.weight.numel()


def ranks_within(model: nn.Module, cost_of: Cost, budget: float, *, method: str = "channel", skip: Iterable[str] = (),
                 moments: dict[str, torch.Tensor] | None = None, halvings: int = 20) -> dict[str, Rank]:
    """`ranks_by_energy` with the highest energy, one for all layers, whose model costs at most the budget.

    Found by halving: costs rise with the energy.
    Raises: ValueError if even rank 1 everywhere costs more.
    """
    moments = moments or {}
    found, layers = _all_spectra(model, method, skip, moments), factorizable(model)

    def cost(energy: float) -> float:
        return cost_of(factorize(model, _by_energy(found, layers, energy, method), method=method))
    low, high = 1e-9, 1.0
    if cost(low) > budget:
        raise ValueError(f"even with rank 1 everywhere the model costs {cost(low):g}, more than the budget of {budget:g}")
    if cost(high) <= budget:
        return _by_energy(found, layers, high, method)
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return _by_energy(found, layers, low, method)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the greedy search: which layer went to which rank, and the model's cost and score after it."""
    layer: str
    rank: Rank
    cost: float
    score: float


def greedy_ranks(model: nn.Module, cost_of: Cost, budget: float, score_of: Callable[[nn.Module], float], *,
                 method: str = "channel", skip: Iterable[str] = (), moments: dict[str, torch.Tensor] | None = None,
                 shrink: float = 0.7) -> tuple[dict[str, Rank], list[Step]]:
    """Lower the ranks one step at a time, always where it costs the least accuracy for what it saves.

    1. Try in each layer the next lower rank: `shrink` times the present one, at first the largest that saves weights.
    2. Take the layer with the smallest loss of score for each unit of cost saved; where several lose nothing, the one
       that saves most.
    3. Repeat until the model costs at most the budget.

    Args:    score_of: such as the accuracy on the *validation* part; shrink: between 0 and 1.
    Returns: the ranks, and the steps.
    Raises:  ValueError if the budget cannot be reached, or for bad arguments.
    """
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must be a fraction between 0 and 1, e.g. 0.7; got {shrink!r}")
    layers, ranks, steps, moments = factorizable(model, skip=skip), {}, [], moments or {}
    current, cost, score = model, cost_of(model), score_of(model)
    while cost > budget:
        best = None
        for name, layer in layers.items():
            rank = _next_rank(layer, ranks.get(name), method, shrink)
            if rank is None:
                continue
            candidate = copy.deepcopy(current)
            candidate.set_submodule(name, factorize_layer(layer, rank, method=method, moment=moments.get(name)))
            its_cost, its_score = cost_of(candidate), score_of(candidate)
            saved, loss = cost - its_cost, max(0.0, score - its_score)
            if saved > 0 and (best is None or (loss / saved, -saved) < best[0]):
                best = (loss / saved, -saved), Step(name, rank, its_cost, its_score), candidate
        if best is None:
            raise ValueError(f"no rank can be lowered further, and the model still costs {cost:g}, more than the budget of {budget:g}")
        _, step, current = best
        ranks[step.layer], cost, score = step.rank, step.cost, step.score
        steps.append(step)
    return ranks, steps


def _next_rank(layer: nn.Module, rank: Rank | None, method: str, shrink: float) -> Rank | None:
    """The next lower rank, or None where there is none; for "tucker" both go down together."""
    full = (min(layer.weight.shape),) if isinstance(layer, nn.Linear) else largest_ranks(layer.weight, method)
    now = full if rank is None else rank if isinstance(rank, tuple) else (rank,)
    while max(now) > 1:
        now = tuple(max(1, int(r * shrink)) for r in now)
        if _saves(layer, now, method):
            return now if len(now) > 1 else now[0]
    return None
