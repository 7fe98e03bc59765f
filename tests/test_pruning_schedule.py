"""The schedule is the published one on given steps, and masks that grow during training hold and end where they should."""
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib import pruning, training
from helpers import random_split, same, state, tiny

# --- the schedule ---

# What PolynomialDecay of tensorflow-model-optimization 0.8.1 (TensorFlow 2.21.0) returned, in single precision:
# arguments, the steps at which it says "prune now", and the sparsity it asks for at some steps, these among them.
TFMOT = [
    ({"initial": 0.0, "final": 0.9, "begin": 0, "end": 100, "power": 3, "frequency": 10}, range(0, 101, 10),
     {0: 0.0, 1: 0.026731, 5: 0.128363, 10: 0.2439, 20: 0.4392, 30: 0.5913, 33: 0.629313, 40: 0.7056, 50: 0.7875,
      60: 0.8424, 70: 0.8757, 80: 0.8928, 90: 0.8991, 99: 0.899999, 100: 0.9, 114: 0.9}),
    ({"initial": 0.2, "final": 0.8, "begin": 10, "end": 50, "power": 3, "frequency": 7}, [10, 17, 24, 31, 38, 45],
     {0: 0.2, 5: 0.2, 10: 0.2, 17: 0.463091, 24: 0.635225, 31: 0.735697, 33: 0.753941, 38: 0.7838, 45: 0.798828,
      49: 0.799991, 50: 0.8, 64: 0.8}),
    ({"initial": 0.0, "final": 0.5, "begin": 5, "end": 25, "power": 1, "frequency": 4}, [5, 9, 13, 17, 21, 25],
     {0: 0.0, 5: 0.0, 9: 0.1, 13: 0.2, 17: 0.3, 21: 0.4, 24: 0.475, 25: 0.5, 39: 0.5}),
    ({"initial": 0.5, "final": 0.95, "begin": 3, "end": 20, "power": 2, "frequency": 5}, [3, 8, 13, 18],
     {0: 0.5, 3: 0.5, 5: 0.599654, 8: 0.725779, 13: 0.873702, 18: 0.943772, 19: 0.948443, 20: 0.95, 34: 0.95}),
]


@pytest.mark.parametrize("arguments, updates, values", TFMOT, ids=["plain", "late", "linear", "square"])
def test_the_schedule_equals_that_of_tfmot(arguments, updates, values):
    arguments = {name: value for name, value in arguments.items() if name != "frequency"}
    assert set(updates) <= set(values)
    for step, value in values.items():
        assert pruning.polynomial_sparsity(step, **arguments) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("arguments, updates, _", TFMOT[:2], ids=["plain", "late"])
def test_the_masks_grow_at_the_steps_of_tfmot_and_at_the_end(arguments, updates, _):
    """TFMOT stops at the last multiple of the frequency, which may leave it short of the final sparsity."""
    arguments = {name: value for name, value in arguments.items() if name != "power"}
    seen = [round(s, 6) for s in run(pruning.Gradual(**arguments), steps=arguments["end"] + 5)]
    grown = [step for step, (before, now) in enumerate(zip([0.0, *seen], seen)) if now > before]
    expected = sorted({*updates, arguments["end"]})
    assert grown == (expected[1:] if arguments["initial"] == 0 else expected)


@pytest.mark.parametrize("start, stop, frequency", [(0, 10, 1), (2, 30, 2), (5, 40, 3), (0, 7, 4)])
def test_the_schedule_equals_the_automated_gradual_pruner_of_distiller(start, stop, frequency):
    """Distiller counts epochs: the last one that prunes lies a span after the first, a multiple of the frequency."""
    span = (stop - start - 1) // frequency * frequency
    first, last = Fraction(1, 20), Fraction(17, 20)
    for epoch in range(start, stop, frequency):
        agp = last + (first - last) * (1 - Fraction(epoch - start, span)) ** 3
        ours = pruning.polynomial_sparsity(epoch, begin=start, end=start + span, initial=0.05, final=0.85)
        assert ours == pytest.approx(float(agp), abs=1e-12)
    assert epoch == start + span and agp == last


def test_the_schedule_by_hand():
    """Half-way, an eighth of the way is left: 0.8 − 0.8/8 = 0.7."""
    values = [pruning.polynomial_sparsity(step, begin=10, end=20, final=0.8) for step in (-5, 0, 10, 15, 20, 99)]
    assert values == pytest.approx([0, 0, 0, 0.7, 0.8, 0.8], abs=1e-12)


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.5, 1, 3, 5]))
def test_the_schedule_rises_from_initial_to_final_and_ever_more_slowly(begin, length, one, other, power):
    initial, final = sorted((one, other))
    values = [pruning.polynomial_sparsity(step, begin=begin, end=begin + length, initial=initial, final=final, power=power)
              for step in range(begin + length + 3)]
    assert values[: begin + 1] == pytest.approx([initial] * (begin + 1), abs=1e-12) and values[-3:] == [final] * 3
    rises = [after - before for before, after in zip(values, values[1:])]
    assert min(rises) >= -1e-12
    if power >= 1:
        assert all(later <= earlier + 1e-12 for earlier, later in zip(rises[begin:], rises[begin + 1:]))


