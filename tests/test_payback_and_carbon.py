"""After how many inferences an expense is repaid, and grams of CO2e from joules."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import carbon, energy
from course_lib.intervals import Estimate

POWER = energy.Power(1, 3, "a test")


def declared(value: float, spread: float = 0.0, per: str = "inference") -> energy.Energy:
    return energy.declared(Estimate(value, value * (1 - spread), value * (1 + spread)), POWER, runs=3, per=per)


def measured(value: float, low: float, high: float, per: str = "inference") -> energy.Energy:
    return energy.Energy(energy.MEASURED, "a counter", "a board", 5, "", value, low, high, per)


def test_the_payback_by_hand():
    """60 s of training, 3 ms before and 2 ms after: 60 / 0.001 inferences."""
    n = energy.inferences_to_repay(declared(60, per="fine-tuning"), declared(0.003), declared(0.002))
    assert n.value == n.low == n.high == pytest.approx(60_000)


def test_the_ends_of_the_payback_cross():
    """The dearest training over the smallest saving is the late end."""
    n = energy.inferences_to_repay(measured(100, 90, 110, "fine-tuning"), measured(5, 4, 6), measured(2, 1, 3))
    assert (n.value, n.low, n.high) == pytest.approx((100 / 3, 90 / 5, 110 / 1))


@given(st.floats(0.1, 10), st.floats(0.5, 20), st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_the_declared_payback_does_not_depend_on_the_watts(low, wider, seconds):
    def payback(power: energy.Power) -> Estimate:
        once, before, after = (energy.declared(Estimate(s, 0.98 * s, 1.02 * s), power, runs=3, per=per) for s, per in
                               ((100 * seconds, "training"), (3 * seconds, "inference"), (seconds, "inference")))
        return energy.inferences_to_repay(once, before, after)
    ours, theirs = payback(POWER), payback(energy.Power(low, low + wider, "another"))
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert ours.low <= ours.value <= ours.high


def test_what_saves_nothing_never_pays():
    for after in (0.003, 0.004, 0.00295):
        with pytest.raises(ValueError, match="may save nothing: the difference per inference lies between .* CPU seconds"):
            energy.inferences_to_repay(declared(60, per="training"), declared(0.003, 0.02), declared(after, 0.02))
    with pytest.raises(ValueError, match="J, so perhaps no number of inferences"):
        energy.inferences_to_repay(measured(100, 90, 110), measured(5, 4, 6), measured(4, 3, 5))


def test_the_payback_stays_inside_one_tier_and_boundary():
    with pytest.raises(energy.EnergyMismatch, match="tier"):
        energy.inferences_to_repay(measured(100, 90, 110), declared(0.003), declared(0.002))
    with pytest.raises(energy.EnergyMismatch, match="tier"):
        energy.inferences_to_repay(declared(60), declared(0.003), measured(5, 4, 6))
    with pytest.raises(energy.EnergyMismatch, match="per"):
        energy.inferences_to_repay(declared(60), declared(0.003), declared(0.002, per="batch"))


# --- carbon ---

def test_a_kilowatt_hour_is_the_table_s_grams():
    amount = measured(3_600_000, 1_800_000, 7_200_000, "day")
    grams = carbon.carbon(amount, carbon.GRIDS["World"])
    assert (grams.low, grams.high) == (240.5, 962)
    assert str(grams) == ("240 to 962 g CO2e per day (World 2023, 481 g/kWh, Ember 2024, mean of 2023; energy measured: a "
                          "counter; a board)")


def test_a_declared_energy_gives_an_interval_of_grams_and_names_its_tier():
    grams = carbon.carbon(declared(1.0), carbon.GRIDS["France"])
    assert grams.high / grams.low == pytest.approx(3) and "declared" in str(grams) and "France 2023" in str(grams)


@pytest.mark.parametrize("place", carbon.GRIDS)
def test_every_grid_has_a_year_and_a_source(place):
    grid = carbon.GRIDS[place]
    assert grid.name.startswith(place) and "2023" in grid.name and "Ember" in grid.source and 10 < grid.grams_per_kwh < 1000


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
def test_a_grid_without_grams_is_refused(bad):
    with pytest.raises(ValueError, match="grams of CO2e per kilowatt-hour must be above 0"):
        carbon.Grid("here", bad, "a guess")


def test_a_grid_without_a_name_or_source_is_refused():
    for name, source in ((" ", "a table"), ("here", "")):
        with pytest.raises(ValueError, match="name the grid and the source"):
            carbon.Grid(name, 400, source)


def test_bare_numbers_are_refused():
    for amount, grid in ((3.6e6, carbon.GRIDS["World"]), (measured(1, 1, 1), 481)):
        with pytest.raises(TypeError, match="need an Energy and a Grid"):
            carbon.carbon(amount, grid)


def test_modelled_joules_never_become_grams():
    modelled = energy.Energy(energy.MODELLED, "as executed", "arithmetic", 0, "a table", 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="a modelled energy compares models and is no electricity"):
        carbon.carbon(modelled, carbon.GRIDS["World"])


# --- many times the same task ---

def test_a_million_times_keeps_the_origin_and_scales_all_ends():
    many = declared(0.002, 0.1).times(1_000_000, per="million inferences")
    assert (many.low, many.high, many.value, many.per) == (pytest.approx(1800), pytest.approx(6600), None, "million inferences")
    assert many.seconds.value == pytest.approx(2000) and many.tier == "declared" and many.runs == 3
    board = measured(2, 1, 4).times(10, per="ten")
    assert (board.value, board.low, board.high, board.seconds) == (20, 10, 40, None)
    with pytest.raises(energy.EnergyMismatch, match="per"):
        board - measured(2, 1, 4)


@pytest.mark.parametrize("count", [0, -3, float("nan"), float("inf"), True, "ten"])
def test_a_count_that_is_no_number_of_tasks_is_refused(count):
    with pytest.raises(ValueError, match="count must be a finite number above 0"):
        measured(2, 1, 4).times(count, per="many")
