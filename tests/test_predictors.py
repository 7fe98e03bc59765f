"""The statistics for tables of measured energy equal their references, and small cases worked out by hand."""
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import predictors, report

few = st.lists(st.integers(1, 6), min_size=4, max_size=12)


# --- rank correlation ---

@given(st.data(), few)
@settings(max_examples=60)
def test_spearman_equals_scipy_also_with_ties(data, first):
    second = data.draw(st.lists(st.integers(1, 6), min_size=len(first), max_size=len(first)))
    if len(set(first)) > 1 and len(set(second)) > 1:
        assert predictors.spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)


def test_spearman_works_along_the_last_axis_and_is_undefined_without_an_order():
    first = np.array([[1, 2, 3], [1, 2, 3], [1, 1, 1]])
    second = np.array([[2, 4, 9], [9, 4, 2], [1, 2, 3]])
    assert predictors.spearman(first, second)[:2].tolist() == pytest.approx([1, -1])
    assert np.isnan(predictors.spearman(first, second)[2])


# --- ratios ---

def test_the_geometric_mean_of_a_half_and_two_is_one():
    assert predictors.geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert predictors.geometric_mean([[1, 4], [3, 3]]).tolist() == pytest.approx([2, 3])
    assert predictors.geometric_mean([1, 2, 5]) == pytest.approx(scipy.stats.gmean([1, 2, 5]))


# --- the bootstrap ---

def test_the_bootstrap_agrees_with_scipy():
    ratios = np.exp(np.random.default_rng(1).normal(size=40))
    ours = predictors.bootstrap(predictors.geometric_mean, ratios)
    theirs = scipy.stats.bootstrap([ratios], predictors.geometric_mean, method="percentile", rng=2).confidence_interval
    assert ours.value == pytest.approx(scipy.stats.gmean(ratios))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.05)


def test_the_bootstrap_draws_whole_rows():
    x = np.arange(1.0, 11)
    e = predictors.bootstrap(lambda a, b: (a / b).mean(axis=-1), 3 * x, x)
    assert (e.value, e.low, e.high) == pytest.approx((3, 3, 3))


