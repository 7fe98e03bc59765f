"""Device budgets: the tables, what fits, the peak of live tensors, and what a battery allows."""
import copy
import csv
import math

import pytest
import torch
from course_lib import devices, energy, mobile, models
from course_lib.devices import FOLDER, Device, activation_peak, fits, inferences_per_charge, load, share_of_power
from course_lib.intervals import Estimate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

IMAGE = torch.zeros(1, 1, 28, 28)
TINY = Device("tiny", "an example", 1000, 600, 2000, 10.0, {}, "made up")


def joules(low, high, *, tier=energy.MODELLED, per="inference", boundary="chip"):
    if tier == energy.MEASURED:
        return energy.Energy(tier, "meter", boundary, 5, "", (low + high) / 2, low, high, per)
    return energy.Energy(tier, "as executed", boundary, 0, "a table", (low + high) / 2, low, high, per)


# --- the tables ---

def test_every_figure_says_where_it_was_seen_and_how_far_it_was_checked():
    for name, columns in (("devices.csv", ("checked", "seen", "battery_seen")), ("device_loads.csv", ("checked", "seen"))):
        with (FOLDER / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and all(None not in row for row in rows)            # no field too many
        for row in rows:
            assert all(row[column].strip() for column in columns), row
            assert row["seen"].startswith(("https://", "GitHub ")), row
            assert "maker" in row["checked"] or "secondary" in row["checked"], row


def test_the_four_classes_are_there():
    shelf = load()
    assert list(shelf) == ["microcontroller", "small watch", "smart watch", "phone", "drone"]
    micro = shelf["microcontroller"]
    assert (micro.ram_bytes, micro.storage_bytes) == (256 * 1024, 1024 * 1024)
    assert shelf["drone"].piece_bytes == 128 * 1024 < shelf["drone"].ram_bytes
    assert shelf["phone"].ram_bytes > 1000 * micro.ram_bytes


def test_a_charge_and_its_loads_by_hand():
    """350 mAh at 3.7 V: 0.35 A · 3600 s · 3.7 V = 4662 J. One week is 604,800 s, so standby takes 7.708 mW; 33 mA take 122.1 mW."""
    watch = load()["small watch"]
    assert watch.joules == pytest.approx(0.35 * 3600 * 3.7)
    assert watch.loads["standby"] == pytest.approx(4662 / 604_800)
    assert watch.loads["screen"] == pytest.approx(0.1221)


def test_flying_takes_the_battery_of_the_drone_in_seven_minutes():
    drone = load()["drone"]
    assert drone.loads["flying"] * 7 * 60 == pytest.approx(drone.joules, rel=1e-6)


def test_every_load_belongs_to_a_device_and_has_one_figure():
    with (FOLDER / "device_loads.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["device"] for row in rows} <= set(load())
    assert all(bool(row["milliamps"]) != bool(row["hours"]) for row in rows)
    assert sum(len(d.loads) for d in load().values()) == len(rows)


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="devices.csv"):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"piece_bytes": 1001}, {"piece_bytes": 0}, {"storage_bytes": 0}, {"joules": math.inf},
                                    {"joules": 0.0}])
def test_an_impossible_device_is_refused(change):
    with pytest.raises(ValueError, match="no piece of its memory is larger"):
        Device(**{**vars(TINY), **change})


# --- what fits ---

@pytest.mark.parametrize("file, memory, verdict", [
    (2000, 600, "yes"), (2001, 600, "no: storage 100 %"), (2000, 601, "no: memory 100 %"), (4000, 900, "no: storage 200 %, memory 150 %"),
    (1, 700, "no: memory 117 %")])          # 700 bytes lie in no piece, though there are 1000 altogether
def test_a_model_fits_up_to_the_last_byte_of_one_piece(file, memory, verdict):
    fit = fits(file, memory, TINY)
    assert str(fit) == verdict
    assert bool(fit) is (verdict == "yes")


def test_a_share_of_the_device_is_a_share_of_both_budgets():
    assert fits(1000, 300, TINY, share=0.5)
    assert fits(1001, 300, TINY, share=0.5).storage > 1
    assert fits(1000, 301, TINY, share=0.5).memory > 1