# --- while training goes on ---

def run(gradual, *, steps, model=None):
    """Call the moments as training does; returns the sparsity after every step."""
    model, seen = model or tiny("mlp"), []
    gradual.before_training(model)
    for _ in range(steps):
        gradual.after_step(model)
        seen.append(pruning.sparsity(model))
    return seen


class Watch:
    """Notes after every step, and after the masks, which weights are zero."""

    def __init__(self):
        self.zeros = []

    def after_step(self, model):
        self.zeros.append({name: (w == 0).clone() for name, w in pruning.prunable(model).items()})


# 5 epochs of 5 steps. Weight decay and momentum that would move every removed weight.
HARD = {"epochs": 5, "lr": 0.01, "batch_size": 8, "weight_decay": 0.1, "augmented": False}
PLAN = {"final": 0.8, "begin": 4, "end": 19, "frequency": 4}


@pytest.fixture(scope="module", params=["global", "layer"])
def watched(request):
    """A model that was pruned while it trained, and what was zero after each step."""
    model, watch = tiny("cnn"), Watch()
    before = state(model)
    trained, _ = training.fit(model, random_split(), callbacks=[pruning.Gradual(scope=request.param, **PLAN), watch], **HARD)
    assert same(state(model), before) and pruning.sparsity(model) == 0
    return request.param, trained, watch.zeros


def test_after_each_update_exactly_the_rounded_share_is_zero(watched):
    """Computed with exact fractions; between updates and after the end nothing changes."""
    scope, _, zeros = watched
    due, expected = Fraction(0), []
    for step in range(25):
        if step in (4, 8, 12, 16, 19):
            due = Fraction(4, 5) * (1 - (1 - Fraction(step - 4, 15)) ** 3)
        expected.append(due)
    for share, after in zip(expected, zeros):
        parts = list(after.values()) if scope == "layer" else [torch.cat([zero.flatten() for zero in after.values()])]
        assert [int(zero.sum()) for zero in parts] == [round(share * zero.numel()) for zero in parts]


def test_what_is_removed_stays_removed_through_momentum_and_weight_decay(watched):
    _, trained, zeros = watched
    for before, after in zip(zeros, zeros[1:]):
        assert not any((before[name] & ~after[name]).any() for name in before)
    assert all(torch.equal(w == 0, zeros[-1][name]) for name, w in pruning.prunable(trained).items())
    n = sum(w.numel() for w in pruning.prunable(trained).values())
    assert pruning.sparsity(trained) == pytest.approx(0.8, abs=0.5 * len(zeros[-1]) / n)


def test_the_weights_that_are_left_go_on_learning(watched):
    _, trained, _ = watched
    dense = pruning.prunable(tiny("cnn"))
    assert all(((w != 0) & (w != dense[name])).any() for name, w in pruning.prunable(trained).items())


def test_each_update_removes_the_lowest_scores_of_that_moment():
    """First of the weights as they are then, afterwards of those that changed in between."""
    model = torch.nn.Linear(4, 1)
    gradual = pruning.Gradual(final=0.5, begin=0, end=2, frequency=1, initial=0.25)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        gradual.before_training(model)
        gradual.after_step(model)
        assert model.weight.tolist() == [[4, 3, 2, 0]]
        model.weight.copy_(torch.tensor([[0.5, 3.0, 2.0, 9.0]]))
        gradual.after_step(model)
        assert model.weight.tolist() == [[0, 3, 2, 0]]


def test_other_scores_decide_what_goes():
    gradual = pruning.Gradual(final=0.5, begin=0, end=1, frequency=1,
                              scores=lambda model: {"weight": -model.weight.detach().abs()})
    model = torch.nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    run(gradual, steps=2, model=model)
    assert model.weight.tolist() == [[0, 0, 2, 1]]


def test_influence_can_be_the_score_during_training():
    split = random_split()
    gradual = pruning.Gradual(final=0.6, begin=2, end=10, frequency=4,
                              scores=lambda model: pruning.taylor(model, split.images, split.labels))
    trained, _ = training.fit(tiny("mlp"), split, callbacks=[gradual], **HARD)
    assert pruning.sparsity(trained) == pytest.approx(0.6, abs=1e-3) and trained.training is False


def test_zeros_that_are_there_already_count_and_stay():
    """Above the schedule nothing more goes; once it is above, only what is missing."""
    model = pruning.prune(tiny("mlp"), amount=0.5)
    zero = {name: (w == 0) for name, w in pruning.prunable(model).items()}
    seen = run(pruning.Gradual(final=0.9, begin=0, end=20, frequency=1), steps=21, model=model)
    start = pruning.sparsity(pruning.prune(tiny("mlp"), amount=0.5))
    assert seen[:4] == [start] * 4 and seen[-1] == pytest.approx(0.9, abs=1e-3) and seen == sorted(seen)
    assert not any((zero[name] & (w != 0)).any() for name, w in pruning.prunable(model).items())


