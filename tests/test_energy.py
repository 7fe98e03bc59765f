"""Energies of different tiers never meet; declared is an interval; the model is arithmetic that can be done by hand."""
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import cost, energy, models, pruning
from course_lib.declared import LayerCost
from course_lib.intervals import Estimate
from helpers import IMAGE_SIZE, TINY, tiny

WATTS = energy.Power(2.0, 5.0, "a guess")


def measured(value=2.0, low=1.0, high=4.0, **changes):
    fields = {"tier": energy.MEASURED, "method": "a counter", "boundary": "package, gross", "runs": 5, "constants": "",
              "value": value, "low": low, "high": high, **changes}
    return energy.Energy(**fields)


def modelled(value=2.0, low=1.0, high=4.0, **changes):
    return measured(value, low, high, **{"tier": energy.MODELLED, "method": "as executed", "runs": 0, "constants": "a table",
                                         **changes})


def seconds(value=1.0, low=0.9, high=1.2):
    return Estimate(value, low, high)


# --- amounts ---

def test_every_amount_says_how_it_was_found():
    """In every format, and in every tier."""
    for amount, words in ((measured(), ("measured", "a counter", "package, gross", "2 J [1 J, 4 J]")),
                          (energy.declared(seconds(), WATTS, runs=7), ("declared", "CPU seconds × declared watts", "a guess",
                                                                       "1.8 J to 6 J", "one processor core")),
                          (modelled(), ("modelled", "as executed", "a table", "1 J to 4 J"))):
        for text in (str(amount), repr(amount), f"{amount}", f"{amount / amount}"):
            assert words[0] in text and amount.boundary in text
        assert all(word in str(amount) for word in words) and "per inference" in str(amount)
        with pytest.raises(TypeError):
            f"{amount:.2f}"                 # there is no way to print the number alone by mistake
        with pytest.raises(TypeError):
            float(amount)


def test_amounts_of_one_origin_add_subtract_and_divide_by_hand():
    """2 [1, 4] with 10 [8, 20]: independent ends cross."""
    a, b = measured(), measured(10.0, 8.0, 20.0, runs=3)
    total, rest, ratio = a + b, b - a, a / b
    assert (total.value, total.low, total.high, total.runs) == (12, 9, 24, 3)
    assert (rest.value, rest.low, rest.high) == (8, 4, 19)
    assert ratio.estimate == Estimate(0.2, 1 / 20, 4 / 8) and ratio.runs == 3
    assert (ratio.tier, ratio.method, ratio.boundary, ratio.constants) == (a.tier, a.method, a.boundary, "")


def test_an_uncertain_constant_is_the_same_in_both_modelled_amounts():
    ratio = modelled(2.0, 1.0, 3.0) / modelled(4.0, 2.0, 6.0)
    assert ratio.estimate == Estimate(0.5, 0.5, 0.5)
    rest = modelled(4.0, 2.0, 6.0) - modelled(2.0, 1.0, 3.0)
    assert (rest.low, rest.value, rest.high) == (1, 2, 3)


def test_the_ratio_of_two_declared_amounts_is_that_of_the_cpu_times():
    """Watts span a factor of 2.5; the ratio does not."""
    a, b = (energy.declared(seconds(*ends), WATTS, runs=9) for ends in ((2.0, 1.9, 2.1), (4.0, 3.8, 4.2)))
    assert (a / b).estimate == Estimate(0.5, 1.9 / 4.2, 2.1 / 3.8)
    assert "ratio of CPU times, at equal power" in str(a / b)
    assert energy.declared_ratio(Estimate(0.5, 0.4, 0.6), runs=9).estimate == Estimate(0.5, 0.4, 0.6)
    assert "ratio of CPU times, at equal power" in str(energy.declared_ratio(Estimate(0.5, 0.4, 0.6), runs=9))
    both = a + b
    assert (both.low, both.high, both.seconds.value) == pytest.approx((2 * 5.7, 5 * 6.3, 6))


DECLARED = energy.declared(seconds(), WATTS, runs=5)
PAIRS = [("tier", measured(), DECLARED), ("tier", measured(), modelled()), ("tier", DECLARED, modelled()),
         # all else equal: only the tier keeps them apart
         ("tier", DECLARED, modelled(boundary=DECLARED.boundary, constants=DECLARED.constants)),
         ("boundary", measured(), measured(boundary="package, net of idle power")),
         ("boundary", modelled(boundary="weights on chip"), modelled(boundary="weights in DRAM")),
         ("constants", modelled(), modelled(constants="another table")),
         ("constants", DECLARED, energy.declared(seconds(), energy.Power(1, 5, "mine"), runs=5)),
         ("per", measured(), measured(per="window"))]


