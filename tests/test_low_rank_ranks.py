"""Ranks by energy and by search: worked out by hand, within the budget, and as close to it as they come."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import cost, files, low_rank, models, training
from course_lib.low_rank import Step, energy_kept, factorizable, factorize, greedy_ranks, matricise, ranks_by_energy, ranks_within, spectra
from helpers import IMAGE_SIZE, random_split, same, state, tiny

IMAGES = random_split(60).images


def diagonal(*values, size=10):
    """A linear layer whose singular values are given; factors of rank r have 2·size·r weights."""
    layer = nn.Linear(size, size, bias=False)
    layer.weight = nn.Parameter(torch.diag(torch.tensor(values + (0.0,) * (size - len(values)))))
    return layer


def two():
    """Energies 9/14, 13/14, 1 and 0.8, 1."""
    return nn.Sequential(diagonal(3.0, 2.0, 1.0), diagonal(2.0, 1.0))


def ranks_of(model):
    """The rank of each layer of a model of linear layers, None where it is whole."""
    return tuple(layer[0].out_features if isinstance(layer, nn.Sequential) else None for layer in model)


# --- by energy ---

def test_energies_by_hand():
    assert [ranks_by_energy(two(), e) for e in (0.5, 0.7, 0.9, 0.95, 1.0)] == [
        {"0": 1, "1": 1}, {"0": 2, "1": 1}, {"0": 2, "1": 2}, {"0": 3, "1": 2}, {"0": 3, "1": 2}]
    assert ranks_by_energy(two(), 0.9, skip=("1",)) == {"0": 2}


def test_a_layer_that_would_not_become_smaller_stays_whole():
    """Equal singular values: half of the energy is half of them, as many weights as before."""
    model = nn.Sequential(diagonal(*[1.0] * 10), diagonal(1.0))
    assert ranks_by_energy(model, 0.4) == {"0": 4, "1": 1}
    assert ranks_by_energy(model, 0.5) == {"1": 1}
    factorize(model, ranks_by_energy(model, 0.5))


def test_inputs_that_occur_decide_with_moments():
    model = nn.Sequential(diagonal(3.0, 2.0, 1.0))
    moments = {"0": torch.diag(torch.tensor([1.0, 1.0, 10_000.0] + [1.0] * 7))}
    assert ranks_by_energy(model, 0.95) == {"0": 3} and ranks_by_energy(model, 0.95, moments=moments) == {"0": 1}
    assert spectra(model[0], moment=moments["0"])[0][:3].tolist() == pytest.approx([100, 3, 2])


@pytest.mark.parametrize("method", low_rank.METHODS)
def test_spectra_are_those_of_the_matrices_that_are_cut(method):
    layer = nn.Conv2d(4, 6, 3).double()
    weight = layer.weight.detach()
    matrices = [weight.flatten(1), weight.transpose(0, 1).flatten(1)] if method == "tucker" else [matricise(weight, method)]
    found = spectra(layer, method=method)
    assert len(found) == len(matrices)
    for values, matrix in zip(found, matrices):
        torch.testing.assert_close(values, torch.linalg.svdvals(matrix))


@pytest.mark.parametrize("method", [*low_rank.METHODS, {"0": "spatial", "3": "tucker"}])
def test_ranks_by_energy_fit_the_layers_and_save_weights(method):
    model = models.cnn(image_size=IMAGE_SIZE, widths=(8, 16))
    for energy in (0.3, 0.6, 0.9, 1.0):
        ranks = ranks_by_energy(model, energy, method=method)
        small = factorize(model, ranks, method=method)      # refuses what saves nothing
        for name, rank in ranks.items():
            how = method.get(name, "channel") if isinstance(method, dict) else method
            numbers = rank if isinstance(rank, tuple) else (rank,)
            for values, number in zip(spectra(factorizable(model)[name], method=how), numbers, strict=True):
                kept = energy_kept(values)
                assert kept[number - 1] >= energy - 1e-9 and (number == 1 or kept[number - 2] < energy)
        assert cost.parameters(small) <= cost.parameters(model)


# --- under a budget ---

@given(seed=st.integers(0, 10_000), share=st.floats(0, 1.1), method=st.sampled_from(low_rank.METHODS))
@settings(max_examples=25)
def test_the_budget_is_kept_and_the_next_energy_would_break_it(seed, share, method):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 7), nn.Linear(7, 5))
    energies = sorted({float(e) for layer in factorizable(model).values() for v in spectra(layer, method=method) for e in energy_kept(v)})
    tried = [ranks_by_energy(model, energy, method=method) for energy in energies]
    costs = [cost.parameters(factorize(model, ranks, method=method)) for ranks in tried]
    budget = costs[0] + share * (costs[-1] - costs[0])
    best = max(i for i in range(len(costs)) if costs[i] <= budget)
    assert costs == sorted(costs)
    assert ranks_within(model, cost.parameters, budget, method=method) == tried[best]


def test_budgets_by_hand():
    """By parameters: ranks (1, 1) cost 40, (2, 1) 60, (2, 2) 80, (3, 2) 100."""
    found = [ranks_within(two(), cost.parameters, budget) for budget in (40, 59, 60, 79.9, 80, 99, 100, 1e9)]
    assert found == [{"0": 1, "1": 1}] * 2 + [{"0": 2, "1": 1}] * 2 + [{"0": 2, "1": 2}] * 2 + [{"0": 3, "1": 2}] * 2
    with pytest.raises(ValueError, match="even with rank 1 everywhere the model costs 40, more than the budget of 39.9"):
        ranks_within(two(), cost.parameters, 39.9)
    with pytest.raises(ValueError, match="the model costs 200, more than the budget of 1"):
        ranks_within(two(), cost.parameters, 1, skip=("0", "1"))


def test_any_cost_can_be_the_budget():
    model = tiny("lenet_300_100")
    for cost_of in (files.saved_bytes, lambda m: cost.macs(m, IMAGES[:2])):
        budget = 0.3 * cost_of(model)
        ranks = ranks_within(model, cost_of, budget, moments=low_rank.input_moments(model, IMAGES), skip=("5",))
        assert 0.28 * cost_of(model) < cost_of(factorize(model, ranks)) <= budget


# --- greedy ---

SCORES = {(None, None): 1.0, (2, None): 0.9, (None, 2): 0.95, (2, 2): 0.94, (None, 1): 0.5, (1, 2): 0.6, (2, 1): 0.8, (1, 1): 0.3}


def test_greedy_by_hand():
    """Half of 10 saves nothing, so the first step is to 2: 60 weights less. Then 1: 20 less."""
    def score(model):
        return SCORES[ranks_of(model)]
    first, second = Step("1", 2, 140, 0.95), Step("0", 2, 80, 0.94)
    third, fourth = Step("1", 1, 60, 0.8), Step("0", 1, 40, 0.3)
    for budget, steps in ((200, []), (199, [first]), (140, [first]), (139, [first, second]), (80, [first, second]),
                          (79, [first, second, third]), (40, [first, second, third, fourth])):
        ranks, found = greedy_ranks(two(), cost.parameters, budget, score, shrink=0.5)
        assert found == steps and ranks == {step.layer: step.rank for step in steps}
    with pytest.raises(ValueError, match="no rank can be lowered further, and the model still costs 40, more than the budget of 39"):
        greedy_ranks(two(), cost.parameters, 39, score, shrink=0.5)


def test_the_loss_counts_for_each_unit_that_is_saved():
    """The wide layer loses more, but saves far more."""
    model = nn.Sequential(diagonal(1.0, size=10), diagonal(1.0, size=40))       # only counted, never run

    def score(m):
        first, second = ranks_of(m)
        return 1 - 0.1 * (first is not None) - 0.2 * (second is not None)
    _, steps = greedy_ranks(model, cost.parameters, 1699, score, shrink=0.4)
    assert [step.layer for step in steps] == ["1"]


def test_of_layers_that_lose_nothing_the_one_that_saves_most_goes_first_then_the_first():
    model = nn.Sequential(diagonal(1.0), diagonal(1.0), diagonal(1.0, size=12))
    def score(m):               # better than whole, which counts as nothing lost
        return 1.0 + 0.1 * sum(rank is not None for rank in ranks_of(m))
    _, steps = greedy_ranks(model, cost.parameters, 64, score, shrink=0.45)
    assert [(step.layer, step.rank) for step in steps] == [("2", 5), ("2", 2), ("2", 1), ("0", 4), ("0", 1), ("1", 4), ("1", 1)]


def test_a_step_that_saves_nothing_is_not_taken_and_not_scored():
    scored = []

    def cost_of(model):             # only the second layer costs
        return 100 if ranks_of(model)[1] is None else 10 * ranks_of(model)[1]
    ranks, _ = greedy_ranks(two(), cost_of, 20, lambda m: scored.append(ranks_of(m)) or 1.0, shrink=0.5)
    assert ranks == {"1": 2} and scored == [(None, None), (None, 2)]


def test_ranks_fall_by_the_given_share_until_the_budget_is_reached():
    """From 30 to 21, which saves nothing, 14, 9, 6, …: 0.7 times the rank before, cut off."""
    model = nn.Sequential(diagonal(1.0, size=30))
    _, steps = greedy_ranks(model, cost.parameters, 60, lambda m: 1.0, shrink=0.7)
    assert [step.rank for step in steps] == [14, 9, 6, 4, 2, 1]


@pytest.mark.parametrize("method", ["spatial", "tucker", {"0": "tucker"}])
def test_greedy_on_convolutions_keeps_the_budget(method):
    model, split = models.cnn(image_size=IMAGE_SIZE, widths=(6, 8)), random_split(30)
    ranks, steps = greedy_ranks(model, files.saved_bytes, 0.6 * files.saved_bytes(model), lambda m: training.evaluate(m, split).value,
                                method=method, shrink=0.5)
    small = factorize(model, ranks, method=method)
    assert files.saved_bytes(small) == steps[-1].cost <= 0.6 * files.saved_bytes(model)
    assert training.evaluate(small, split).value == steps[-1].score
    costs = [step.cost for step in steps]
    assert costs == sorted(costs, reverse=True) and all(c > 0.6 * files.saved_bytes(model) for c in costs[:-1])


def test_greedy_uses_moments_and_skips():
    """What is scored is what `factorize` makes with the same moments."""
    model, split = tiny("lenet_300_100"), random_split(60)
    moments = low_rank.input_moments(model, split.images)

    def score(m):
        with torch.no_grad():
            return -float((m(split.images) - model(split.images)).abs().sum())
    ranks, steps = greedy_ranks(model, cost.parameters, 0.3 * cost.parameters(model), score, moments=moments, skip=("5",), shrink=0.5)
    assert set(ranks) <= {"1", "3"}
    assert score(factorize(model, ranks, moments=moments)) == steps[-1].score != score(factorize(model, ranks))


def test_a_model_that_is_one_layer():
    layer = diagonal(3.0, 2.0, 1.0)
    assert ranks_by_energy(layer, 0.9) == ranks_within(layer, cost.parameters, 50) == {"": 2}
    assert greedy_ranks(layer, cost.parameters, 50, lambda m: 1.0, shrink=0.5)[0] == {"": 2}


def test_the_model_stays_as_it_was():
    model = tiny("lenet_300_100").train()
    before, note = state(model), dict(model.architecture)
    ranks_by_energy(model, 0.5)
    ranks_within(model, cost.parameters, 0.5 * cost.parameters(model))
    greedy_ranks(model, cost.parameters, 0.5 * cost.parameters(model), lambda m: 1.0)
    assert same(state(model), before) and model.architecture == note and model.training


@pytest.mark.parametrize("call, message", [
    (lambda: ranks_by_energy(two(), 0), "energy must be a fraction above 0 and at most 1, e.g. 0.9; got 0"),
    (lambda: ranks_by_energy(two(), 90), "got 90"),
    (lambda: ranks_by_energy(two(), 0.9, skip=("2",)), "skip names layers that the model does not have: 2"),
    (lambda: ranks_by_energy(two(), 0.9, method="cp"), "method must be one of channel, spatial, tucker; got 'cp'"),
    (lambda: spectra(nn.Conv2d(2, 2, 3), method="tucker", moment=torch.eye(18)), "by 'channel' only; got 'tucker'"),
    (lambda: greedy_ranks(two(), cost.parameters, 10, len, shrink=1.0), "shrink must be a fraction between 0 and 1, e.g. 0.7; got 1.0"),
    (lambda: greedy_ranks(two(), cost.parameters, 10, len, shrink=0), "got 0"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