def test_a_weight_that_becomes_zero_by_chance_counts_too():
    """Else more weights would go than the schedule asks for: 3 of 10 are zero, and 6 are due."""
    model = torch.nn.Linear(10, 1)
    gradual = pruning.Gradual(final=0.6, begin=0, end=1, frequency=1)
    gradual.before_training(model)
    gradual.after_step(model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[7.0, 8, 9, 0, 0, 0, 1, 2, 3, 4]]))
    gradual.after_step(model)
    assert model.weight.tolist() == [[7, 8, 9, 0, 0, 0, 0, 0, 0, 4]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_nothing_or_everything_may_go(scope):
    dense, _ = training.fit(tiny("mlp"), random_split(), **HARD)
    for final, expected in ((0, state(dense)), (1, None)):
        gradual = pruning.Gradual(final=final, begin=0, end=9, frequency=4, scope=scope)
        trained, _ = training.fit(tiny("mlp"), random_split(), callbacks=[gradual], **HARD)
        assert pruning.sparsity(trained) == final and (expected is None or same(state(trained), expected))


def test_in_a_second_training_the_schedule_starts_anew():
    """Same callback, another model: nothing is remembered of the first one, be it the step or the masks."""
    gradual = pruning.Gradual(**PLAN)
    first, _ = training.fit(tiny("mlp", seed=1), random_split(), callbacks=[gradual], **HARD)
    again, _ = training.fit(tiny("cnn"), random_split(), callbacks=[gradual], **HARD)
    fresh, _ = training.fit(tiny("cnn"), random_split(), callbacks=[pruning.Gradual(**PLAN)], **HARD)
    assert same(state(again), state(fresh)) and pruning.sparsity(first) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("end, ok", [(24, True), (25, False), (100, False)])
def test_training_that_ends_before_the_schedule_is_an_error(end, ok):
    """25 steps are numbered 0 to 24."""
    plan = {**PLAN, "end": end}
    if ok:
        trained, _ = training.fit(tiny("mlp"), random_split(), callbacks=[pruning.Gradual(**plan)], **HARD)
        assert pruning.sparsity(trained) == pytest.approx(0.8, abs=1e-3)
        return
    with pytest.raises(RuntimeError, match=f"training had 25 steps, but the schedule ends at step {end}; use an end below"):
        training.fit(tiny("mlp"), random_split(), callbacks=[pruning.Gradual(**plan)], **HARD)


def test_an_epoch_that_was_kept_from_before_the_end_is_an_error():
    gradual, model = pruning.Gradual(final=0.8, begin=0, end=4, frequency=1), tiny("mlp")
    dense = state(model)
    run(gradual, steps=5, model=model)
    gradual.after_training(model)
    model.load_state_dict(dense)
    with pytest.raises(RuntimeError, match="the epoch that was kept lies before the end of the schedule: use keep='last'"):
        gradual.after_training(model)


def test_a_later_epoch_may_be_the_best_one():
    """keep='best' is fine as long as the best epoch comes after the end of the schedule."""
    split = random_split()
    gradual = pruning.Gradual(final=0.5, begin=0, end=4, frequency=2)
    trained, _ = training.fit(tiny("mlp"), split, split, keep="best", callbacks=[gradual], **HARD)
    assert pruning.sparsity(trained) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("bad, message", [
    ({"begin": 5, "end": 5}, "need 0 <= begin < end"), ({"begin": 6, "end": 5}, "need 0 <= begin < end"),
    ({"begin": -1}, "need 0 <= begin < end"), ({"initial": 0.9}, "initial <= final"),
    ({"final": 1.1}, "final must be a fraction from 0 to 1"), ({"final": 80}, "final must be a fraction from 0 to 1"),
    ({"final": math.nan}, "final must be a fraction from 0 to 1"), ({"initial": -0.1}, "initial must be a fraction"),
    ({"frequency": 0}, "a whole frequency >= 1"), ({"frequency": -3}, "a whole frequency >= 1"),
    ({"frequency": 2.5}, "a whole frequency >= 1"), ({"frequency": True}, "a whole frequency >= 1"),
    ({"scope": "neuron"}, "scope 'global' or 'layer'"), ({"begin": 0.5}, "need whole begin and end"),
    ({"end": 19.5}, "need whole begin and end"),
])
def test_a_bad_plan_is_refused_at_once(bad, message):
    with pytest.raises(ValueError, match=message):
        pruning.Gradual(**{**PLAN, **bad})


@pytest.mark.parametrize("power", [0, -1, math.nan])
def test_a_bad_power_is_refused(power):
    with pytest.raises(ValueError, match="power > 0"):
        pruning.polynomial_sparsity(1, begin=0, end=2, final=0.5, power=power)


def test_weights_that_become_infinite_during_training_are_refused():
    model = tiny("mlp")
    gradual = pruning.Gradual(final=0.5, begin=0, end=2)
    gradual.before_training(model)
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match="must be finite"):
        gradual.after_step(model)
