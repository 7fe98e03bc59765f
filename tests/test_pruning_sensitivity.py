"""The scan prunes one layer at a time; the amounts read off it add up, and spare the layers that suffer most."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import pruning, training
from helpers import random_split, same, state, tiny

LEVELS = [0, 0.25, 0.5, 0.75, 1]


def chain(*sizes):
    """Linear layers of these numbers of weights, all different; only their sizes and names matter here."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size, 1, bias=False) for size in sizes))


def curves(*accuracies, levels=LEVELS):
    """A scan made up by hand: one list of accuracies for each layer of `chain`."""
    return pruning.Sensitivity(tuple(levels), {f"{i}.weight": list(values) for i, values in enumerate(accuracies)})


def reached(model, amounts):
    sizes = {name: w.numel() for name, w in pruning.prunable(model).items()}
    return sum(sizes[name] * amounts[name] for name in sizes) / sum(sizes.values())


# --- the scan ---

def test_the_scan_prunes_one_layer_at_a_time_and_leaves_its_argument_alone():
    model, judged = tiny("cnn").train(), []
    before = state(model)

    def judge(candidate):
        assert candidate is not model
        judged.append(state(candidate))
        return float(len(judged))

    scan = pruning.scan(model, judge, levels=LEVELS)
    names = list(pruning.prunable(model))
    assert scan.levels == tuple(LEVELS) and list(scan.accuracy) == names and len(judged) == len(names) * len(LEVELS)
    for i, name in enumerate(names):
        for j, level in enumerate(LEVELS):
            number = i * len(LEVELS) + j
            assert scan.accuracy[name][j] == number + 1
            alone = pruning.prune(model, amount={n: level if n == name else 0 for n in names})
            assert same(judged[number], state(alone))
            zeros = int((judged[number][name] == 0).sum())
            assert zeros == round(level * before[name].numel())
            assert all(torch.equal(judged[number][n], before[n]) for n in before if n != name)
    assert same(state(model), before) and model.training


def test_the_scan_takes_the_accuracy_on_validation():
    model, split = tiny("mlp"), random_split()
    scan = pruning.scan(model, lambda m: training.evaluate(m, split).value, levels=[0, 0.9])
    names = list(pruning.prunable(model))
    for name in names:
        alone = pruning.prune(model, amount={n: 0.9 if n == name else 0 for n in names})
        assert scan.accuracy[name] == [training.evaluate(m, split).value for m in (model, alone)]


@pytest.mark.parametrize("levels", [[], [0], [0.1, 0.5], [0, 0.5, 0.5], [0, 0.9, 0.5]])
def test_levels_must_rise_from_zero(levels):
    with pytest.raises(ValueError, match=r"levels must rise from 0, e.g. \[0, 0.5, 0.9\]; got \["):
        pruning.scan(tiny("mlp"), lambda _: 1.0, levels=levels)


@pytest.mark.parametrize("bad", [-0.5, 1.5, 90, math.nan])
def test_a_level_outside_zero_to_one_is_refused_before_anything_is_judged(bad):
    judged = []
    with pytest.raises(ValueError, match="each level must be a fraction from 0 to 1"):
        pruning.scan(tiny("mlp"), judged.append, levels=[0, bad])
    assert judged == []


@pytest.mark.parametrize("accuracy", [math.nan, math.inf])
def test_an_accuracy_that_is_no_number_is_refused_and_the_model_stays_as_it_was(accuracy):
    model = tiny("mlp")
    before = state(model)
    with pytest.raises(ValueError, match="judge must give a finite accuracy"):
        pruning.scan(model, lambda _: accuracy, levels=[0, 0.5])
    assert same(state(model), before)


# --- the amounts ---

def test_the_amounts_by_hand():
    """Both layers have 100 weights. At a loss of 0.2 the first may lose half, the second all: 75 %."""
    model = chain(100, 100)
    scan = curves([0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.85, 0.8, 0.75, 0.7])
    assert pruning.amounts_for(model, scan, sparsity=0.75) == pytest.approx({"0.weight": 0.5, "1.weight": 1}, abs=1e-6)
    assert pruning.amounts_for(model, scan, sparsity=0.375) == pytest.approx({"0.weight": 0.25, "1.weight": 0.5}, abs=1e-6)


def test_large_layers_count_by_their_weights():
    """1/3 of the loss: 1/3 of the first layer and 2/3 of the second, which is three times as large: 7/12."""
    scan = curves([0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.85, 0.8, 0.75, 0.7])
    amounts = pruning.amounts_for(chain(100, 300), scan, sparsity=7 / 12)
    assert amounts == pytest.approx({"0.weight": 1 / 3, "1.weight": 2 / 3}, abs=1e-6)


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@st.composite
def scans(draw):
    """Layers of any size with any curves: rising by chance, flat, or falling all the way."""
    sizes, values = draw(SIZES), st.integers(0, 40).map(lambda correct: correct / 40)
    return chain(*sizes), curves(*(draw(st.lists(values, min_size=5, max_size=5)) for _ in sizes))