@pytest.mark.parametrize("field, a, b", PAIRS)
@pytest.mark.parametrize("operate, verb", [(lambda a, b: a + b, "add"), (lambda a, b: a - b, "subtract"),
                                           (lambda a, b: a / b, "divide")])
def test_amounts_of_different_origin_never_meet(field, a, b, operate, verb):
    for first, second in ((a, b), (b, a)):
        with pytest.raises(energy.EnergyMismatch, match=f"cannot {verb} energies of different {field}: .*find both in the same way first"):
            operate(first, second)


@pytest.mark.parametrize("operate", [lambda a: a + 1, lambda a: 1 - a, lambda a: a / 2, lambda a: 2 / a, lambda a: sum([a, a])])
def test_bare_numbers_do_not_mix_with_energies(operate):
    with pytest.raises(TypeError):
        operate(measured())


@pytest.mark.parametrize("changes, message", [
    ({"tier": "guessed"}, "tier must be 'measured', 'declared' or 'modelled'; got 'guessed'"),
    ({"method": ""}, "needs a method and a boundary"), ({"boundary": ""}, "needs a method and a boundary"),
    ({"runs": 0}, "runs must be a whole number, at least 1"), ({"runs": 2.0}, "got 2.0"),
    ({"constants": "a table"}, "a measured one has none; got 'a table' for 'measured'"),
    ({"low": 3.0}, "need finite joules with low <= value <= high; got 3.0, 2.0, 4.0"),
    ({"high": math.inf}, "need finite joules"), ({"value": math.nan}, "need finite joules"),
    ({"value": None}, "a declared energy has CPU seconds and no single value"),
    ({"tier": energy.DECLARED, "constants": "w", "value": None}, "a declared energy has CPU seconds"),
    ({"tier": energy.DECLARED, "constants": "w", "value": None, "low": 4.0, "seconds": seconds()},
     "an interval, never a point; got 4.0 J twice"),
    ({"tier": energy.MODELLED, "runs": 0}, "names its constants")])
def test_an_amount_without_its_origin_cannot_be_made(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        measured(**changes)


def test_an_interval_that_reaches_zero_has_no_ratio():
    with pytest.raises(ValueError, match="reach zero or below: measure longer"):
        measured() / measured(1.0, -0.5, 2.0)


@given(st.lists(st.floats(0.01, 100), min_size=6, max_size=6))
@settings(max_examples=60)
def test_a_ratio_lies_in_its_interval_and_its_inverse_is_the_inverse(numbers):
    a, b = (measured(v, lo, hi) for lo, v, hi in (sorted(numbers[:3]), sorted(numbers[3:])))
    there, back = (a / b).estimate, (b / a).estimate
    assert there.low <= there.value <= there.high
    assert (back.low, back.value, back.high) == pytest.approx((1 / there.high, 1 / there.value, 1 / there.low))


@pytest.mark.parametrize("low, high, equivalent", [(0.96, 1.04, True), (0.953, 1.05, True), (0.95, 1.0, False),
                                                   (1.0, 1.051, False), (0.5, 0.6, False)])
def test_equivalent_means_that_the_whole_interval_is_within_the_margin(low, high, equivalent):
    """1/1.05 = 0.952…: the limits are each other's inverse."""
    ratio = energy.declared_ratio(Estimate((low + high) / 2, low, high), runs=3)
    inverse = energy.declared_ratio(Estimate(2 / (low + high), 1 / high, 1 / low), runs=3)
    assert ratio.equivalent() is inverse.equivalent() is equivalent
    assert not ratio.equivalent(0.001)
    for margin in (0, 1, -0.05, 5):
        with pytest.raises(ValueError, match="margin must be a fraction between 0 and 1"):
            ratio.equivalent(margin)


@pytest.mark.parametrize("ends", [(1, 0, 2), (1, -1, 2), (1, 1.1, 2), (math.nan, 1, 2), (1, 1, math.inf)])
def test_a_ratio_that_is_no_ratio_is_refused(ends):
    with pytest.raises(ValueError, match="a finite number above 0 inside its interval"):
        energy.declared_ratio(Estimate(*ends), runs=3)


@pytest.mark.parametrize("joules, text", [(1.5e-13, "0.15 pJ"), (12.3e-12, "12.3 pJ"), (4.5e-9, "4.5 nJ"), (1.234e-6, "1.23 µJ"),
                                          (0.9996e-3, "1 mJ"), (45, "45 J"), (1234, "1.23 kJ"), (0, "0 J"), (-0.002, "-2 mJ")])
def test_joules_for_people(joules, text):
    assert energy.format_joules(joules) == text


# --- declared ---

def test_declared_energy_by_hand():
    """0.9 to 1.2 seconds at 2 to 5 watts: 1.8 to 6 joules, and no value in between."""
    amount = energy.declared(seconds(), WATTS, runs=7)
    assert (amount.value, amount.low, amount.high, amount.runs) == (None, 1.8, 6.0, 7)
    assert amount.tier == energy.DECLARED and amount.constants == "2 to 5 W for one busy thread, a guess"


@pytest.mark.parametrize("bad", [(0.0, 0.0, 1.0), (1.0, -1.0, 2.0), (1.0, 2.0, 3.0), (1.0, 0.5, math.inf)])
def test_cpu_seconds_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="need CPU seconds above 0, inside their interval"):
        energy.declared(Estimate(*bad), WATTS, runs=5)


