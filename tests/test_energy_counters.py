"""Counters on fake machines of every layout: nothing is counted twice, a wrap is put right, and no counter is never zero."""
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import energy
from course_lib.energy import rapl
from fake_counters import RANGE, Clock, FakeNvml, SteadyCounter, powercap

# name: (folders with names and microjoules, the zones that count)
LAYOUTS = {
    "one socket": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl:0:0": ("core", 3000), "intel-rapl:0:1": ("uncore", 100),
                    "intel-rapl:0:2": ("dram", 900)}, ["package-0", "package-0 dram"]),
    "one socket without DRAM": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl:0:0": ("core", 3000)}, ["package-0"]),
    "two sockets": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl:0:0": ("dram", 900),
                     "intel-rapl:1": ("package-1", 7_000_000_000), "intel-rapl:1:0": ("dram", 800)},
                    ["package-0", "package-0 dram", "package-1", "package-1 dram"]),
    "two sockets that read alike": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl:1": ("package-1", 5000)},
                                    ["package-0", "package-1"]),
    "dies that mirror one counter": ({"intel-rapl:0": ("package-0-die-0", 68_000_000), "intel-rapl:1": ("package-0-die-1", 68_000_100)},
                                     ["package-0-die-0"]),
    "two sockets of mirrored dies": (
        {"intel-rapl:0": ("package-0-die-0", 68_000_000), "intel-rapl:1": ("package-0-die-1", 68_000_100),
         "intel-rapl:2": ("package-1-die-0", 68_000_050), "intel-rapl:3": ("package-1-die-1", 68_000_060)},
        ["package-0-die-0", "package-1-die-0"]),
    "dies with counters of their own": ({"intel-rapl:0": ("package-0-die-0", 68_000_000), "intel-rapl:0:0": ("dram", 4_000_000_000),
                                         "intel-rapl:1": ("package-0-die-1", 9_000_000_000), "intel-rapl:1:0": ("dram", 5_000_000)},
                                        ["package-0-die-0", "package-0-die-0 dram", "package-0-die-1", "package-0-die-1 dram"]),
    "dies whose counters are unused": ({"intel-rapl:0": ("package-0-die-0", 0), "intel-rapl:1": ("package-0-die-1", 0)},
                                       ["package-0-die-0", "package-0-die-1"]),
    "the whole platform too": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl:0:0": ("core", 3000),
                                "intel-rapl:1": ("psys", 90_000)}, ["package-0"]),
    "the platform first, with parts of its own": ({"intel-rapl:0": ("psys", 90_000), "intel-rapl:0:0": ("dram", 9),
                                                   "intel-rapl:1": ("package-0", 5000)}, ["package-0"]),
    "a copy through another interface": ({"intel-rapl:0": ("package-0", 5000), "intel-rapl-mmio:0": ("package-0", 4990)},
                                         ["package-0"]),
    "more than ten zones": ({f"intel-rapl:{i}": (f"package-{i}", 10**9 * (i + 1)) for i in range(12)},
                            [f"package-{i}" for i in range(12)]),
}


