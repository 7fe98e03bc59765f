"""Pruning by amount removes exactly as many weights as PyTorch does, and the same ones where no scores tie."""
import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from course_lib import pruning
from helpers import TINY, same, state, tiny

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
# The ends, a half (where k is rounded to even), and anything between.
AMOUNTS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
# Few different values, so that ties at the cut are common; none is zero yet.
TIED = st.sampled_from([0.1, -0.1, 0.25, -0.25, 0.3, 1.0, -2.0])


@st.composite
def layers(draw):
    """A model of one to three layers of any shape, contiguous or not, with many ties."""
    dtype, made = draw(DTYPES), []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        values = draw(st.lists(TIED, min_size=rows * columns, max_size=rows * columns))
        weight = torch.tensor(values, dtype=torch.float64).to(dtype).view(rows, columns)
        layer = nn.Linear(1, 1)
        layer.weight = nn.Parameter(weight.t() if draw(st.booleans()) else weight)
        made.append(layer)
    return nn.Sequential(*made)


def layers_of(model):
    return [(module, "weight") for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def by_pytorch(model, amounts, scope, scores=None):
    """The weights after torch.nn.utils.prune was applied once for each amount."""
    model, names = copy.deepcopy(model), list(pruning.prunable(model))
    for weight in pruning.prunable(model).values():     # PyTorch prunes contiguous weights only
        weight.data = weight.data.contiguous()
    targets = layers_of(model)
    scores = {target: scores[name] for target, name in zip(targets, names)} if scores else {}
    for amount in map(float, amounts):
        if scope == "global":
            prune.global_unstructured(targets, prune.L1Unstructured, importance_scores=scores or None, amount=amount)
        else:
            for target in targets:
                prune.l1_unstructured(*target, amount=amount, importance_scores=scores.get(target))
    for target in targets:
        prune.remove(*target)
    return pruning.prunable(model)


def by_us(model, amounts, scope):
    for amount in amounts:
        model = pruning.prune(model, amount=amount, scope=scope)
    return pruning.prunable(model)


def removed_magnitudes(before, after, scope):
    """Which sizes went, sorted: equal for two ways to prune that differ only in the choice between ties."""
    gone = [before[name].detach().abs().double()[after[name] == 0] for name in before]
    return [part.sort().values.tolist() for part in (gone if scope == "layer" else [torch.cat(gone)])]


# --- PyTorch's own ---

@pytest.mark.parametrize("scope", ["global", "layer"])
@given(layers(), st.lists(AMOUNTS, min_size=1, max_size=3))
@settings(max_examples=150)
def test_as_many_weights_go_as_in_pytorch_and_as_large_ones_when_repeated_too(scope, model, amounts):
    """The count is that of PyTorch with ties as well; and the weights that go have the same magnitudes."""
    before = pruning.prunable(model)
    ours, theirs = by_us(model, amounts, scope), by_pytorch(model, amounts, scope)
    assert removed_magnitudes(before, ours, scope) == removed_magnitudes(before, theirs, scope)
    for name, weight in ours.items():
        assert weight.dtype == before[name].dtype and torch.equal(weight, before[name] * (weight != 0))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("amounts", [[0.0], [0.37], [0.9], [1.0], [0.5, 0.5], [0.3, 0.0, 0.81]], ids=str)
def test_where_no_weights_tie_the_same_ones_go_as_in_pytorch(name, scope, amounts):
    model = tiny(name, channels=3)
    ours, theirs = by_us(model, amounts, scope), by_pytorch(model, amounts, scope)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("amount", [0.2, 0.5, 0.85])
def test_other_scores_are_the_importance_scores_of_pytorch(scope, amount):
    model = tiny("resnet")
    scores = pruning.at_random(model, seed=3)
    ours = pruning.prunable(pruning.prune(model, amount=amount, scope=scope, scores=scores))
    theirs = by_pytorch(model, [amount], scope, scores)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert not all(torch.equal(weight, ours[n]) for n, weight in by_us(model, [amount], scope).items())


# --- by hand ---

def row(*values):
    layer = nn.Linear(len(values), 1)
    layer.weight = nn.Parameter(torch.tensor([values], dtype=torch.float32))
    return layer


TEN = row(*(0.1 * i * (-1) ** i for i in range(1, 11)))


def test_half_twice_on_ten_weights_leaves_three():
    """5 of 10, then round(2.5) = 2 of the 5 that are left. (0.5 twice is not 0.75: 2.5 is rounded to even.)"""
    once = pruning.prune(TEN, amount=0.5)
    twice = pruning.prune(once, amount=0.5)
    assert once.weight.count_nonzero() == 5 and twice.weight.count_nonzero() == 3
    assert (twice.weight == 0).tolist() == [[True] * 7 + [False] * 3]


@pytest.mark.parametrize("amount, gone", [(0.05, 0), (0.15, 2), (0.25, 2), (0.35, 4), (0.45, 4), (0.4501, 5)])
def test_a_half_is_rounded_to_the_even_count(amount, gone):
    """10 · 0.35 is exactly 3.5 in floating point, and so on."""
    assert (pruning.prune(TEN, amount=amount).weight == 0).sum() == gone == round(10 * amount)


def test_how_the_count_relates_to_that_of_other_libraries():
    """25 % of ten weights: the rules of PyTorch, TFMOT and Distiller remove 2, that of NNCF 3.

    With ties at the cut, TFMOT keeps all of them and Distiller removes all: ours and PyTorch's keep the count.
    """
    n, s = 10, 0.25
    magnitudes = TEN.weight.detach().abs().flatten()
    ordered = magnitudes.sort().values
    tfmot = magnitudes >= ordered.flip(0)[max(round(n * (1 - s)), 1) - 1]          # the k-th largest stays
    distiller = magnitudes > ordered[math.floor(s * n) - 1]
    nncf = magnitudes > magnitudes.kthvalue(int((n - 1) * s) + 1).values
    assert [int((~keep).sum()) for keep in (tfmot, distiller, nncf)] == [2, 2, 3]
    ours = pruning.prune(TEN, amount=s)
    assert torch.equal(ours.weight[0] != 0, tfmot) and torch.equal(tfmot, distiller)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_of_weights_that_tie_those_that_come_first_go(scope):
    model = nn.Sequential(row(0.5, -0.5, 0.1, 0.5))
    pruned = pruning.prune(model, amount=0.5, scope=scope)
    assert pruned[0].weight.tolist() == [[0, -0.5, 0, 0.5]]


def test_global_compares_all_layers_and_layer_each_one_by_itself():
    model = nn.Sequential(row(1, 2, 3, 4), row(5, 6, 7, 8))
    everywhere, each = (pruning.prune(model, amount=0.5, scope=scope) for scope in ("global", "layer"))
    assert [layer.weight.tolist()[0] for layer in everywhere] == [[0, 0, 0, 0], [5, 6, 7, 8]]
    assert [layer.weight.tolist()[0] for layer in each] == [[0, 0, 3, 4], [0, 0, 7, 8]]


def test_each_layer_may_have_an_amount_of_its_own():
    model = nn.Sequential(row(1, 2, 3, 4), row(5, 6, 7, 8))
    for scope in ("global", "layer"):
        pruned = pruning.prune(model, amount={"1.weight": 0.75, "0.weight": 0}, scope=scope)
        assert [layer.weight.tolist()[0] for layer in pruned] == [[1, 2, 3, 4], [0, 0, 0, 8]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_weights_that_are_zero_already_count_as_removed(scope):
    """Here PyTorch differs: it knows its masks only, and would first remove these."""
    pruned = pruning.prune(row(0.0, -0.0, 1, 2, 3, 4), amount=0.5, scope=scope)
    assert pruned.weight.tolist() == [[0, 0, 0, 0, 3, 4]]
    empty = pruning.prune(pruned, amount=1, scope=scope)
    assert pruning.sparsity(empty) == 1
    assert same(state(pruning.prune(empty, amount=0.5, scope=scope)), state(empty))


@pytest.mark.parametrize("amount, gone", [(0, 0), (0.5, 0), (0.51, 1), (1, 1)])
def test_a_layer_of_one_weight(amount, gone):
    assert (pruning.prune(row(-3), amount=amount).weight == 0).sum() == gone


def test_a_low_score_goes_however_large_the_weight_is():
    pruned = pruning.prune(row(9, -8, 1, 2), amount=0.5, scores={"weight": torch.tensor([[-1.0, 0.0, 3.0, 2.0]])})
    assert pruned.weight.tolist() == [[0, 0, 1, 2]]


@given(layers(), AMOUNTS)
@settings(max_examples=50)
def test_a_removed_weight_stays_removed_and_the_model_as_it_was(model, amount):
    before = state(model)
    masks = pruning.keep_masks(model, pruning.magnitude(model), amount=0.4)
    pruned = pruning.apply_masks(model, masks)
    again = pruning.keep_masks(pruned, pruning.magnitude(pruned), amount=amount)
    assert same(state(model), before)
    assert all(mask.dtype == torch.bool and mask.shape == masks[n].shape and not (mask & ~masks[n]).any()
               for n, mask in again.items())


# --- masks and rewinding ---

def test_rewinding_takes_the_first_numbers_and_the_last_zeros():
    first, last = row(1, -2, 3, 4), row(0, 7, -0.0, 9)
    ticket = pruning.rewind(last, first)
    assert ticket.weight.tolist() == [[0, -2, 0, 4]] and torch.equal(ticket.bias, first.bias)
    assert first.weight.tolist() == [[1, -2, 3, 4]] and last.weight.tolist() == [[0, 7, 0, 9]]


def test_masks_touch_nothing_but_the_weights_they_name():
    model = tiny("resnet").train()
    before = state(model)
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in pruning.prunable(model).items()}
    pruned = pruning.apply_masks(model, masks)
    assert same(state(model), before) and model.training and pruned.training and pruning.sparsity(pruned) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items() if name not in masks)
    assert pruned.architecture == model.architecture