def test_each_generation_of_processors_has_its_interval_of_watts():
    table = energy.SERVER_WATTS
    widest = table["any of these chips"]
    others = [power for name, power in table.items() if power is not widest]
    assert (widest.low, widest.high) == (min(p.low for p in others), max(p.high for p in others))
    assert all("Cloud Carbon Footprint" in power.source for power in table.values()) and len(table) > 5
    assert table["AMD EPYC, 5th generation"].high / table["AMD EPYC, 4th generation"].high > 3.9


# --- modelled ---

ROW = LayerCost("fc", macs=1000, ideal_macs=250, operands="float32", weight_bytes=800, activation_bytes=40)
PJ = 1e-12


def test_the_model_by_hand():
    """1000 products of 3.7 pJ and sums of 0.9; 800 bytes at 12.5 pJ on chip, 162.5 to 325 in DRAM; 40 bytes at 12.5."""
    chip = energy.modelled_from_costs([ROW], weights=energy.ON_CHIP)
    assert chip.value == pytest.approx((4600 + 10_000 + 500) * PJ) and chip.low == chip.value == chip.high
    dram = energy.modelled_from_costs([ROW], weights=energy.DRAM)
    assert (dram.low, dram.value, dram.high) == pytest.approx([(4600 + 800 * b + 500) * PJ for b in (162.5, 243.75, 325)])
    assert energy.modelled_from_costs([ROW, ROW], weights=energy.ON_CHIP).value == pytest.approx(2 * chip.value)
    assert (dram.tier, dram.runs, dram.method) == ("modelled", 0, "as executed") and "Horowitz 2014, 45 nm" in dram.constants
    assert "weights in DRAM, batch 1" in dram.boundary and "weights on chip, batch 1" in chip.boundary


def test_a_batch_shares_one_reading_of_the_weights_and_nothing_else():
    amount = energy.modelled_from_costs([ROW], weights=energy.ON_CHIP, batch=10)
    assert amount.value == pytest.approx((4600 + 1000 + 500) * PJ)


def test_ideal_hardware_neither_multiplies_nor_reads_the_zeros():
    """A quarter of the weights is left; activations stay."""
    ideal = energy.modelled_from_costs([ROW], weights=energy.ON_CHIP, ideal=True)
    assert ideal.value == pytest.approx((1150 + 2500 + 500) * PJ) and "ideal hardware" in ideal.method


@pytest.mark.parametrize("operands, constants, picojoules", [
    ("int8", energy.HOROWITZ_45NM, 0.2 + 0.1), ("uint8", energy.HOROWITZ_45NM, 0.3), ("float16", energy.HOROWITZ_45NM, 1.1 + 0.9),
    ("float32", energy.HOROWITZ_45NM, 4.6), ("int32", energy.HOROWITZ_45NM, 3.2),
    ("float32", energy.JOUPPI_7NM, 1.31 + 0.38), ("bfloat16", energy.JOUPPI_7NM, 0.21 + 0.38), ("int8", energy.JOUPPI_7NM, 0.10)])