def test_the_bootstrap_is_repeatable_and_narrower_with_less_confidence():
    x = np.arange(20.0)
    mean = lambda a: a.mean(axis=-1)
    assert predictors.bootstrap(mean, x) == predictors.bootstrap(mean, x)
    wide, narrow = predictors.bootstrap(mean, x, confidence=0.99), predictors.bootstrap(mean, x, confidence=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_ratio_of_means_agrees_with_scipy_and_by_hand():
    chance = np.random.default_rng(3)
    first, second = chance.normal(6, 1, size=12), chance.normal(10, 1, size=9)
    ours = predictors.ratio_of_means(first, second)
    theirs = scipy.stats.bootstrap([first, second], lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
                                   method="percentile", rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert predictors.ratio_of_means([1, 2, 3], [4, 4, 4, 4]).value == 0.5


# --- a family that the fit never saw ---

def test_held_out_errors_by_hand():
    """Without group b: (1, 3) and (2, 5) lie on 2 m + 1, so at 3 it predicts 7 where 14 was measured.
    Without group a one point of slope and constant is left; the smallest solution through (3, 14) is 4.2 m + 1.4."""
    errors = predictors.held_out_errors([1, 2, 3], [3, 5, 14], ["a", "a", "b"])
    assert errors == pytest.approx([(5.6 - 3) / 3, (9.8 - 5) / 5, 0.5])


def test_the_fit_minimises_relative_errors():
    """With a feature of zeros only the constant is left: of 1 and 2 it is (1 + 1/2) / (1 + 1/4) = 1.2, not 1.5."""
    errors = predictors.held_out_errors([0, 0, 0], [1, 2, 3], ["a", "a", "b"])
    assert errors == pytest.approx([2, 0.5, 1 - 1.2 / 3])


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(1, 5))
@settings(max_examples=30)
def test_a_true_line_leaves_no_error_in_any_family(slope, constant, shift):
    macs = np.arange(1.0, 9)
    errors = predictors.held_out_errors(macs, slope * macs + constant, np.arange(8) // 2 + shift)
    assert errors.max() < 1e-6


def test_two_features_predict_where_one_cannot():
    macs, parameters = np.array([1, 2, 3, 4, 5, 6.0]), np.array([3, 1, 4, 1, 5, 9.0])
    groups, energy = list("aabbcc"), 2 * macs + parameters + 1
    assert predictors.held_out_errors(macs, energy, groups).max() > 0.1
    assert predictors.held_out_errors(np.column_stack([macs, parameters]), energy, groups).max() < 1e-9


def test_a_held_out_group_plays_no_part_in_its_own_prediction():
    macs, groups = np.arange(1.0, 7), list("aaabbb")
    energy = np.array([1, 2, 3, 4, 5, 6.0])
    changed = energy * np.where(np.array(groups) == "b", [1, 1, 1, 9, 2, 5], 1)
    first, second = (predictors.held_out_errors(macs, e, groups)[3:] for e in (energy, changed))
    assert (first + 1e-12 < 1e-6).all()                                    # a's line is also b's
    assert second == pytest.approx(1 - energy[3:] / changed[3:])           # the same predictions


# --- equal accuracy and the front ---

def test_the_cheapest_model_that_is_accurate_enough():
    cost, accuracy = [5, 3, 9, 4], [70, 60, 80, 70]
    assert predictors.cheapest_as_accurate(cost, accuracy, wanted=70) == 4          # a tie is enough
    assert predictors.cheapest_as_accurate(cost, accuracy, wanted=0) == 3
    assert math.isnan(predictors.cheapest_as_accurate(cost, accuracy, wanted=81))


def test_the_front_by_hand():
    assert predictors.pareto_mask([1, 2, 2, 3, 3], [50, 70, 60, 70, 90]).tolist() == [True, True, False, False, True]
    assert predictors.pareto_mask([1, 1], [50, 50]).tolist() == [True, True]        # equals do not beat each other


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=9))
@settings(max_examples=60)
def test_the_front_equals_that_of_the_ruler(points):
    class Row:
        def __init__(self, name, cost, accuracy):
            self.name, self.cost, self.accuracy = name, cost, type("Accuracy", (), {"value": accuracy})
    rows = [Row(i, cost, accuracy) for i, (cost, accuracy) in enumerate(points)]
    front = report.pareto_front(rows, lambda row: row.cost)
    assert np.flatnonzero(predictors.pareto_mask(*zip(*points))).tolist() == front


# --- bad calls ---

@pytest.mark.parametrize("call, message", [
    (lambda: predictors.spearman([1, 2], [1, 2, 3]), "one shape and at least one row; got [(2,), (3,)]"),
    (lambda: predictors.spearman([], []), "at least one row"),
    (lambda: predictors.spearman([1, math.nan], [1, 2]), "gaps (NaN)"),
    (lambda: predictors.geometric_mean([1, -2.5]), "must be positive; the smallest is -2.5"),
    (lambda: predictors.bootstrap(predictors.geometric_mean, [1, 2]), "at least three rows; got shape (2,)"),
    (lambda: predictors.bootstrap(predictors.geometric_mean, [1, 2, 3], confidence=95), "e.g. 0.95; got 95"),
    (lambda: predictors.bootstrap(predictors.spearman, [1, 1, 2], [1, 2, 3]), "undefined in some draws of 3 rows"),
    (lambda: predictors.ratio_of_means([1, 2], [1, 2, 3]), "at least three positive values in each sample; got 2 and 3"),
    (lambda: predictors.ratio_of_means([1, 2, 3], [1, 2, -7]), "the smallest -7"),
    (lambda: predictors.held_out_errors([1, 2], [1, 2], ["a", "a"]), "two groups or more; got 2, 2, 2 rows and 1 groups"),
    (lambda: predictors.held_out_errors([1, 2], [1, 0], ["a", "b"]), "positive energies"),
    (lambda: predictors.held_out_errors([1, 2, 3], [1, 2], ["a", "b"]), "got 3, 2, 2 rows"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