@given(scans(), st.floats(0, 1))
@settings(max_examples=150)
def test_the_amounts_reach_the_wanted_sparsity_to_within_rounding(made, sparsity):
    model, scan = made
    before = state(model)
    amounts = pruning.amounts_for(model, scan, sparsity=sparsity)
    assert list(amounts) == list(pruning.prunable(model)) and all(0 <= amount <= 1 for amount in amounts.values())
    assert reached(model, amounts) == pytest.approx(sparsity, abs=1e-5)
    pruned = pruning.prune(model, amount=amounts)
    n = sum(w.numel() for w in pruning.prunable(model).values())
    assert abs(pruning.sparsity(pruned) - sparsity) * n <= 0.5 * len(amounts) + 1e-5 * n
    assert same(state(model), before)


@given(scans(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_a_higher_sparsity_never_takes_less_from_any_layer(made, first, second):
    model, scan = made
    low, high = (pruning.amounts_for(model, scan, sparsity=s) for s in sorted((first, second)))
    assert all(low[name] <= high[name] + 1e-6 for name in low)


@given(st.lists(st.floats(0, 0.2), min_size=4, max_size=4), st.floats(0, 1), SIZES)
@settings(max_examples=60)
def test_layers_that_suffer_alike_get_the_same_amount_whatever_their_size(drops, sparsity, sizes):
    accuracy = [0.9]
    for drop in drops:
        accuracy.append(accuracy[-1] - drop)
    amounts = list(pruning.amounts_for(chain(*sizes), curves(*[accuracy] * len(sizes)), sparsity=sparsity).values())
    assert amounts == pytest.approx([sparsity] * len(sizes), abs=1e-5) and len(set(amounts)) == 1


@given(st.lists(st.floats(0.01, 0.1), min_size=4, max_size=4), st.lists(st.floats(0, 0.1), min_size=4, max_size=4),
       st.floats(0, 1), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=60)
def test_a_layer_that_suffers_more_everywhere_never_loses_more(drops, extra, sparsity, one, other):
    robust, sensitive = [0.9], [0.9]
    for drop, more in zip(drops, extra):
        robust.append(robust[-1] - drop)
        sensitive.append(sensitive[-1] - drop - more)
    amounts = pruning.amounts_for(chain(one, other), curves(robust, sensitive), sparsity=sparsity)
    assert amounts["1.weight"] <= amounts["0.weight"] + 1e-6


def test_where_nothing_is_lost_as_much_as_possible_goes_before_anything_is_paid():
    """The first layer costs nothing up to its last level; it alone gives the 50 %."""
    scan = curves([0.9] * 5, [0.9, 0.7, 0.5, 0.3, 0.1])
    amounts = pruning.amounts_for(chain(100, 100), scan, sparsity=0.5)
    assert amounts == pytest.approx({"0.weight": 1, "1.weight": 0}, abs=1e-6)


def test_a_rise_by_chance_is_taken_as_flat():
    """Falling to 0.7, up to 0.95, down to 0.7: what once was lost stays lost, so 0.95 is no bargain."""
    up = curves([0.9, 0.7, 0.95, 0.7, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5])
    flat = curves([0.9, 0.7, 0.7, 0.7, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5])
    for sparsity in (0.1, 0.3, 0.5, 0.8):
        assert pruning.amounts_for(chain(40, 70), up, sparsity=sparsity) == pytest.approx(
            pruning.amounts_for(chain(40, 70), flat, sparsity=sparsity), abs=1e-6)


@pytest.mark.parametrize("sparsity", [-0.1, 1.2, 90, math.nan, True])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got"):
        pruning.amounts_for(chain(4), curves([1, 1, 1, 1, 0]), sparsity=sparsity)


def test_a_sparsity_above_the_scan_is_refused():
    scan = curves([1.0, 0.5], levels=[0, 0.9])
    assert pruning.amounts_for(chain(4), scan, sparsity=0.9) == pytest.approx({"0.weight": 0.9}, abs=1e-9)
    with pytest.raises(ValueError, match="the scan ends at 0.9, below the wanted sparsity 0.95: scan higher levels"):
        pruning.amounts_for(chain(4), scan, sparsity=0.95)


def test_a_scan_of_other_layers_is_refused():
    with pytest.raises(ValueError, match="the scan is of other layers: 0.weight, not 0.weight, 1.weight"):
        pruning.amounts_for(chain(4, 4), curves([1, 1, 1, 1, 0]), sparsity=0.5)