def test_a_multiply_accumulate_is_a_product_and_a_wide_sum(operands, constants, picojoules):
    assert energy.mac_energy(operands, constants).middle == pytest.approx(picojoules)


@pytest.mark.parametrize("operands, constants, known", [
    ("bfloat16", energy.HOROWITZ_45NM, "int8, uint8, int32, float16, float32"), ("int4", energy.JOUPPI_7NM, "bfloat16"),
    ("float64", energy.HOROWITZ_45NM, "it has int8"), ("complex64", energy.HOROWITZ_45NM, "it has int8")])
def test_an_operation_without_a_price_is_an_error_that_names_those_with_one(operands, constants, known):
    with pytest.raises(energy.UnpricedOperation, match=f"has no energy for a multiply-accumulate of {operands!r}") as caught:
        energy.mac_energy(operands, constants)
    assert known in str(caught.value) and constants.name in str(caught.value) and isinstance(caught.value, ValueError)


def test_an_operation_that_cannot_be_counted_has_no_energy_either():
    with pytest.raises(ValueError, match="cannot count the operation 'cumsum'"):
        energy.modelled(nn.Sequential(nn.Linear(2, 2), Cumsum()), torch.rand(1, 2))


class Cumsum(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_mask_saves_nothing_as_executed_and_much_on_ideal_hardware(name):
    """The same model, masked: equal energy as executed, at both brackets and any batch."""
    model, example = tiny(name), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    masked = pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=0.9))
    for batch, weights in itertools.product((1, 64), (energy.ON_CHIP, energy.DRAM)):
        kwargs = {"batch": batch, "weights": weights}
        assert energy.modelled(masked, example, **kwargs) == energy.modelled(model, example, **kwargs)
        ideal = energy.modelled(masked, example, ideal=True, **kwargs)
        assert ideal.high < energy.modelled(model, example, ideal=True, **kwargs).low


costs = st.builds(lambda macs, share, weight, moved, operands: LayerCost("x", macs, int(macs * share), operands, weight, moved),
                  st.integers(0, 10**9), st.floats(0, 1), st.integers(0, 10**8), st.integers(0, 10**7),
                  st.sampled_from(["int8", "float16", "float32"]))


@given(st.lists(costs, min_size=1, max_size=4), st.integers(1, 128))
@settings(max_examples=80)
def test_laws_of_the_model(rows, batch):
    """More layers cost more; DRAM more than on chip; ideal no more than executed; a larger batch no more."""
    def joules(rows, **kwargs):
        return energy.modelled_from_costs(rows, **{"batch": batch, **kwargs}).value
    assume(any(row.macs for row in rows))
    assert joules(rows) <= joules([*rows, rows[0]])
    assert joules(rows, weights=energy.ON_CHIP) <= joules(rows)
    assert joules(rows, ideal=True) <= joules(rows) * (1 + 1e-12)
    assert joules(rows, batch=batch + 1) <= joules(rows)
    assert sum(joules([row]) for row in rows) == pytest.approx(joules(rows))


def test_the_amount_of_a_model_is_that_of_its_counted_layers():
    model, example = models.lenet_300_100(), torch.rand(3, 1, 28, 28)
    assert energy.modelled(model, example) == energy.modelled_from_costs(cost.layer_costs(model, example))


def test_the_constants_say_what_was_verified():
    """Each constant is cited, and those that nobody here could look up say so."""
    assert energy.HOROWITZ_45NM.unverified == [] and "unverified" not in energy.HOROWITZ_45NM.label
    jouppi = energy.JOUPPI_7NM
    assert "float32 multiply" in jouppi.unverified and "on-chip memory" in jouppi.unverified and len(jouppi.unverified) == 12
    assert "partly unverified" in jouppi.label
    assert "partly unverified" in str(energy.modelled_from_costs([ROW], constants=jouppi))
    assert repr(jouppi) == jouppi.label and repr(WATTS) == "2 to 5 W for one busy thread, a guess"
    assert energy.HOROWITZ_45NM.dram.low * 8 == 1300 and jouppi.sram.middle * 8 == 14


@pytest.mark.parametrize("low, high", [(-1, 1), (2, 1), (1, math.inf), (math.nan, 1)])
def test_a_constant_is_an_interval_above_zero(low, high):
    with pytest.raises(ValueError, match="need 0 <= low <= high picojoules"):
        energy.Picojoules(low, high, "checked")