@pytest.mark.parametrize("arguments, share, message", [
    ((0, 1), 1.0, "file_bytes must be"), ((1, -3), 1.0, "activation_bytes must be .* -3"), ((math.nan, 1), 1.0, "file_bytes .* nan"),
    ((1, math.inf), 1.0, "activation_bytes"), ((1, 1), 0, "share .* got 0"), ((1, 1), 1.5, "share .* got 1.5"),
    ((1, 1), math.nan, "share")])
def test_senseless_sizes_are_refused(arguments, share, message):
    with pytest.raises(ValueError, match=message):
        fits(*arguments, TINY, share=share)


# --- the peak of live tensors ---

def test_the_peak_of_the_cnn_by_hand():
    """Its first pooling reads 32·26·26 = 21,632 numbers and writes 32·13·13 = 5,408: 27,040 numbers; ReLU overwrites."""
    assert activation_peak(models.cnn(), IMAGE) == 4 * 27_040
    assert activation_peak(models.cnn(), IMAGE, bytes_per_value=1) == 27_040
    assert activation_peak(models.cnn(), IMAGE.expand(3, -1, -1, -1)) == 3 * 4 * 27_040


def test_a_fully_connected_network_needs_its_image_and_its_first_layer():
    assert activation_peak(models.mlp(), IMAGE) == 4 * (784 + 128)


class Block(nn.Module):
    """A convolution, ReLU, a convolution, and perhaps the input added."""

    def __init__(self, skip):
        super().__init__()
        self.first, self.second, self.skip = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), skip

    def forward(self, x):
        y = self.second(self.first(x).relu())
        return x + y if self.skip else y


@pytest.mark.parametrize("skip, tensors", [(False, 2), (True, 3)])
def test_the_input_stays_live_until_it_is_added(skip, tensors):
    assert activation_peak(Block(skip), torch.zeros(1, 8, 10, 10)) == tensors * 4 * 800


class Reused(nn.Module):
    """The result of ReLU is needed, and so is what went into it: it must not be overwritten."""

    def __init__(self, reused):
        super().__init__()
        self.layer, self.last, self.reused = nn.Linear(10, 10), nn.Linear(10, 1), reused

    def forward(self, x):
        y = self.layer(x)
        z = y.relu()
        return self.last(z) + self.last(y) if self.reused else self.last(z)


def test_what_is_read_again_is_not_overwritten():
    """Both read again: while the second result (1 number) is made, the first (1), and y (10) live; before, y and z (20), z's result (1)."""
    assert activation_peak(Reused(False), torch.zeros(1, 10)) == 4 * 20        # x and y
    assert activation_peak(Reused(True), torch.zeros(1, 10)) == 4 * 21         # y, z and the result of z


