"""Pruning removes exactly what the formula says, equals PyTorch's own, and what is removed stays removed."""
import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from course_lib import pruning, training
from helpers import TINY, random_split, same, state, tiny

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
# Few different values, so that ties with each other and with the threshold are common.
VALUES = st.sampled_from([0.0, -0.0, 0.1, -0.1, 0.25, -0.25, 0.3, 1.0, -2.0]) | st.floats(-4, 4, width=16)


@st.composite
def weights(draw, min_size=0):
    """A tensor of any shape and floating-point type, contiguous or not."""
    rows, columns = draw(st.integers(min_size, 4)), draw(st.integers(min_size, 4))
    values = draw(st.lists(VALUES, min_size=rows * columns, max_size=rows * columns))
    weight = torch.tensor(values, dtype=torch.float64).view(rows, columns).to(draw(DTYPES))
    return weight.t() if draw(st.booleans()) else weight


def model_of(weight):
    """A dense layer with these weights."""
    layer = nn.Linear(1, 1).to(weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


# --- the formula ---

def test_the_formula_by_hand():
    """|w| < 0.5 goes. 0.5 itself stays, on both sides of zero."""
    weight = torch.tensor([[0.1, -0.5, 0.5], [-0.49, 2.0, 0.0]])
    assert pruning.threshold_mask(weight, threshold=0.5).tolist() == [[False, True, True], [False, True, False]]
    pruned = pruning.prune_threshold(model_of(weight), threshold=0.5)
    assert pruned.weight.tolist() == [[0, -0.5, 0.5], [0, 2.0, 0]]


@given(weights(), st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.3, 1.0, 1e30]), st.floats(0, 5)))
@settings(max_examples=150)
def test_a_weight_goes_exactly_if_its_magnitude_is_below_the_threshold(weight, threshold):
    """Compared as exact numbers, whatever the weight's own precision; empty tensors and one element too."""
    keep = pruning.threshold_mask(weight, threshold=threshold)
    assert keep.dtype == torch.bool and keep.shape == weight.shape
    assert keep.tolist() == [[abs(w) >= threshold for w in row] for row in weight.tolist()]
    if weight.numel():
        pruned = pruning.prune_threshold(model_of(weight.clone()), threshold=threshold).weight
        assert pruned.dtype == weight.dtype
        assert pruned.tolist() == [[w if abs(w) >= threshold else 0.0 for w in row] for row in weight.tolist()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_threshold_is_not_rounded_to_the_precision_of_the_weights(dtype):
    """0.1 lies between two numbers of each type. The nearest one is on one side of it, and decides by that."""
    nearest = torch.tensor([0.1], dtype=dtype)
    exact = float(nearest)
    assert exact != 0.1
    assert pruning.threshold_mask(nearest, threshold=0.1).item() == (exact > 0.1)
    assert pruning.threshold_mask(nearest, threshold=exact).item()
    assert not pruning.threshold_mask(nearest, threshold=math.nextafter(exact, 1)).item()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 3, 4, 5)])
def test_any_shape_has_a_mask(shape):
    assert pruning.threshold_mask(torch.ones(shape), threshold=0.5).shape == shape


@given(weights(), st.floats(0, 3), st.floats(0, 3))
@settings(max_examples=60)
def test_a_higher_threshold_never_keeps_more(weight, first, second):
    low, high = (pruning.threshold_mask(weight, threshold=t) for t in sorted((first, second)))
    assert not (high & ~low).any()


@given(weights(min_size=1), st.floats(0, 3))
@settings(max_examples=60)
def test_pruning_twice_changes_nothing_more(weight, threshold):
    once = pruning.prune_threshold(model_of(weight), threshold=threshold)
    assert same(state(pruning.prune_threshold(once, threshold=threshold)), state(once))


