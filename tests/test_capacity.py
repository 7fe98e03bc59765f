"""The arithmetic of a service: by hand, by laws, and against a simulated queue."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib import energy
from course_lib.intervals import Estimate
from course_lib.serving import capacity
from helpers import run_python

PRICE = capacity.Price(0.036, 0.072, "USD", "a list")
seconds = st.floats(1e-6, 10)


def test_a_million_requests_of_a_millisecond_by_hand():
    """A thousand seconds of a core, 1000/3600 hours; paid for twice at half the utilisation."""
    cost = capacity.cost_per_million(1e-3, PRICE)
    assert (cost.low, cost.high) == pytest.approx((0.01, 0.02))
    half = capacity.cost_per_million(1e-3, PRICE, utilisation=0.5)
    assert (half.low, half.high) == pytest.approx((0.02, 0.04))
    assert str(half) == "0.02 to 0.04 USD per million requests (computed; price declared: a list)"


def test_the_cost_s_interval_takes_both_intervals_in():
    cost = capacity.cost_per_million(Estimate(1e-3, 0.5e-3, 2e-3), PRICE)
    assert (cost.low, cost.high) == pytest.approx((0.005, 0.04))


def test_energy_of_a_million_requests_by_hand():
    """A millisecond at 2 to 3 watts is 2 to 3 millijoules; a million of them are kilojoules."""
    amount = capacity.energy_per_million(Estimate(1e-3, 0.9e-3, 1.1e-3), energy.Power(2, 3, "a guess"), runs=5)
    assert (amount.low, amount.high) == pytest.approx((0.9e-3 * 2 * 1e6, 1.1e-3 * 3 * 1e6))
    assert (amount.tier, amount.per, amount.value, amount.runs) == (energy.DECLARED, "million requests", None, 5)
    assert amount.seconds.value == pytest.approx(1000)
    widest = capacity.energy_per_million(Estimate(1e-3, 0.9e-3, 1.1e-3), runs=5)
    assert widest.high == pytest.approx(1.1e-3 * energy.SERVER_WATTS["any of these chips"].high * 1e6)


@pytest.mark.parametrize("rate, throughput, utilisation, expected", [
    (1000, 250, 1.0, (4, 4)), (1001, 250, 1.0, (5, 5)), (1000, 250, 0.5, (8, 8)), (1, 250, 0.6, (1, 1)),
    (600, 100, 0.6, (10, 10)),                                  # 600 / 60 is 10 and not 11, whatever rounding says
    (1000, Estimate(250, 200, 500), 1.0, (2, 5))])
def test_replicas_by_hand(rate, throughput, utilisation, expected):
    found = capacity.replicas(rate, throughput, utilisation=utilisation)
    assert (found.low, found.high) == expected and type(found.low) is int


def test_replicas_say_that_they_are_computed():
    assert str(capacity.replicas(5000, Estimate(250, 200, 500), utilisation=0.5)) == \
        "20 to 50 replicas for 5,000 requests/s, each 50 % busy (computed, not measured)"
    assert repr(capacity.replicas(1000, 250, utilisation=0.5)).startswith("8 replicas")


@given(st.floats(1, 1e6), st.floats(1, 1e4), st.floats(0.05, 1))
def test_so_many_replicas_are_enough_and_one_less_is_not(rate, throughput, utilisation):
    n = capacity.replicas(rate, throughput, utilisation=utilisation).low
    assert n * throughput * utilisation >= rate * (1 - 1e-9)
    assert (n - 1) * throughput * utilisation <= rate


def test_the_share_of_the_model_by_hand():
    assert capacity.model_share(1e-3, 4e-3).value == 0.25
    share = capacity.model_share(Estimate(2, 1, 3), Estimate(8, 6, 10))
    assert (share.value, share.low, share.high) == (0.25, 0.1, 0.5)
    assert capacity.model_share(Estimate(5, 4, 6), Estimate(5, 4, 6)).high == 1.0
    assert capacity.model_share(0, 1) == Estimate(0, 0, 0)
    with pytest.raises(ValueError, match="cannot take longer than its request"):
        capacity.model_share(2, 1)


def test_gain_by_hand():
    """A 30 µs model behind a 1 ms server: even a model that takes no time gains 3 %."""
    assert capacity.gain(1e-3, 30e-6, 0) == pytest.approx(1.03)
    assert capacity.gain(0, 30e-6, 5e-6) == pytest.approx(6)
    assert capacity.gain(1, 9, 1) == 5
    with pytest.raises(ValueError, match="no time at all"):
        capacity.gain(0, 1, 0)


@given(seconds, seconds, st.floats(1.01, 100))
def test_a_gain_lies_between_1_and_the_speed_up_of_the_model(overhead, dense, speedup):
    assert 1 <= capacity.gain(overhead, dense, dense / speedup) <= speedup * (1 + 1e-9)


@given(seconds, st.floats(1.1, 100), st.floats(0.01, 0.99))
def test_at_the_break_even_the_gain_is_the_factor(overhead, speedup, part):
    factor = 1 + part * (speedup - 1)
    dense = capacity.break_even(overhead, speedup, factor)
    assert capacity.gain(overhead, dense, dense / speedup) == pytest.approx(factor)


def test_break_even_by_hand():
    """With a model 8 times as fast, twice the gain wants 4/3 of the overhead: (1 + 4/3) / (1 + 1/6) = 2."""
    assert capacity.break_even(3.0, 8, 2) == pytest.approx(4.0)
    assert capacity.break_even(3.0, 8, 1) == 0
    assert capacity.break_even(3.0, 8, 8) == capacity.break_even(3.0, 8, 20) == math.inf
    assert capacity.break_even(3.0, 0.5, 2) == math.inf         # a slower model never gains


def test_images_to_show_by_hand():
    """3 ms of overhead, 30 µs against 30/8 µs an image: twice the gain wants 4 ms of the dense model, 134 images."""
    assert capacity.images_to_show(3e-3, 30e-6, 30e-6 / 8, 2) == 134
    assert capacity.images_to_show(3e-3, 4e-3, 0.5e-3, 2) == 1
    assert capacity.images_to_show(3e-3, 2e-3, 0.25e-3, 2) == 2         # exactly 4 ms are needed
    assert capacity.images_to_show(3e-3, 30e-6, 30e-6 / 8, 9) == math.inf


@given(seconds, seconds, st.floats(1.2, 50), st.floats(0.05, 0.9))
def test_so_many_images_gain_the_factor_and_one_less_does_not(overhead, dense, speedup, part):
    compressed, factor = dense / speedup, 1 + part * (speedup - 1)
    n = capacity.images_to_show(overhead, dense, compressed, factor)
    assert capacity.gain(overhead, n * dense, n * compressed) >= factor * (1 - 1e-9)
    assert n == 1 or capacity.gain(overhead, (n - 1) * dense, (n - 1) * compressed) <= factor * (1 + 1e-9)


def test_the_trade_of_the_batch_size_by_hand():
    one, four = capacity.batch_trade(3e-3, 1e-3, [1, 4], rate=100)
    assert (one.batch, one.seconds, one.throughput, one.first_waits) == pytest.approx((1, 4e-3, 250, 4e-3))
    assert (four.batch, four.seconds, four.throughput, four.first_waits) == pytest.approx((4, 7e-3, 4000 / 7, 37e-3))


@given(seconds, seconds, st.floats(0.1, 1000))
def test_larger_batches_raise_throughput_and_latency_but_never_above_one_over_each(fixed, each, rate):
    points = capacity.batch_trade(fixed, each, [1, 2, 8, 64], rate=rate)
    assert all(a.throughput < b.throughput and a.first_waits < b.first_waits for a, b in zip(points, points[1:]))
    assert points[-1].throughput < 1 / each
    assert capacity.batch_trade(0, each, [8], rate=rate)[0].throughput == pytest.approx(1 / each)   # nothing to share


def test_waiting_by_hand():
    """At half utilisation and equal work a request waits for half its own work; with twice the variation of none, more."""
    assert capacity.waiting(0.5, 2.0) == pytest.approx(1.0)
    assert capacity.waiting(0.5, 2.0, variation=1) == pytest.approx(2.0)
    assert capacity.waiting(0.9, 1.0) == pytest.approx(4.5)
    assert capacity.waiting(0, 1.0) == 0 and capacity.waiting(1, 1.0) == capacity.waiting(2, 1.0) == math.inf


@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_waiting_is_that_of_a_simulated_queue(variation):
    rng, n, rate, service = np.random.default_rng(0), 400_000, 0.6, 1.0
    gaps = rng.exponential(1 / rate, n)
    work = np.full(n, service) if variation == 0 else rng.exponential(service, n)
    wait, total = 0.0, 0.0
    for gap, before in zip(gaps, work):
        wait = max(0.0, wait + before - gap)
        total += wait
    assert total / n == pytest.approx(capacity.waiting(rate * service, service, variation=variation), rel=0.03)


@pytest.mark.parametrize("call, message", [
    (lambda: capacity.Price(0.05, 0.03, "USD", "x"), "low to high"),
    (lambda: capacity.Price(0, 0.03, "USD", "x"), "above 0"),
    (lambda: capacity.Price(0.01, math.nan, "USD", "x"), "above 0"),
    (lambda: capacity.Price(0.01, 0.03, " ", "x"), "currency"),
    (lambda: capacity.Price(0.01, 0.03, "USD", ""), "source"),
    (lambda: capacity.cost_per_million(0, PRICE), "core seconds must be above 0"),
    (lambda: capacity.cost_per_million(math.inf, PRICE), "finite"),
    (lambda: capacity.cost_per_million(Estimate(1, 2, 3), PRICE), "must be above 0"),
    (lambda: capacity.cost_per_million(1e-3, PRICE, utilisation=60), "fraction"),
    (lambda: capacity.replicas(0, 100), "rate must be above 0"),
    (lambda: capacity.replicas(100, 0), "throughput must be above 0"),
    (lambda: capacity.replicas(100, 100, utilisation=0), "fraction"),
    (lambda: capacity.replicas(100, 100, utilisation=True), "fraction"),
    (lambda: capacity.break_even(1, 0, 2), "speed-up must be above 0"),
    (lambda: capacity.break_even(1, 4, 0.5), "gain of 1 or more"),
    (lambda: capacity.batch_trade(1, 1, [], rate=1), "batch sizes"),
    (lambda: capacity.batch_trade(1, 1, [0], rate=1), "batch sizes"),
    (lambda: capacity.batch_trade(1, 1, [2.0], rate=1), "batch sizes"),
    (lambda: capacity.waiting(-0.1, 1), "utilisation must be 0 or more"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_bare_number_is_no_price_and_no_power():
    with pytest.raises(TypeError, match="declare the price"):
        capacity.cost_per_million(1e-3, 0.05)
    with pytest.raises(TypeError, match="declare the watts"):
        capacity.energy_per_million(Estimate(1e-3, 0.9e-3, 1.1e-3), 5.0, runs=1)


def test_arithmetic_loads_no_pytorch():
    """A server or a client that imports it stays light."""
    assert run_python("import sys; from course_lib.serving import capacity; print('torch' in sys.modules)").strip() == "False"