class Viewed(nn.Module):
    """A view is read after the tensor that it shows: their numbers stay live."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 30), nn.Linear(30, 40)

    def forward(self, x):
        y = self.a(x)
        seen = y.reshape(3, 10).unsqueeze(0)
        z = self.b(y)
        return z.sum() + seen.sum()


def test_a_view_keeps_the_numbers_alive_that_it_shows():
    assert activation_peak(Viewed(), torch.zeros(1, 10)) == 4 * 71              # y (30), z (40) and the sum of z


@settings(max_examples=15, deadline=None)
@given(widths=st.lists(st.integers(1, 40), min_size=1, max_size=3), pixels=st.integers(1, 6))
def test_in_a_chain_the_peak_is_the_largest_pair_of_neighbours(widths, pixels):
    model = models.mlp(1, pixels, 3, tuple(widths))
    sizes = [pixels**2, *widths, 3]
    assert activation_peak(model, torch.zeros(1, 1, pixels, pixels)) == 4 * max(a + b for a, b in zip(sizes, sizes[1:]))


@pytest.mark.parametrize("model", [models.cnn(widths=(4, 6)), models.lenet5(), models.resnet(width=4)],
                         ids=lambda model: model.architecture["builder"])
def test_no_plan_of_executorch_is_below_the_bound(model):
    pytest.importorskip("executorch")
    least, planned = activation_peak(model, IMAGE), mobile.planned_bytes(model, IMAGE)
    assert least <= planned <= 2 * least            # and the bound is no trifle either


def test_the_model_stays_as_it_was():
    model = models.student().train()
    before = copy.deepcopy(model.state_dict())
    activation_peak(model, IMAGE.expand(2, -1, -1, -1))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


def test_a_model_that_cannot_be_recorded_is_refused():
    with pytest.raises(ValueError, match="torch.export cannot record this model"):
        activation_peak(Undecided(), IMAGE)


@pytest.mark.parametrize("example, size", [(IMAGE, 0), (IMAGE, -1), (IMAGE, math.nan), (IMAGE[:0], 4)])
def test_no_image_or_no_bytes_are_refused(example, size):
    with pytest.raises(ValueError, match="at least one image and bytes_per_value above 0"):
        activation_peak(models.mlp(), example, bytes_per_value=size)


# --- the battery ---

def test_inferences_per_charge_by_hand():
    """10 J for 1 mJ to 4 mJ each: 2,500 to 10,000 inferences, and 5,000 in the middle of the logarithmic axis."""
    e = inferences_per_charge(joules(1e-3, 4e-3), 10.0)
    assert (e.value, e.low, e.high) == pytest.approx((5000, 2500, 10_000))
    assert e == inferences_per_charge([joules(1e-3, 2e-3), joules(3e-3, 4e-3, boundary="DRAM")], 10.0)


@given(low=st.floats(1e-9, 1e-3), factor=st.floats(1, 100), battery=st.floats(1, 1e5))
def test_the_dearest_inference_is_the_low_end_and_a_double_battery_does_twice_as_much(low, factor, battery):
    one, two = (inferences_per_charge(joules(low, factor * low), size) for size in (battery, 2 * battery))
    assert one.low <= one.value * (1 + 1e-12) and one.value <= one.high * (1 + 1e-12)
    assert one.low * factor * low == pytest.approx(battery)
    assert two.value == pytest.approx(2 * one.value)


def test_a_share_by_hand():
    """2 images a second for 1 to 3 J each, beside 6 W: 2 of 8 W to 6 of 12 W."""
    share = share_of_power(joules(1.0, 3.0), 2, 6.0)
    assert share == Estimate(pytest.approx(2 * 3**0.5 / (2 * 3**0.5 + 6)), 0.25, 0.5)
    assert share_of_power(joules(1.0, 3.0), 2, 0) == Estimate(1, 1, 1)


@pytest.mark.parametrize("wrong", [1e-3, [], [1e-3], None, "1 mJ"])
def test_bare_numbers_have_no_origin_and_are_refused(wrong):
    with pytest.raises(TypeError, match="need an Energy or a list of them"):
        inferences_per_charge(wrong, 10.0)
    with pytest.raises(TypeError, match="need an Energy or a list of them"):
        share_of_power(wrong, 1, 1)


@pytest.mark.parametrize("wrong", [
    joules(1, 2, per="million inferences"), joules(0.0, 2), [joules(1, 2), joules(1, 2, tier=energy.MEASURED)]])
def test_energies_that_do_not_belong_here_are_refused(wrong):
    with pytest.raises(ValueError, match="energies of one tier, per inference and above 0"):
        inferences_per_charge(wrong, 10.0)


@pytest.mark.parametrize("battery", [0, -1.0, math.inf, math.nan])
def test_an_impossible_battery_is_refused(battery):
    with pytest.raises(ValueError, match="joules of the battery"):
        inferences_per_charge(joules(1, 2), battery)


@pytest.mark.parametrize("rate, watts", [(0, 1), (-1, 1), (math.inf, 1), (1, -0.1), (1, math.nan)])
def test_an_impossible_rate_or_load_is_refused(rate, watts):
    with pytest.raises(ValueError, match="rate above 0 and other watts"):
        share_of_power(joules(1, 2), rate, watts)


def test_the_module_names_what_it_exports():
    assert all(hasattr(devices, name) for name in devices.__all__)
