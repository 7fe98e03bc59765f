"""Windows and paired comparisons are exact on a clock and a counter that are under control."""
import numpy as np
import pytest
import torch
from torch import nn

from course_lib import energy, timing
from course_lib.intervals import Estimate
from fake_counters import Clock, SteadyCounter


@pytest.fixture
def clock():
    return Clock()


def work(clock, seconds):
    return lambda: clock.sleep(seconds)


def test_joules_of_a_call_by_hand(clock):
    """10 W, 0.03 s a call: 0.3 J; a window of 0.1 s holds four calls. Half of it for each of two inferences."""
    counter = SteadyCounter(clock)
    amount = energy.measure(work(clock, 0.03), counter, seconds=0.1, windows=3, clock=clock)
    assert (amount.value, amount.low, amount.high) == pytest.approx((0.3, 0.3, 0.3))
    assert (amount.tier, amount.runs, amount.boundary) == ("measured", 3, "a fake package, gross")
    assert amount.method == "a fake counter, 3 short windows of 0.1 s"
    half = energy.measure(work(clock, 0.03), counter, seconds=20, windows=2, clock=clock, inferences=2)
    assert half.value == pytest.approx(0.15) and "2 windows of 20 s" in half.method and "short" not in half.method


def test_idle_power_is_measured_apart_and_net_is_what_is_left(clock):
    """10 W while working, of which 4 W are idle: 0.3 J gross, 0.18 J net; the two never meet."""
    counter = SteadyCounter(clock, watts=4.0)
    idle = energy.idle(counter, seconds=2, windows=3, sleep=clock.sleep, clock=clock)
    assert idle.watts.value == pytest.approx(4) and (idle.seconds, idle.windows) == (2, 3)
    counter.watts = 10.0
    gross = energy.measure(work(clock, 0.03), counter, seconds=0.1, windows=3, clock=clock)
    net = energy.measure(work(clock, 0.03), counter, seconds=0.1, windows=3, clock=clock, idle=idle)
    assert net.value == pytest.approx(0.18) and net.boundary == "a fake package, net of idle power"
    with pytest.raises(energy.EnergyMismatch, match="different boundary"):
        gross - net
    counter.boundary = "another package"
    with pytest.raises(ValueError, match="the idle power is that of 'a fake package', and the counter's boundary is 'another package'"):
        energy.measure(work(clock, 0.03), counter, seconds=0.1, windows=3, clock=clock, idle=idle)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "10"])
def test_a_window_lasts_longer_than_nothing(clock, seconds):
    counter = SteadyCounter(clock)
    for call in (lambda: energy.measure(work(clock, 1), counter, seconds=seconds, clock=clock),
                 lambda: energy.idle(counter, seconds=seconds, sleep=clock.sleep, clock=clock),
                 lambda: energy.compare({"a": work(clock, 1)}, counter=counter, window_seconds=seconds)):
        with pytest.raises(ValueError, match="a window must be longer than 0 seconds, such as 10; got"):
            call()


@pytest.mark.parametrize("windows", [1, 0, -3, 2.5])
def test_one_window_is_not_enough(clock, windows):
    with pytest.raises(ValueError, match=f"need at least two windows, .*; got {windows}"):
        energy.measure(work(clock, 1), SteadyCounter(clock), windows=windows, clock=clock)


@pytest.mark.parametrize("inferences", [0, -1, 1.5])
def test_a_call_makes_at_least_one_inference(clock, inferences):
    for call in (lambda: energy.measure(work(clock, 1), SteadyCounter(clock), clock=clock, inferences=inferences),
                 lambda: energy.compare({"a": work(clock, 1)}, inferences=inferences)):
        with pytest.raises(ValueError, match=f"inferences must be a whole number >= 1, such as the batch size; got {inferences}"):
            call()


def test_a_counter_that_does_not_move_is_never_zero_joules(clock):
    with pytest.raises(energy.CounterError, match="did not move during a window.*this is not zero joules"):
        energy.measure(work(clock, 0.03), SteadyCounter(clock, watts=0.0), seconds=0.1, clock=clock)


# --- side by side ---

class Machine:
    """Stands in for the module `time` inside `timing`; its counter draws as many watts as the running function needs."""
    method, boundary = "a fake counter", "a fake package"

    def __init__(self):
        self.now, self.cpu, self.total, self.begin, self.log = 100.0, 0.0, 0.0, None, []

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.cpu

    def start(self):
        self.begin = self.total
        self.log.append("start")

    def joules(self):
        assert self.begin is not None, "read before it was started"
        return self.total - self.begin

    def work(self, seconds, watts, *, cpu=None, result=None):
        def function():
            self.now, self.cpu = self.now + seconds, self.cpu + (seconds if cpu is None else cpu)
            self.total += seconds * watts
            self.log.append("work")
            return result
        return function


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(timing, "time", machine)
    return machine


def three(ratio):
    return ratio.estimate.value, ratio.estimate.low, ratio.estimate.high