# --- bad input ---

class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def spoiled(value):
    model = tiny("mlp")
    with torch.no_grad():
        model[1].weight[2, 3] = value
    return model


IMAGES, LABELS = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
CALLS = {
    "prune": lambda model: pruning.prune(model, amount=0.5),
    "prune each layer": lambda model: pruning.prune(model, amount=0.5, scope="layer"),
    "prune at random": lambda model: pruning.prune(model, amount=0.5, scores=pruning.at_random(model, seed=0)),
    "prune by influence": lambda model: pruning.prune(model, amount=0.5, scores=pruning.taylor(model, IMAGES, LABELS)),
    "prune by activation": lambda model: pruning.prune(model, amount=0.5, scores=pruning.activation(model, IMAGES)),
    "prune gradually": lambda model: pruning.Gradual(final=0.5, begin=0, end=2).before_training(model),
    "scan": lambda model: pruning.scan(model, lambda _: 1.0, levels=[0, 0.5]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_shared_layer_is_refused_and_the_model_stays_as_it_was(call):
    model = Tied()
    before = state(model)
    with pytest.raises(ValueError, match="first.weight and second.weight are one and the same weight; pruning a shared layer"):
        call(model)
    assert same(state(model), before)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_model_without_weights_is_refused(call):
    with pytest.raises(ValueError, match="the model has no weight with two dimensions or more, or it is empty"):
        call(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "prune gradually"],
                         ids=[name for name in CALLS if name != "prune gradually"])
def test_weights_that_are_not_finite_are_refused_and_the_model_stays_as_it_was(call, value):
    model = spoiled(value)
    before = {name: tensor.nan_to_num(9e9) for name, tensor in state(model).items()}
    with pytest.raises(ValueError, match=r"must be finite; got NaN or infinity \(did training diverge\?\)"):
        call(model)
    assert same({name: tensor.nan_to_num(9e9) for name, tensor in state(model).items()}, before)


@pytest.mark.parametrize("bad", [-0.1, 1.01, 90, math.nan, math.inf, True])
@pytest.mark.parametrize("scope", ["global", "layer", "each its own"])
def test_an_amount_outside_zero_to_one_is_refused_and_the_model_stays_as_it_was(bad, scope):
    model = tiny("mlp")
    before = state(model)
    amount = bad if scope != "each its own" else dict.fromkeys(pruning.prunable(model), bad)
    with pytest.raises(ValueError, match=r"amount must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got"):
        pruning.prune(model, amount=amount, scope="layer" if scope == "layer" else "global")
    assert same(state(model), before)


def test_masks_that_do_not_fit_are_refused_and_the_model_stays_as_it_was():
    model = row(1, 2, 3)
    before = state(model)
    for masks in ({}, {"weight": torch.ones(1, 2, dtype=torch.bool)}, {"weight": torch.ones(3, dtype=torch.bool)},
                  {"weight": torch.ones(1, 3, dtype=torch.bool), "bias": torch.ones(1, dtype=torch.bool)}):
        with pytest.raises(ValueError, match=r"masks must have the names and shapes of the weights, \{'weight': \(1, 3\)\}; got"):
            pruning.apply_masks(model, masks)
    with pytest.raises(ValueError, match="the mask of weight must be boolean, True for what stays; got torch.float32"):
        pruning.apply_masks(model, {"weight": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="scores must have the names and shapes of the weights"):
        pruning.prune(model, amount=0.5, scores={"weight": torch.ones(3)})
    with pytest.raises(ValueError, match="masks must have the names and shapes of the weights"):
        pruning.rewind(row(1, 0), model)
    assert same(state(model), before)
