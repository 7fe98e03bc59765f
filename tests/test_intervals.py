"""Intervals equal their references, cover what they promise, and behave at the edges."""
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import intervals

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def disagreements(draw):
    """(gained, lost, n) with gained + lost <= n."""
    n = draw(st.integers(1, 300))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


# --- a share ---

@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60)
def test_wilson_equals_scipy(count, confidence):
    successes, n = count
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    got = intervals.wilson(successes, n, confidence=confidence)
    assert got.value == successes / n
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand():
    """8 of 10 with z = 1.96: centre (0.8 + 0.19208) / 1.38416, half 1.96 / 1.38416 · sqrt(0.016 + 0.009604)."""
    e = intervals.wilson(8, 10)
    assert (e.low, e.high) == pytest.approx((0.71674 - 0.22658, 0.71674 + 0.22658), abs=2e-5)


@given(counts)
@settings(max_examples=100)
def test_wilson_holds_its_own_value_and_mirrors(count):
    """Counting errors instead of successes mirrors the interval; no rounding puts the value outside."""
    successes, n = count
    e, mirrored = intervals.wilson(successes, n), intervals.wilson(n - successes, n)
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert (1 - e.high, 1 - e.low) == pytest.approx((mirrored.low, mirrored.high), abs=1e-12)


# --- a difference on the same cases ---

def test_paired_difference_by_hand():
    """7 gained and 2 lost of 98: up 8 / 100, down 3 / 100, half 1.96 · sqrt((0.11 - 0.05²) / 100)."""
    e = intervals.paired_difference(7, 2, 98)
    half = 1.959964 * math.sqrt((0.11 - 0.0025) / 100)
    assert e.value == 5 / 98
    assert (e.low, e.high) == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)


@pytest.mark.parametrize("gain, loss, n", [(0.04, 0.02, 500), (0.1, 0.1, 200), (0.01, 0.005, 1000)])
def test_paired_difference_covers_the_truth_about_95_times_in_100(gain, loss, n):
    draws = np.random.default_rng(0).multinomial(n, [gain, loss, 1 - gain - loss], size=2000)
    found = [intervals.paired_difference(int(g), int(l), n) for g, l, _ in draws]
    assert 0.935 <= np.mean([e.low <= gain - loss <= e.high for e in found]) <= 0.985


@given(disagreements())
@settings(max_examples=100)
def test_paired_difference_changes_sign_when_the_two_models_change_places(counts):
    gained, lost, n = counts
    e, mirrored = intervals.paired_difference(gained, lost, n), intervals.paired_difference(lost, gained, n)
    assert -1 <= e.low <= e.value <= e.high <= 1
    assert (e.value, e.low, e.high) == pytest.approx((-mirrored.value, -mirrored.high, -mirrored.low))


def test_no_disagreement_is_not_a_perfect_measurement():
    e = intervals.paired_difference(0, 0, 1000)
    assert e.value == 0 and e.low < 0 < e.high
    wider = intervals.paired_difference(0, 0, 100)
    assert wider.high > e.high


# --- a mean over runs ---

@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.sampled_from([0.8, 0.95]))
@settings(max_examples=60)
def test_mean_over_runs_equals_the_t_interval_of_scipy(values, confidence):
    e = intervals.mean_over_runs(values, confidence=confidence)
    sem = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), sem) if sem else [np.mean(values)] * 2
    assert (e.value, e.low, e.high) == pytest.approx((np.mean(values), low, high), abs=1e-9)


def test_mean_over_runs_by_hand():
    """1, 2, 3: mean 2, deviation 1, t(2) = 4.3027, half 4.3027 / sqrt(3)."""
    e = intervals.mean_over_runs([1, 2, 3])
    assert (e.value, e.high - e.value) == pytest.approx((2, 2.4841), abs=1e-4)


# --- a median ---

def test_bootstrap_median_is_close_to_that_of_scipy():
    values = np.random.default_rng(1).lognormal(size=60)
    expected = scipy.stats.bootstrap((values,), np.median, n_resamples=5000, method="percentile", rng=2).confidence_interval
    e = intervals.bootstrap_median(values, resamples=5000)
    assert e.value == np.median(values)
    assert (e.low, e.high) == pytest.approx((expected.low, expected.high), rel=0.03)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12), st.floats(-5, 5))
@settings(max_examples=30)
def test_bootstrap_median_stays_inside_the_data_and_moves_with_them(values, shift):
    e = intervals.bootstrap_median(values, resamples=200)
    assert min(values) <= e.low <= e.high <= max(values)
    moved = intervals.bootstrap_median(np.array(values) + shift, resamples=200)
    assert (moved.value, moved.low, moved.high) == pytest.approx((e.value + shift, e.low + shift, e.high + shift), abs=1e-9)


def test_bootstrap_median_is_the_same_again_for_the_same_seed():
    values = np.random.default_rng(0).normal(size=21)
    first, again, other = (intervals.bootstrap_median(values, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_a_median_of_constant_values_has_an_interval_without_width():
    assert intervals.bootstrap_median([2.5] * 9) == intervals.Estimate(2.5, 2.5, 2.5)
