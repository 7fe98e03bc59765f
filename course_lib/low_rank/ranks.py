"""Choosing ranks: by what a layer's singular values hold, or by accuracy on the validation part, under a budget.

Each layer could have another rank, and what matters is what the whole model loses and costs. A budget is a number in
the unit of a function `cost_of(model)`: bytes, weights, multiply-accumulates, seconds. Book: chapter 4, "Choosing ranks".
"""
import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from .kernels import METHODS, largest_ranks, matricise
from .layers import Rank, factorizable, factorize, factorize_layer, method_for, thin_layers, with_factors
from .svd import energy_kept, rank_for_energy, singular_values

__all__ = ["Step", "greedy_ranks", "ranks_by_energy", "ranks_within", "spectra"]

Cost = Callable[[nn.Module], float]


def spectra(layer: nn.Module, *, method: str = "channel", moment: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """The singular values that a rank cuts, the largest first; two lists for "tucker", of the outputs and of the inputs.

    Args, Raises: as `factorize_layer`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if isinstance(layer, nn.Linear):
        return (singular_values(layer.weight, moment),)
    if moment is not None and method != "channel":
        raise ValueError(f"inputs can be taken into account in a linear layer or by 'channel' only; got {method!r}")
    if method == "tucker":
        return tuple(singular_values(layer.weight.movedim(side, 0).flatten(1)) for side in (0, 1))
    return (singular_values(matricise(layer.weight, method), moment),)


def ranks_by_energy(model: nn.Module, energy: float, *, method: str | dict[str, str] = "channel", skip: Iterable[str] = (),
                    moments: dict[str, torch.Tensor] | None = None) -> dict[str, Rank]:
    """For each layer the smallest rank that keeps this share of the squared singular values.

    A layer that would not become smaller is left out, and stays whole.
    Args:   energy: fraction, 0 < energy <= 1; skip: names of layers that stay whole; method, moments: as `factorize`.
    Raises: ValueError for an energy out of range.
    """
    return _by_energy(factorizable(model, skip=skip), _all_spectra(model, method, skip, moments), energy, method)


def _all_spectra(model, method, skip, moments) -> dict[str, tuple[torch.Tensor, ...]]:
    return {name: spectra(layer, method=method_for(name, method), moment=(moments or {}).get(name))
            for name, layer in factorizable(model, skip=skip).items()}


def _by_energy(layers: dict[str, nn.Module], found: dict[str, tuple], energy: float, method: str | dict[str, str]) -> dict[str, Rank]:
    ranks = {name: _rank([rank_for_energy(values, energy) for values in lists]) for name, lists in found.items()}
    return {name: rank for name, rank in ranks.items() if _saves(layers[name], rank, method_for(name, method))}


def _rank(numbers: Sequence[int]) -> Rank:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _saves(layer: nn.Module, rank: Rank, method: str) -> bool:
    """Whether the factors of this rank have fewer weights than the layer."""
    return sum(thin.weight.numel() for thin in thin_layers(layer, rank, method, "meta")) < layer.weight.numel()


def ranks_within(model: nn.Module, cost_of: Cost, budget: float, *, method: str | dict[str, str] = "channel",
                 skip: Iterable[str] = (), moments: dict[str, torch.Tensor] | None = None) -> dict[str, Rank]:
    """`ranks_by_energy` with the highest energy, one for all layers, whose model costs at most the budget.

    Ranks change only at the energies that some first singular values of some layer hold; the one is found among these by
    halving, since costs rise with the energy.
    Raises: ValueError if even rank 1 everywhere costs more.
    """
    layers, found = factorizable(model, skip=skip), _all_spectra(model, method, skip, moments)
    energies = sorted({float(energy) for lists in found.values() for values in lists for energy in energy_kept(values)})

    def cost(energy: float) -> float:
        return cost_of(factorize(model, _by_energy(layers, found, energy, method), method=method))
    affordable = bisect.bisect_right(energies, budget, key=cost)
    if not affordable:
        least = cost(energies[0]) if energies else cost_of(model)
        raise ValueError(f"even with rank 1 everywhere the model costs {least:g}, more than the budget of {budget:g}")
    return _by_energy(layers, found, energies[affordable - 1], method)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the greedy search: which layer went to which rank, and the model's cost and score after it."""
    layer: str
    rank: Rank
    cost: float
    score: float


def greedy_ranks(model: nn.Module, cost_of: Cost, budget: float, score_of: Callable[[nn.Module], float], *,
                 method: str | dict[str, str] = "channel", skip: Iterable[str] = (), moments: dict[str, torch.Tensor] | None = None,
                 shrink: float = 0.7) -> tuple[dict[str, Rank], list[Step]]:
    """Lower the ranks one step at a time, always where it costs the least accuracy for what it saves.

    1. Try in each layer the next lower rank: `shrink` times the present one, at first the full one, and so often that
       the factors have fewer weights than the layer.
    2. Take the layer with the smallest loss of score for each unit of cost saved; where several lose nothing, the one
       that saves most.
    3. Repeat until the model costs at most the budget.

    Args:    score_of: such as the accuracy on the *validation* part; shrink: between 0 and 1.
    Returns: the ranks, and the steps.
    Raises:  ValueError if the budget cannot be reached, or for bad arguments.
    """
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must be a fraction between 0 and 1, e.g. 0.7; got {shrink!r}")
    layers, ranks, steps = factorizable(model, skip=skip), {}, []
    cost, score = cost_of(model), score_of(model)

    @functools.cache        # most candidates were there a step before
    def factors(name: str, rank: Rank) -> nn.Sequential:
        return factorize_layer(layers[name], rank, method=method_for(name, method), moment=(moments or {}).get(name))

    while cost > budget:
        best = None
        for name, layer in layers.items():
            rank = _next_rank(layer, ranks.get(name), method_for(name, method), shrink)
            if rank is None:
                continue
            tried = {**ranks, name: rank}
            candidate = with_factors(model, {n: factors(n, r) for n, r in tried.items()}, tried, method)
            its_cost = cost_of(candidate)
            if (saved := cost - its_cost) <= 0:
                continue
            its_score = score_of(candidate)
            loss = max(0.0, score - its_score)
            if best is None or (loss / saved, -saved) < best[0]:
                best = (loss / saved, -saved), Step(name, rank, its_cost, its_score)
        if best is None:
            raise ValueError(f"no rank can be lowered further, and the model still costs {cost:g}, more than the budget of {budget:g}")
        step = best[1]
        ranks[step.layer], cost, score = step.rank, step.cost, step.score
        steps.append(step)
    return ranks, steps


def _next_rank(layer: nn.Module, rank: Rank | None, method: str, shrink: float) -> Rank | None:
    """The next lower rank that saves weights, or None where there is none; for "tucker" both numbers go down together."""
    full = (min(layer.weight.shape),) if isinstance(layer, nn.Linear) else largest_ranks(layer.weight, method)
    now = full if rank is None else rank if isinstance(rank, tuple) else (rank,)
    while max(now) > 1:
        now = tuple(max(1, int(r * shrink)) for r in now)
        if _saves(layer, _rank(now), method):
            return _rank(now)
    return None
