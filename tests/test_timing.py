"""Ratios are exact on a clock that is under control, the order is random, and nothing stays switched off."""
import gc
import itertools
import time

import numpy as np
import pytest
import torch

from course_lib import intervals, timing


class Clock:
    """Stands in for the module `time` inside `timing`: time passes only when somebody works."""

    def __init__(self):
        self.wall, self.cpu, self.log = 100.0, 5.0, []

    def perf_counter(self):
        return self.wall

    def process_time(self):
        return self.cpu

    def work(self, name, wall, cpu):
        """A function that takes that long on both clocks and notes its name."""
        def function():
            self.wall, self.cpu = self.wall + wall, self.cpu + cpu
            self.log.append(name)
        return function


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_ratios_are_exact_where_the_clock_is(clock):
    """Twice the wall time and three times the CPU time; a third function takes half the wall time."""
    result = timing.compare({"a": clock.work("a", 0.001, 0.001), "b": clock.work("b", 0.002, 0.003),
                             "c": clock.work("c", 0.0005, 0.001)}, blocks=5)
    def three(e):
        return e.value, e.low, e.high
    assert three(result.ratio("b")) == pytest.approx((2, 2, 2))
    assert three(result.ratio("b", clock="cpu")) == pytest.approx((3, 3, 3))
    assert three(result.ratio("b", to="c")) == pytest.approx((4, 4, 4))
    assert three(result.control()) == pytest.approx((1, 1, 1)) == three(result.control(clock="cpu"))
    assert result.seconds("c") == pytest.approx(0.0005) and result.seconds("b", clock="cpu") == pytest.approx(0.003)
    assert result.reference == "a"


def test_a_sample_lasts_about_as_long_as_asked_and_is_warmed_up(clock):
    result = timing.compare({"fast": clock.work("f", 0.0001, 0), "slow": clock.work("s", 0.05, 0)}, blocks=3,
                            sample_seconds=0.004)
    assert result.calls == {"fast": 40, "slow": 1, timing.AGAIN: 40}
    assert clock.log.count("f") > 40 * 6 and clock.log.count("s") == 5      # two more than are measured
    assert all(len(times) == 3 for times in (*result.wall.values(), *result.cpu.values()))


def test_every_block_runs_each_once_in_an_order_of_its_own(clock):
    functions = {name: clock.work(name, 1, 1) for name in "abc"}
    timing.compare(functions, blocks=40, seed=1)
    log = "".join(clock.log[6:])                    # after two warm-ups each
    blocks = [log[i:i + 4] for i in range(0, len(log), 4)]
    assert len(blocks) == 40 and all(sorted(block) == ["a", "a", "b", "c"] for block in blocks)
    assert set(blocks) == {"".join(order) for order in itertools.permutations("aabc")}
    clock.log.clear()
    timing.compare(functions, blocks=40, seed=1)
    assert "".join(clock.log[6:]) == log            # the seed decides


def test_a_busy_spell_of_the_machine_does_not_bend_the_ratio(clock):
    """The machine gets slower and slower; inside a block it is nearly the same for all."""
    def work(factor):
        def function():
            clock.wall += factor * (1 + (clock.wall - 100) / 2)
        return function
    result = timing.compare({"a": work(0.01), "b": work(0.02)}, blocks=60, sample_seconds=0.01)
    assert result.wall["a"][-1] > 2 * result.wall["a"][0]
    assert result.ratio("b").value == pytest.approx(2, rel=0.02)


def test_sampling_goes_on_until_the_result_decides(clock):
    asked = []

    def until(result):
        asked.append(len(result.wall["a"]))
        return len(asked) == 3
    result = timing.compare({"a": clock.work("a", 1, 1)}, blocks=10, until=until)
    assert asked == [10, 20, 30] and len(result.wall["a"]) == 30


@pytest.mark.parametrize("blocks, most", [(2, 2), (5, 25)])
def test_sampling_stops_at_the_cap(clock, blocks, most):
    result = timing.compare({"a": clock.work("a", 1, 1)}, blocks=blocks, until=lambda result: False, max_blocks=most)
    assert len(result.wall["a"]) == most


def test_without_a_verdict_the_number_of_blocks_is_as_asked(clock):
    assert len(timing.compare({"a": clock.work("a", 1, 1)}, blocks=7).wall["a"]) == 7


def test_a_further_counter_is_read_around_every_sample(clock):
    """A counter that grows by 3 for each second of the wall clock: joules at 3 watts."""
    functions = {"a": clock.work("a", 0.001, 0.001), "b": clock.work("b", 0.002, 0.001)}
    result = timing.compare(functions, blocks=4, counters={"joules": lambda: 3 * clock.wall})
    np.testing.assert_allclose(result.counted["joules"]["a"], 0.003)
    assert result.counted["joules"].keys() == result.wall.keys() == {"a", "b", timing.AGAIN}
    assert result.ratio("b", clock="joules").value == pytest.approx(2) and result.control(clock="joules").value == pytest.approx(1)
    assert result.seconds("b", clock="joules") == pytest.approx(0.006)
    assert timing.compare(functions, blocks=2).counted == {}


