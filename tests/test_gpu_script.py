"""The script for a graphics card runs against a stand-in for NVML, and refuses politely where there is no card."""
import functools
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib import energy, timing
from fake_counters import Clock, FakeNvml

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu_energy.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_energy", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SECONDS = {"dense": 0.02, "half the channels": 0.01, "bfloat16": 0.016}


class Card(FakeNvml):
    """A card that draws 50 W, and 200 W more while it works. Its clock moves only while it works, or we sleep."""

    def __init__(self):
        self.clock, self.worked = Clock(), 0.0
        super().__init__([lambda: round(1000 * (50 * self.clock() + 200 * self.worked))])

    def working(self, function, seconds):
        def run():
            self.clock.sleep(seconds)
            self.worked += seconds
            return function()
        return run


@pytest.fixture
def card(script, monkeypatch):
    """A card whose seconds for a call are known, in the place of the real clock."""
    card, runners = Card(), script.runners
    monkeypatch.setattr(script, "runners", lambda *args, **kwargs: {
        name: card.working(run, SECONDS[name]) for name, run in runners(*args, **kwargs).items()})
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=card.clock, process_time=card.clock))
    monkeypatch.setattr(energy, "idle", functools.partial(energy.idle, sleep=card.clock.sleep, clock=card.clock))
    return card


def test_the_script_prints_joules_and_ratios_gross_and_net(script, card, capsys):
    """250 W, or 200 W net of idle power, times the seconds of a call, over two images."""
    script.main(["--batch", "2", "--seconds", "0.1", "--blocks", "3"], counter=energy.Nvml(nvml=card), device="cpu", small=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("idle: ") and float(lines[0].split()[1]) == pytest.approx(50, rel=0.01)
    for name, seconds in SECONDS.items():
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert len(own) == 2 and "gross" in own[0] and "net of idle power" in own[1]
        joules = [float(re.match(rf"{name}: ([\d.]+) J ", line)[1]) for line in own]
        assert joules == pytest.approx([125 * seconds, 100 * seconds], rel=0.02)
        assert all("measured: NVML energy counter" in line and "Fake V100" in line and "short windows" in line for line in own)
    assert sum("ratio to the first" in line for line in lines) == 6 and sum("against itself" in line for line in lines) == 2


def test_the_full_variants_are_large_and_the_thin_one_is_thinner(script):
    """More multiply-accumulates than ResNet-50 has (4.1 billion), a quarter of them where half the channels are gone."""
    with torch.device("meta"):
        networks = script.variants()
    example = torch.empty(1, 3, 224, 224, device="meta")
    macs = {name: half_of_flops(model, example.to(next(model.parameters()).dtype)) for name, model in networks.items()}
    assert macs["dense"] == macs["bfloat16"] > 5e9 and 0.2 < macs["half the channels"] / macs["dense"] < 0.3


def half_of_flops(model, example):
    with FlopCounterMode(display=False) as counter:
        model.eval()(example)
    return counter.get_total_flops() / 2


def test_without_a_card_the_script_says_why(script, monkeypatch):
    monkeypatch.setattr(energy, "best_available", lambda device: energy.Available("modelled", None, "Energy cannot be measured here: no."))
    with pytest.raises(SystemExit, match="Energy cannot be measured here: no."):
        script.main([])