def test_measured_ratios_by_hand(machine):
    """Half the time at 3 times the power: 1.5 times the energy, half the CPU time. With 2 W idle: (15 − 1)/(10 − 2)·…"""
    paired = energy.compare({"a": machine.work(0.01, 10), "b": machine.work(0.005, 30)}, counter=machine, window_seconds=0.1,
                            blocks=4, inferences=2)
    assert three(paired.ratio("b")) == pytest.approx((1.5, 1.5, 1.5)) and three(paired.control()) == pytest.approx((1, 1, 1))
    assert three(paired.cpu_ratio("b")) == pytest.approx((0.5, 0.5, 0.5)) and paired.cpu_ratio("b").tier == "declared"
    ratio = paired.ratio("b")
    assert (ratio.tier, ratio.runs, ratio.boundary) == ("measured", 4, "a fake package, gross")
    assert ratio.method == "a fake counter, 4 interleaved blocks, short windows of 0.1 s"
    assert paired.energy("a").value == pytest.approx(0.05) and paired.energy("b").value == pytest.approx(0.075)
    idle = energy.Idle(Estimate(2.0, 2.0, 2.0), "a fake package", 1, 5)
    net = paired.ratio("b", idle=idle)
    assert three(net) == pytest.approx([0.14 / 0.08] * 3) and "net of idle" in net.boundary
    assert paired.energy("b", idle=idle).value == pytest.approx(0.07)
    with pytest.raises(ValueError, match="no net energy is left to compare"):
        paired.ratio("b", idle=energy.Idle(Estimate(10.0, 10.0, 10.0), "a fake package", 1, 5))
    with pytest.raises(energy.EnergyMismatch):
        energy.pool([ratio, ratio, net])


def test_the_error_of_the_idle_power_is_in_the_net_interval(machine):
    """10 W for 10 ms and 30 W for 5 ms, less 1 to 3 W: 70 to 90 mJ and 135 to 145 mJ per call of a and b."""
    paired = energy.compare({"a": machine.work(0.01, 10), "b": machine.work(0.005, 30)}, counter=machine, window_seconds=0.1, blocks=4)
    idle = energy.Idle(Estimate(2.0, 1.0, 3.0), "a fake package", 1, 5)
    net, ratio = paired.energy("a", idle=idle), paired.ratio("b", idle=idle)
    assert (net.value, net.low, net.high) == pytest.approx((0.08, 0.07, 0.09))
    assert three(ratio) == pytest.approx((0.14 / 0.08, 0.145 / 0.09, 0.135 / 0.07))
    with pytest.raises(ValueError, match="the idle power may be as large as the power of the run"):
        paired.ratio("b", idle=energy.Idle(Estimate(2.0, 1.0, 10.0), "a fake package", 1, 5))


def test_the_counter_is_read_only_around_samples_and_starts_after_the_warm_up(machine):
    """Warming up may take longer than a RAPL counter can go unread."""
    energy.compare({"a": machine.work(0.01, 10)}, counter=machine, window_seconds=0.1, blocks=2)
    assert machine.log.count("start") == 1 and machine.log.index("start") >= 3


def test_without_a_counter_the_ratio_is_declared_and_says_so(machine):
    paired = energy.compare({"a": machine.work(0.01, 10), "b": machine.work(0.02, 10, cpu=0.005)}, window_seconds=0.1, blocks=4)
    ratio = paired.ratio("b")
    assert ratio.tier == "declared" and "ratio of CPU times, at equal power" in str(ratio)
    assert three(ratio) == pytest.approx((0.5, 0.5, 0.5))
    amount = paired.energy("a", power=energy.Power(1, 4, "a guess"))
    assert (amount.value, amount.low, amount.high) == (None, pytest.approx(0.01), pytest.approx(0.04))


def test_a_model_that_changes_between_runs_is_refused(machine):
    layer, dropout = nn.Linear(3, 2), nn.Sequential(nn.Dropout(0.5))
    x = torch.rand(4, 3)

    def learns():
        machine.work(0.05, 1)()
        with torch.no_grad():
            layer.weight += 0.1
        return layer(x)
    for name, function in (("learns", learns), ("drops", lambda: (machine.work(0.05, 1)(), dropout(x))[1])):
        with pytest.raises(ValueError, match=f"'{name}' gave another result after the runs than before: a model that changes"):
            energy.compare({"steady": machine.work(0.05, 1, result=x), name: function}, window_seconds=0.1, blocks=2)


@pytest.mark.parametrize("result", [None, "text", torch.tensor([1.0, float("nan")]), np.ones(3), (torch.ones(2), [3.0]), 5, torch.zeros(0)])
def test_a_steady_result_of_any_kind_is_accepted(machine, result):
    energy.compare({"a": machine.work(0.05, 1, result=result)}, window_seconds=0.1, blocks=2)


def test_several_process_runs_are_pooled_by_hand():
    """Ratios 0.5, 1 and 2: the geometric mean is 1; Student's t with 2 degrees of freedom gives the ends."""
    ratios = [energy.declared_ratio(Estimate(v, v, v), runs=30) for v in (0.5, 1.0, 2.0)]
    pooled = energy.pool(ratios)
    half = 4.302653 * np.log(2) / np.sqrt(3)
    assert three(pooled) == pytest.approx((1, np.exp(-half), np.exp(half)), rel=1e-5)
    assert pooled.runs == 3 and "3 process runs" in pooled.method and not pooled.equivalent()
    with pytest.raises(ValueError, match="at least three process runs; got 2"):
        energy.pool(ratios[:2])
