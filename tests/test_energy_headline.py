"""The study of headline energies: what a process run gives, with a counter and without, and what the stored rows say."""
import sys
import time
from pathlib import Path

import pytest
import torch
from course_lib import cost, energy, intervals, models, pruning, results
from fake_counters import SteadyCounter

STUDIES = Path(__file__).resolve().parent.parent / "studies"
sys.path.insert(0, str(STUDIES))
import energy_headline  # noqa: E402
import fresh  # noqa: E402

NAMES = ["dense", "small", "the reference again"]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Two networks that are exported quickly stand for the study's six."""
    monkeypatch.setattr(energy_headline, "networks", lambda: {"dense": models.mlp(hidden=(30,)), "small": models.mlp(hidden=(3,))})


def test_the_networks_are_of_three_kinds_and_the_dense_one_is_the_reference(small_networks, monkeypatch):
    monkeypatch.undo()
    nets = energy_headline.networks()
    assert next(iter(nets)) == "LeNet-300-100" and len(nets) == 6
    assert pruning.sparsity(nets["LeNet masked 90 %"]) == pytest.approx(0.9, abs=1e-4)
    assert cost.macs(nets["CNN 16-32"], torch.rand(1, 1, 28, 28)) < 0.4 * cost.macs(nets["CNN 32-64"], torch.rand(1, 1, 28, 28))


def available(counter):
    """Stands in for `best_available`."""
    return lambda: energy.Available("measured" if counter else "declared", counter, "a sentence")


def test_without_a_counter_the_ratios_are_declared_and_say_so(monkeypatch):
    monkeypatch.setattr(energy, "best_available", available(None))
    rows = energy_headline.process_run(batch=1, seed=0, seconds=0.01, blocks=2)
    assert [row["model"] for row in rows] == NAMES
    for row in rows:
        assert row["tier"] == "declared" and "CPU times" in row["method"] and row["ratio"] == row["cpu_ratio"]
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] and row["joules_low"] < row["joules_high"]


def test_with_a_counter_each_model_is_measured_gross_and_net(monkeypatch):
    monkeypatch.setattr(energy, "best_available", available(SteadyCounter(time.perf_counter)))
    monkeypatch.setattr(energy_headline.energy, "idle", lambda counter, **_: energy.Idle(
        intervals.Estimate(4.0, 4.0, 4.0), counter.boundary, 0.01, 2))
    rows = energy_headline.process_run(batch=1, seed=0, seconds=0.01, blocks=2)
    assert [row["model"] for row in rows[::2]] == [row["model"] for row in rows[1::2]] == NAMES
    for gross, net in zip(rows[::2], rows[1::2]):
        assert gross["tier"] == net["tier"] == "measured" and "short windows" in gross["method"]
        assert gross["boundary"].endswith("gross") and net["boundary"].endswith("net of idle power")
        assert net["joules_high"] < gross["joules_low"] + 1e-9 or net["joules_low"] < gross["joules_low"]


def test_headline_windows_last_ten_seconds_where_there_is_a_counter(monkeypatch):
    seen = {}
    monkeypatch.setattr(energy, "best_available", available(SteadyCounter(time.perf_counter)))
    monkeypatch.setattr(energy, "idle", lambda counter, *, seconds: seen.setdefault("idle", seconds))

    def compare(calls, **settings):
        raise KeyboardInterrupt(seen.update(settings))
    monkeypatch.setattr(energy, "compare", compare)
    with pytest.raises(KeyboardInterrupt):
        energy_headline.process_run(batch=1, seed=0)
    assert seen["window_seconds"] == seen["idle"] == energy.HEADLINE_SECONDS >= 10


def test_a_unit_is_a_process_of_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\nsys.path.insert(0, {str(STUDIES)!r})\nfrom fresh import answered\n"
                      "def here(n):\n    print('chatter')\n    return [{'process': os.getpid(), 'n': n}]\n"
                      "def broken():\n    raise OSError('the meter fell off')\n"
                      "assert answered(here, broken)\n")
    first, second = (fresh.fresh_process(script, "here", n=n)[0] for n in (3, 4))
    assert (first["n"], second["n"]) == (3, 4) and first["process"] != second["process"]
    with pytest.raises(RuntimeError, match="broken failed: (?s:.)*the meter fell off"):
        fresh.fresh_process(script, "broken")
    assert not fresh.answered()         # this process was not asked anything


# --- what is stored ---

@pytest.mark.parametrize("batch", [1, 64])
def test_the_stored_runs_pool_into_ratios_that_stand(batch):
    stored = results.load("energy_headline").rows

    def pooled(model):
        rows = [row for row in stored if row["model"] == model and row["configuration"] == f"batch {batch}"]
        assert len(rows) == len({row["seed"] for row in rows}) >= 5
        return energy.pool([energy.declared_ratio(intervals.Estimate(r["ratio"], r["ratio_low"], r["ratio_high"]), runs=8)
                            for r in rows])
    assert pooled("LeNet 150-50").estimate.high < 0.8           # half of the units: clearly less
    assert pooled("LeNet masked 90 %").equivalent(0.1)          # nine zeros in ten: nothing
    assert pooled("the reference again").equivalent(0.05)