@given(weights(min_size=1))
@settings(max_examples=40)
def test_a_threshold_of_zero_changes_nothing(weight):
    model = model_of(weight)
    assert same(state(pruning.prune_threshold(model, threshold=0)), state(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(dtype, bad):
    weight = torch.ones(3, 3, dtype=dtype)
    weight[1, 1] = bad
    for refuse in (lambda: pruning.threshold_mask(weight, threshold=0.5),
                   lambda: pruning.threshold_for(model_of(weight), sparsity=0.5),
                   lambda: pruning.prune_threshold(model_of(weight), threshold=0.5)):
        with pytest.raises(ValueError, match=r"weights must be finite; got NaN or infinity \(did training diverge\?\)"):
            refuse()


# --- PyTorch's own ---

class ThresholdPruning(prune.BasePruningMethod):
    """Pruning by threshold as a method of torch.nn.utils.prune."""
    PRUNING_TYPE = "unstructured"

    def __init__(self, threshold):
        self.threshold = threshold

    def compute_mask(self, t, default_mask):
        return default_mask * (t.abs() >= self.threshold)


def layers_of(model):
    return [(module, "weight") for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def masks_of(model):
    return {name.removesuffix("_mask"): mask.bool() for name, mask in model.named_buffers() if name.endswith("_mask")}


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("threshold", [0.03125, 0.125])         # exact in single precision
def test_pruning_equals_a_pruning_method_of_pytorch(name, threshold):
    model = tiny(name, channels=3)
    expected = copy.deepcopy(model)
    for module, _ in layers_of(expected):
        ThresholdPruning.apply(module, "weight", threshold=threshold)
    masks = masks_of(expected)
    ours = pruning.prune_threshold(model, threshold=threshold)
    for n, weight in pruning.prunable(model).items():
        assert torch.equal(pruning.threshold_mask(weight, threshold=threshold), masks[n])
    for module, _ in layers_of(expected):
        prune.remove(module, "weight")
    assert same(state(ours), state(expected)) and pruning.sparsity(ours) > 0


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("share", [0.0, 0.37, 0.9, 1.0])
def test_pruning_to_a_sparsity_equals_global_l1_pruning_of_pytorch(name, share):
    model = tiny(name, channels=3)
    expected = copy.deepcopy(model)
    n = sum(w.numel() for w in pruning.prunable(model).values())
    prune.global_unstructured(layers_of(expected), prune.L1Unstructured, amount=round(share * n))
    for module, _ in layers_of(expected):
        prune.remove(module, "weight")
    ours = pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=share))
    assert same(state(ours), state(expected))
    assert pruning.sparsity(ours) == pytest.approx(round(share * n) / n, abs=1e-12)


# --- which threshold ---

def test_the_threshold_by_hand():
    """Five weights, 40 % of them: 0.1 and 0.2 go, so the threshold is 0.3. All of them: just above 0.5."""
    model = model_of(torch.tensor([[0.3, -0.1, 0.5, 0.2, -0.4]], dtype=torch.float64))
    assert pruning.threshold_for(model, sparsity=0.4) == 0.3
    assert pruning.threshold_for(model, sparsity=0) == 0.1
    assert pruning.threshold_for(model, sparsity=1) == math.nextafter(0.5, 1)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30, unique=True), st.floats(0, 1), DTYPES)
@settings(max_examples=100)
def test_exactly_the_rounded_share_goes_where_no_weights_tie(magnitudes, share, dtype):
    # 1 to 10,000 in units of 2^-12 would tie in half precision: take the distinct ones only
    weight = (torch.tensor(magnitudes, dtype=torch.float64) / 4096).to(dtype).unique()
    weight = weight * torch.tensor([1, -1], dtype=dtype).repeat(len(weight))[:len(weight)]
    threshold = pruning.threshold_for(model_of(weight[None]), sparsity=share)
    removed = ~pruning.threshold_mask(weight, threshold=threshold)
    k = round(share * len(weight))
    assert removed.sum() == k
    assert torch.equal(weight.abs().double()[removed].sort().values, weight.abs().double().sort().values[:k])


@given(weights(min_size=1), st.floats(0, 1))
@settings(max_examples=100)
def test_with_ties_never_more_than_the_share_goes_and_ties_go_together(weight, share):
    threshold = pruning.threshold_for(model_of(weight), sparsity=share)
    magnitudes = sorted(abs(w) for row in weight.tolist() for w in row)
    k = round(share * len(magnitudes))
    removed = int((~pruning.threshold_mask(weight, threshold=threshold)).sum())
    assert removed == (len(magnitudes) if k == len(magnitudes) else magnitudes.index(magnitudes[k])) <= k