@pytest.mark.parametrize("layout, counted", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_counts_every_package_and_its_memory_once(tmp_path, layout, counted):
    """Every counter in the tree advances by 4 J: the sum tells how many were added up."""
    clock, files = Clock(), powercap(tmp_path, layout)
    assert [zone.name for zone in energy.zones(tmp_path)] == counted
    counter = energy.Rapl(tmp_path, clock=clock)
    clock.sleep(1)
    for file in files.values():
        file.write_text(str(int(file.read_text()) + 4_000_000))
    assert counter.joules() == pytest.approx(4 * len(counted))
    assert counter.by_zone() == pytest.approx(dict.fromkeys(counted, 4.0))
    packages = sum("dram" not in name for name in counted)
    assert f"{packages} processor package" in counter.boundary
    assert ("and DRAM" if packages < len(counted) else "without DRAM") in counter.boundary


@pytest.fixture
def package(tmp_path):
    """One package on a clock of its own: its counter's file and the reader of it."""
    file = powercap(tmp_path, {"intel-rapl:0": ("package-0", 5_000_000)})["intel-rapl:0"]
    clock = Clock()
    return SimpleNamespace(file=file, clock=clock, counter=energy.Rapl(tmp_path, clock=clock), root=tmp_path)


def advance(package, microjoules, seconds):
    package.file.write_text(str(microjoules))
    package.clock.sleep(seconds)


def test_joules_add_up_between_readings_and_start_anew(package):
    advance(package, 7_500_000, 1)
    assert package.counter.joules() == pytest.approx(2.5)
    advance(package, 8_500_000, 1)
    assert package.counter.joules() == pytest.approx(3.5)
    package.counter.start()
    assert package.counter.joules() == 0
    advance(package, 8_600_000, 1)
    assert package.counter.joules() == pytest.approx(0.1)


def test_a_counter_that_started_over_is_put_right(package):
    advance(package, RANGE - 1_000_000, 1)
    package.counter.start()
    advance(package, 2_000_000, 1)
    assert package.counter.joules() == pytest.approx(3)


@given(st.integers(0, RANGE - 1), st.lists(st.integers(0, 50_000_000), min_size=1, max_size=8))
@settings(max_examples=60)
def test_any_number_of_wraps_adds_up_where_each_step_has_at_most_one(tmp_path_factory, begin, steps):
    """A small range, so that steps of up to 50 J wrap often; the truth is their sum."""
    small = 60_000_000
    file = powercap(tmp_path_factory.mktemp("powercap"), {"intel-rapl:0": ("package-0", begin % small)}, range_uj=small)["intel-rapl:0"]
    clock, position = Clock(), begin % small
    counter = energy.Rapl(file.parent.parent, clock=clock)
    for step in steps:
        position = (position + step) % small
        file.write_text(str(position))
        clock.sleep(0.055)
        total = counter.joules()
    assert total == pytest.approx(sum(steps) * 1e-6, abs=1e-6)


def test_more_than_one_wrap_in_a_window_is_detected_and_refused(package):
    """262 kJ at no more than 1000 W: 262 seconds. Longer, and the difference could be short of whole ranges."""
    assert package.counter.longest_gap == pytest.approx(262, abs=0.2)
    advance(package, 6_000_000, 263)
    with pytest.raises(energy.CounterError, match="may have started over more than once since: read it at least every 262 s"):
        package.counter.joules()
    patient = energy.Rapl(package.root, max_watts=100, clock=package.clock)
    advance(package, 7_000_000, 2000)
    assert patient.joules() == pytest.approx(1)


@pytest.mark.parametrize("reading, what", [(1_000_000, "went backwards: it was reset, from 5000000 to 1000000 µJ in 1 s"),
                                           (5_000_000_000, "jumped, from 5000000 to 5000000000 µJ")])
def test_a_counter_that_was_reset_or_jumped_is_no_wrap(package, reading, what):
    """Modulo its range a reset would be 262 kJ within a second."""
    advance(package, reading, 1)
    with pytest.raises(energy.CounterError, match=f"package-0 {what}"):
        package.counter.joules()


def test_a_counter_that_vanished_says_so(package):
    package.file.unlink()
    with pytest.raises(energy.CounterError, match="energy_uj cannot be read .* the counter has vanished or is damaged"):
        package.counter.joules()


@pytest.mark.parametrize("text, what", [("", "holds '' and not a whole number"), ("12.5", "holds '12.5'"), ("µ", "vanished or is damaged"),
                                        ("-5", "says -5 µJ, outside its own range"), (str(RANGE + 1), "outside its own range")])
def test_a_counter_that_holds_no_number_says_so(package, text, what):
    package.file.write_text(text, encoding="utf-8")
    with pytest.raises(energy.CounterError, match=what):
        package.counter.joules()


def test_without_permission_the_error_says_how_to_grant_it(package, monkeypatch):
    """As root a file can always be read, so the refusal is the fake's."""
    def refuse(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)
    original = type(package.file).read_text
    monkeypatch.setattr(type(package.file), "read_text", refuse)
    with pytest.raises(energy.CounterError, match="may not be read: .* root only.* sudo chmod a\\+r"):
        energy.Rapl(package.root)
    found = energy.best_available(root=package.root, platform="linux", soc=absent)
    assert found.counter is None and found.tier == "declared" and "sudo chmod a+r" in found.sentence


@pytest.mark.parametrize("layout", [{}, {"intel-rapl:0": ("psys", 5)}, {"intel-rapl:0": ("core", 5)}, {"dtpm": ("package-0", 5)}])
def test_a_tree_without_packages_has_no_counter(tmp_path, layout):
    powercap(tmp_path / "tree", layout)
    for root in (tmp_path / "tree", tmp_path / "nowhere"):
        with pytest.raises(energy.CounterError, match="there is no RAPL package counter in .*: a virtual machine"):
            energy.Rapl(root)


def test_a_range_of_zero_cannot_be_used(tmp_path):
    powercap(tmp_path, {"intel-rapl:0": ("package-0", 5)}, range_uj=0)
    with pytest.raises(energy.CounterError, match="package-0 says that its counter ends at 0 µJ"):
        energy.Rapl(tmp_path)


@pytest.mark.parametrize("watts", [0, -5])
def test_the_most_that_a_zone_can_draw_is_above_zero(package, watts):
    with pytest.raises(ValueError, match=f"max_watts must be above 0, such as 1000; got {watts}"):
        energy.Rapl(package.root, max_watts=watts)


# --- NVML and adapters ---

def test_a_card_is_read_in_millijoules_since_the_start():
    nvml = FakeNvml([0, 5000], name=b"Fake A100")
    counter = energy.Nvml(1, nvml=nvml)
    nvml.millijoules = [99, 7500]
    assert counter.joules() == 2.5 and counter.boundary == "graphics card 1 (Fake A100), whole board"
    counter.start()
    assert counter.joules() == 0


@pytest.mark.parametrize("nvml, index, message", [
    (FakeNvml(start_error="Driver Not Loaded"), 0, "NVML does not start .Driver Not Loaded.: there is no NVIDIA driver"),
    (FakeNvml([]), 0, "there is no card 0: NVML sees 0"), (FakeNvml(), 1, "there is no card 1: NVML sees 1, counted from 0"),
    (FakeNvml(), -1, "there is no card -1"), (FakeNvml([None]), 0, "cannot be read .Not Supported.: cards before Volta")])
def test_a_card_that_cannot_be_read_says_why(nvml, index, message):
    with pytest.raises(energy.CounterError, match=message):
        energy.Nvml(index, nvml=nvml)


def test_a_counter_that_goes_backwards_is_refused():
    nvml = FakeNvml([5000])
    card, adapter = energy.Nvml(nvml=nvml), energy.Adapter(lambda: nvml.millijoules[0], method="m", boundary="b")
    nvml.millijoules = [7000]
    card.joules(), adapter.joules()
    nvml.millijoules = [6000]               # still above the start
    with pytest.raises(energy.CounterError, match="went backwards, from 7000 to 6000 mJ: its driver was loaded anew"):
        card.joules()
    with pytest.raises(energy.CounterError, match="m went backwards, from 7000 to 6000 J"):
        adapter.joules()


def test_without_its_package_nvml_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(energy.CounterError, match="pip install nvidia-ml-py"):
        energy.Nvml()


def chip(**fields):
    values = iter(fields.pop("steps", [{}]))
    state = dict(fields)

    def total():
        state.update(next(values, {}))
        return SimpleNamespace(**state)
    return SimpleNamespace(get_total_energy_consumption=total)


def test_an_apple_processor_is_cores_and_memory():
    counter = energy.system_on_chip(chip(cpu_total_mj=1000, dram_mj=500, gpu_mj=9, steps=[{}, {}, {"cpu_total_mj": 3000, "gpu_mj": 900}]))
    assert counter.joules() == pytest.approx(2) and counter.boundary == "processor cores and DRAM"
    assert "estimate" in counter.method


def test_a_jetson_is_the_whole_board():
    counter = energy.system_on_chip(chip(total_energy_mj=100.0, cpu_energy_mj=1.0, steps=[{}, {}, {"total_energy_mj": 350.0}]))
    assert counter.joules() == pytest.approx(0.25) and counter.boundary == "whole Jetson board" and "sampled" in counter.method


def test_a_figure_that_the_chip_does_not_give_is_no_zero():
    with pytest.raises(energy.CounterError, match="zeus gives no dram_mj on this machine"):
        energy.system_on_chip(chip(cpu_total_mj=1000, dram_mj=None))


def test_without_its_package_the_adapter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zeus.device.soc", None)
    with pytest.raises(energy.CounterError, match="need the package zeus"):
        energy.system_on_chip()


@pytest.mark.parametrize("value", [None, "5", True, float("nan"), float("inf")])
def test_an_adapter_wants_numbers(value):
    with pytest.raises(energy.CounterError, match="gave .* and not a number of joules"):
        energy.Adapter(lambda: value, method="m", boundary="b")
    with pytest.raises(ValueError, match="an adapter needs a function that returns joules, a method and a boundary"):
        energy.Adapter(lambda: 1.0, method="", boundary="b")


# --- what this machine can do ---

def absent():
    raise energy.CounterError("zeus finds nothing")


def test_the_best_of_a_machine_with_a_counter_is_measured(package):
    found = energy.best_available(root=package.root, platform="linux", soc=absent)
    assert found.tier == "measured" and isinstance(found.counter, energy.Rapl)
    assert str(found) == ("Energy can be measured here: RAPL counters, which count 1 processor package without DRAM, which has no "
                          "counter here. What else runs inside that boundary is counted too.")


@pytest.mark.parametrize("platform, soc, tier", [("linux", absent, "declared"), ("darwin", absent, "declared"),
                                                 ("win32", lambda: pytest.fail("not asked"), "declared"),
                                                 ("darwin", lambda: SteadyCounter(Clock()), "measured")])
def test_the_best_of_a_machine_without_rapl(tmp_path, platform, soc, tier):
    found = energy.best_available(root=tmp_path, platform=platform, soc=soc)
    assert found.tier == tier and (found.counter is None) == (tier != "measured")
    if tier != "measured":
        assert "cannot be measured here: " in found.sentence and "never zero" in found.sentence
        assert {"linux": "virtual machine", "darwin": "zeus finds nothing", "win32": "no counter on 'win32'"}[platform] in found.sentence


def test_work_on_a_card_is_measured_on_the_card_only(package):
    found = energy.best_available("cuda", root=package.root, nvml=FakeNvml())
    assert found.tier == "measured" and "graphics card 0" in found.sentence
    found = energy.best_available("cuda", root=package.root, nvml=FakeNvml(start_error="none"))
    assert found.tier == "modelled" and found.counter is None and "no declared tier" in found.sentence
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda'; got 'tpu'"):
        energy.best_available("tpu")


def test_every_counter_is_one(package):
    for counter in (package.counter, energy.Nvml(nvml=FakeNvml()), energy.Adapter(lambda: 1, method="m", boundary="b")):
        assert isinstance(counter, energy.Counter)
    assert rapl.POWERCAP.as_posix() == "/sys/class/powercap"
