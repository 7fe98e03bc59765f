"""The script for a graphics card runs against a stand-in for NVML, and refuses politely where there is no card."""
import importlib.util
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib import energy
from fake_counters import FakeNvml

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu_energy.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_energy", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Card(FakeNvml):
    """A card that draws 50 W, and 200 W more for each second that this process has worked."""

    def __init__(self):
        super().__init__([lambda: int(1000 * (50 * time.perf_counter() + 200 * time.process_time()))])


def test_the_script_prints_joules_and_ratios_gross_and_net(script, capsys):
    script.main(["--batch", "2", "--seconds", "0.1", "--blocks", "3"], counter=energy.Nvml(nvml=Card()), device="cpu", small=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("idle: ") and 30 < float(lines[0].split()[1]) < 90
    for name in ("dense", "half the channels", "bfloat16"):
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert len(own) == 2 and "gross" in own[0] and "net of idle power" in own[1]
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