@pytest.mark.parametrize("share, removed", [(0, 0), (0.5, 0), (0.8, 0), (1, 4)])
def test_four_equal_weights_go_all_or_none(share, removed):
    model = model_of(torch.full((2, 2), -0.7))
    assert pruning.sparsity(pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=share))) == removed / 4


def test_the_share_is_that_of_all_layers_together():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1, 101).view(10, 10))
        model[1].weight.copy_(torch.arange(1001, 1101).view(10, 10))
    pruned = pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=0.5))
    assert pruned[0].weight.count_nonzero() == 0 and pruned[1].weight.count_nonzero() == 100


# --- models ---

def test_pruning_leaves_its_argument_biases_and_normalisation_as_they_were():
    model = tiny("resnet").train()
    before = state(model)
    pruned = pruning.prune_threshold(model, threshold=0.2)
    assert same(state(model), before) and model.training and pruned is not model
    assert pruned.architecture == model.architecture
    kept = [name for name in before if name not in pruning.prunable(model)]
    assert any("bias" in name for name in kept) and any("running_mean" in name for name in kept)
    assert all(torch.equal(pruned.state_dict()[name], before[name]) for name in kept)
    assert all(p.requires_grad for p in pruned.parameters())


def test_the_prunable_weights_are_those_of_the_linear_and_convolutional_layers():
    for name in TINY:
        model = tiny(name)
        expected = {id(getattr(module, "weight")) for module, _ in layers_of(model)}
        assert {id(p) for p in pruning.prunable(model).values()} == expected


def test_a_layer_without_weights_is_passed_over():
    model = nn.Sequential(model_of(torch.zeros(0, 3)), model_of(torch.tensor([[0.1, 0.7]])))
    assert list(pruning.prunable(model)) == ["1.weight"]
    assert pruning.threshold_for(model, sparsity=0.5) == pytest.approx(0.7)
    pruned = pruning.prune_threshold(model, threshold=0.5)
    assert pruning.sparsity(pruned) == 0.5 and pruned[0].weight.shape == (0, 3)


def test_sparsity_by_hand():
    """Three of four and none of two weights are zero; the zero bias does not count."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, -0.0], [0.0, 3.0]]))
        model[0].bias.zero_()
        model[1].weight.fill_(1)
    assert pruning.sparsity(model) == 0.5


# --- masks through training ---

HARD = {"epochs": 3, "lr": 0.05, "batch_size": 8, "weight_decay": 0.5}


def zeros_of(model):
    return {name: weight == 0 for name, weight in pruning.prunable(model).items()}


@pytest.fixture(scope="module")
def pruned():
    model = tiny("resnet")
    return pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=0.6))


class EveryStep:
    """Notes after each step, and after the masks, how many weights are zero and which."""

    def __init__(self):
        self.sparsities = []

    def after_step(self, model):
        self.sparsities.append(pruning.sparsity(model))


def test_masks_hold_through_momentum_and_weight_decay(pruned):
    before, watch = zeros_of(pruned), EveryStep()
    trained, _ = training.fit(pruned, random_split(), callbacks=[pruning.Masks(pruned), watch], **HARD)
    after = zeros_of(trained)
    assert watch.sparsities == [pruning.sparsity(pruned)] * 15
    assert all(torch.equal(after[name], before[name]) for name in before)
    changed = [n for n, w in pruning.prunable(trained).items() if not torch.equal(w, pruning.prunable(pruned)[n])]
    assert changed == list(before)


def test_without_masks_the_removed_weights_come_back(pruned):
    trained, _ = training.fit(pruned, random_split(), **HARD)
    assert pruning.sparsity(trained) < 0.01 < pruning.sparsity(pruned)


def test_masks_remember_the_model_they_were_made_of_and_touch_nothing_else(pruned):
    masks, model = pruning.Masks(pruned), tiny("resnet", seed=1)
    before = state(model)
    masks.after_step(model)
    for name, tensor in model.state_dict().items():
        expected = before[name] * (pruned.state_dict()[name] != 0) if name in masks.kept else before[name]
        assert torch.equal(tensor, expected)


def test_masks_of_a_dense_model_change_nothing():
    model = tiny("mlp")
    plain, _ = training.fit(model, random_split(), **HARD)
    masked, _ = training.fit(model, random_split(), callbacks=[pruning.Masks(model)], **HARD)
    assert same(state(plain), state(masked))