@pytest.mark.parametrize("fails", [False, True])
def test_threads_and_the_garbage_collector_are_given_back_even_after_an_error(fails):
    seen = []

    def function():
        seen.append((torch.get_num_threads(), gc.isenabled()))
        time.sleep(0.001)
        if fails:
            raise KeyError("inside")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if fails:
            with pytest.raises(KeyError):
                timing.compare({"a": function}, blocks=2)
        else:
            timing.compare({"a": function}, blocks=2, sample_seconds=0.001)
        assert set(seen) == {(1, False)}
        assert (torch.get_num_threads(), gc.isenabled()) == (2, True)
    finally:
        torch.set_num_threads(before)


def test_a_collector_that_was_off_stays_off(clock):
    gc.disable()
    try:
        timing.compare({"a": clock.work("a", 1, 1)}, blocks=2)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_function_that_does_the_work_twice_takes_about_twice_as_long():
    """On the real clock, with limits wide enough for a machine that does other things."""
    def once():
        sum(range(3000))

    def twice():
        once()
        once()
    result = timing.compare({"once": once, "twice": twice}, blocks=20, sample_seconds=0.001)
    clock = "cpu" if time.get_clock_info("process_time").resolution < 1e-5 else "wall"      # too coarse on Windows
    assert 1.3 < result.ratio("twice", clock=clock).value < 3
    assert 0.5 < result.control(clock=clock).value < 2


def timings(ratios, control):
    """Timings whose ratios and control are those given, block by block."""
    ones = np.ones(len(ratios))
    times = {"a": ones, "b": np.array(ratios), timing.AGAIN: np.array(control)}
    return timing.Timings(times, {name: ones for name in times}, dict.fromkeys(times, 1), seed=0)


@pytest.mark.parametrize("ratios, control, differs", [
    ([1.5, 1.6] * 10, [0.95, 1.05] * 10, True),             # slower than 1 and than the control
    ([0.5, 0.6] * 10, [0.95, 1.05] * 10, True),             # faster
    ([0.9, 1.1] * 10, [1.0, 1.0] * 10, False),              # its interval holds 1
    ([1.04, 1.05] * 10, [0.9, 1.1] * 10, False),            # outside 1, but within what the control shows
    ([0.95, 0.96] * 10, [0.9, 1.1] * 10, False),
    ([1.04, 1.05] * 10, [1.2, 1.3] * 10, False),            # the control is off: nothing below it counts
    ([1.04, 1.05] * 10, [0.8, 0.9] * 10, True),             # the control is off on the other side
])
def test_a_ratio_counts_as_different_only_outside_both_one_and_the_control(ratios, control, differs):
    result = timings(ratios, control)
    assert result.differs("b") is differs
    assert not result.differs("b", clock="cpu")


@pytest.mark.parametrize("ratios, control, precise", [
    ([1.99, 2.0, 2.01] * 7, [0.99, 1.0, 1.01] * 7, True), ([1.0, 2.0, 4.0] * 7, [1.0] * 21, False),
    ([2.0] * 21, [0.5, 1.0, 2.0] * 7, False),           # the control is to be precise as well
])
def test_a_comparison_is_precise_when_every_interval_is_narrow(ratios, control, precise):
    assert timing.precise()(timings(ratios, control)) is precise
    assert timing.precise(10)(timings(ratios, control)) and not timing.precise(1e-4)(timings(ratios, [0.9, 1.1, 1.0] * 7))


def test_a_ratio_is_the_median_over_blocks_with_a_bootstrap_interval():
    ratios = np.random.default_rng(0).lognormal(0.5, 0.2, size=25)
    e, logs = timings(ratios, np.ones(25)).ratio("b"), intervals.bootstrap_median(np.log(ratios))
    assert e.value == pytest.approx(np.median(ratios))
    assert (e.low, e.high) == pytest.approx((np.exp(logs.low), np.exp(logs.high)))


def test_the_inverse_comparison_gives_the_inverse_ratio():
    ratios = np.random.default_rng(0).lognormal(0.5, 0.2, size=25)
    result = timings(ratios, np.ones(25))
    assert result.ratio("a", to="b").value == pytest.approx(1 / result.ratio("b").value)


def test_the_time_of_a_call_is_the_median_over_blocks():
    timed = timing.Timings({"a": np.array([1.0, 2.0, 9.0])}, {"a": np.array([1.0, 3.0, 4.0])}, {"a": 1}, 0)
    assert (timed.seconds("a"), timed.seconds("a", clock="cpu")) == (2.0, 3.0)
