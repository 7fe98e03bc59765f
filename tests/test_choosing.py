"""Limits and verdicts: yes, no and undecided; the front in many columns; the reader's own tables and the ruler's rows."""
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib import choosing, energy, report
from course_lib.choosing import NO, UNDECIDED, YES, Limit
from course_lib.intervals import Estimate
from helpers import random_split, tiny

TABLE = {"dense": {"bytes": 900, "seconds": Estimate(4.0, 3.9, 4.1), "accuracy": Estimate(0.98, 0.97, 0.99)},
         "small": {"bytes": 100, "seconds": Estimate(1.0, 0.8, 1.2), "accuracy": Estimate(0.96, 0.94, 0.97)},
         "slow": {"bytes": 100, "seconds": Estimate(2.0, 1.9, 2.1), "accuracy": Estimate(0.96, 0.94, 0.97)}}
numbers = st.integers(-3, 3).map(float)
tables = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=7).map(
    lambda rows: {f"m{i}": dict(zip("abc", row)) for i, row in enumerate(rows)})


@pytest.mark.parametrize("low, high, limit, upper, answer", [
    (1, 2, 2, True, YES), (1, 2, 1.5, True, UNDECIDED), (1, 2, 1, True, UNDECIDED), (1, 2, 0.9, True, NO), (2, 2, 2, True, YES),
    (1, 2, 1, False, YES), (1, 2, 1.5, False, UNDECIDED), (1, 2, 2, False, UNDECIDED), (1, 2, 2.1, False, NO), (2, 2, 2, False, YES)])
def test_a_limit_is_kept_broken_or_inside_the_interval(low, high, limit, upper, answer):
    assert choosing.verdict(Estimate((low + high) / 2, low, high), Limit("x", limit, upper)) == answer


def test_an_example_by_hand():
    """`dense` is too large; `small` may be too slow for 1.1 s; `slow` is; at 2 s both small ones pass, and `small` beats `slow`."""
    strict = report.choose(TABLE, at_most={"bytes": 100, "seconds": 1.1})
    assert strict.answers == {"dense": NO, "small": UNDECIDED, "slow": NO}
    assert (strict.qualified, strict.undecided, strict.front) == ([], ["small"], ["small"])
    assert strict.why("dense") == "breaks bytes ≤ 100 B; breaks seconds ≤ 1.1 s"
    assert strict.why("small") == "may break seconds ≤ 1.1 s"
    loose = report.choose(TABLE, at_most={"bytes": 100, "seconds": 2.1})
    assert loose.qualified == ["small", "slow"] and loose.front == ["small"] and loose.why("small") == ""
    floor = report.choose(TABLE, at_least={"accuracy": 0.97})
    assert floor.answers == {"dense": YES, "small": UNDECIDED, "slow": UNDECIDED} and floor.front == ["dense"]
    assert report.choose(TABLE, at_most={"bytes": 100}, at_least={"accuracy": 0.9}).front == ["small", "slow"]      # and not "dense"
    both = report.choose(TABLE, at_most={"bytes": 1000}, at_least={"accuracy": 0.9})
    assert both.front == ["dense", "small", "slow"]         # equal in both limited columns: neither beats the other


@given(tables, numbers)
def test_the_front_is_what_brute_force_finds_among_those_that_pass(table, bound):
    choice = choosing.choose(table, at_most={"a": bound, "b": 9.0}, at_least={"c": -9.0})
    left = [name for name in table if table[name]["a"] <= bound]
    vectors = {name: (table[name]["a"], table[name]["b"], -table[name]["c"]) for name in left}
    beaten = {a for a in left for b in left if vectors[a] != vectors[b] and all(np.less_equal(vectors[b], vectors[a]))}
    assert choice.qualified == left and choice.undecided == [] and choice.front == [n for n in left if n not in beaten]


@given(tables, st.floats(0, 2), numbers, numbers)
def test_wider_intervals_only_make_answers_undecided_and_looser_limits_only_let_in(table, width, bound, more):
    def answers(width, bound):
        wide = {name: {"a": Estimate(row["a"], row["a"] - width, row["a"] + width)} for name, row in table.items()}
        return choosing.choose(wide, at_most={"a": bound}).answers
    sharp, wide = answers(0, bound), answers(width, bound)
    assert all(wide[name] in (sharp[name], UNDECIDED) for name in table)
    order = {NO: 0, UNDECIDED: 1, YES: 2}
    looser = answers(width, bound + abs(more))
    assert all(order[looser[name]] >= order[wide[name]] for name in table)


def test_a_data_frame_a_dictionary_and_their_numbers_are_the_same_table():
    frame = pd.DataFrame({"bytes": [10, 20], "seconds": np.float32([0.5, 0.25]), "note": ["old", "new"]}, index=["a", "b"])
    own = {"a": {"bytes": 10, "seconds": 0.5, "note": "old"}, "b": {"bytes": np.int64(20), "seconds": 0.25, "note": None}}
    limits = {"bytes": 15, "seconds": np.float64(0.5)}
    before = frame.copy()
    assert choosing.choose(frame, at_most=limits).answers == choosing.choose(own, at_most=limits).answers == {"a": YES, "b": NO}
    pd.testing.assert_frame_equal(frame, before)


def test_it_shows_itself_with_marks_reasons_and_units():
    choice = choosing.choose({"<a>": {"bytes": 12_345, "joules": Estimate(2e-6, 1e-6, 3e-6), "lost": 0.004, "accuracy": 0.9,
                                      "macs": 1_000_000, "seconds": 0.0}},
                             at_most={"bytes": 10_000, "joules": 2e-6, "lost": 0.01, "macs": 2e6, "seconds": 1}, at_least={"accuracy": 0.5})
    text, page = repr(choice), choice._repr_html_()
    for piece in ("12.3 kB ✗", "2 µJ [1 µJ, 3 µJ] ?", "0.4 points", "1,000,000", "90.0 %", "bytes ≤ 10.0 kB", "accuracy ≥ 50.0 %", "0 s"):
        assert piece in text, piece
    assert "&lt;a&gt;" in page and "<a>" not in page and "●" not in text.splitlines()[1]


def test_what_is_endless_and_names_that_are_numbers_can_be_shown():
    """A percentile of few requests has no upper end; a DataFrame without names counts its rows."""
    choice = choosing.choose({"a": {"bytes": math.inf, "seconds": Estimate(2, 1, math.inf)}}, at_most={"bytes": 10, "seconds": 5})
    assert choice.verdicts["a"] == {choice.limits[0]: NO, choice.limits[1]: UNDECIDED}
    assert "inf ✗" in repr(choice) and "2 s [1 s, inf] ?" in repr(choice)
    counted = choosing.choose(pd.DataFrame({"bytes": [1, 2]}), at_most={"bytes": 1})
    assert counted.qualified == [0] and "<th>0</th>" in counted._repr_html_()


@pytest.mark.parametrize("results, limits, message", [
    ({}, {"at_most": {"a": 1}}, "at least one model"), (TABLE, {}, "one limit"), (TABLE, {"at_most": {}}, "one limit"),
    (TABLE, {"at_most": {"joules": 1}}, "'dense' has no number in column 'joules'; it has accuracy, bytes, seconds"),
    ({"a": {"b": math.nan}}, {"at_most": {"b": 1}}, "has not passed"),
    ({"a": {"b": Estimate(1, 0, math.nan)}}, {"at_least": {"b": 1}}, "has not passed"),
    ({"a": {"b": "fast"}}, {"at_most": {"b": 1}}, "no number in column 'b'"), ({"a": {"b": True}}, {"at_most": {"b": 1}}, "no number"),
    (TABLE, {"at_most": {"bytes": math.inf}}, "finite number"), (TABLE, {"at_most": {"bytes": "100 kB"}}, "finite number"),
    (TABLE, {"at_least": {"bytes": True}}, "finite number"), ({"a": 3}, {"at_most": {"a": 1}}, "dictionary of dictionaries"),
    ([1, 2], {"at_most": {"a": 1}}, "dictionary of dictionaries"),
    (pd.DataFrame({"a": [1, 2]}, index=["x", "x"]), {"at_most": {"a": 1}}, "each model needs a name of its own"),
    (pd.DataFrame([[1, 2]], columns=["a", "a"]), {"at_most": {"a": 1}}, "each column needs a name of its own"),
    ({"a": {"b": Estimate(5, 9, 1)}}, {"at_most": {"b": 4}}, "must hold its value.*'a' in 'b'"),
    ({"a": {"b": Estimate(5, 1, 2)}}, {"at_most": {"b": 3}}, "must hold its value"),
    ({"a": {"b": Estimate(0, 1, 2)}}, {"at_least": {"b": 0.5}}, "must hold its value"),
    ({"a": {"lost": 0.5}}, {"at_most": {"lost": 1}}, "'lost' is a fraction: 0.01 is one point"),
    ({"a": {"accuracy": 0.97}}, {"at_least": {"accuracy": 97}}, "'accuracy' is a fraction"),
    (TABLE, {"at_most": ["bytes"]}, "limits are a dictionary")])
def test_what_cannot_be_judged_is_refused_with_the_reason(results, limits, message):
    with pytest.raises(ValueError, match=message):
        choosing.choose(results, **limits)


def test_an_unknown_model_or_a_way_to_read_a_plain_table_is_refused():
    with pytest.raises(ValueError, match="no model 'huge'"):
        choosing.choose(TABLE, at_most={"bytes": 1}).why("huge")
    with pytest.raises(ValueError, match="batch: only rows"):
        report.choose(TABLE, at_most={"bytes": 1}, batch=64)


@pytest.fixture(scope="module")
def rows():
    return report.measure({"large": tiny("cnn"), "small": tiny("mlp")}, random_split(40), batches=(1, 8), blocks=2)


def test_the_rows_of_the_ruler_become_columns(rows):
    first, second = rows
    table = report.columns_of(rows, batch=8, tier=energy.DECLARED)
    assert list(table) == ["large", "small"]
    own, timed = table["small"], second.latency[report.ONNX_RUNTIME, 8]
    assert own["bytes"].value == second.file_bytes and own["macs"].value == second.macs and own["parameters"].value == second.parameters
    assert own["accuracy"] == second.accuracy.interval and own["cpu_ratio"] == timed.cpu_ratio
    d = second.difference
    assert (own["lost"].value, own["lost"].low, own["lost"].high) == (-d.value, -d.high, -d.low)
    assert own["seconds"].value == timed.seconds and own["seconds"].low <= timed.seconds <= own["seconds"].high
    assert own["seconds"].high == pytest.approx(timed.seconds * timed.ratio.high / timed.ratio.value)
    amount = second.joules.declared[report.ONNX_RUNTIME, 8][0]
    assert (own["joules"].low, own["joules"].high) == (amount.low, amount.high) and own["joules"].low < own["joules"].value < own["joules"].high
    control = first.latency[report.ONNX_RUNTIME, 8].control
    seconds = table["large"]["seconds"]
    assert seconds.low <= seconds.value * control.low / control.value * (1 + 1e-12) and table["large"]["lost"].value == 0


def test_choose_reads_the_rows_in_the_batch_and_tier_that_is_asked_for(rows):
    for tier, weights in ((energy.MODELLED, energy.ON_CHIP), (energy.MODELLED, energy.DRAM)):
        choice = report.choose(rows, at_most={"joules": 1.0}, tier=tier, weights=weights, batch=8)
        amount = rows[1].joules.modelled[8, weights][0]
        assert (choice.table["small"]["joules"].low, choice.table["small"]["joules"].high) == (amount.low, amount.high)
    assert report.choose(rows, at_most={"bytes": rows[1].file_bytes}).answers["small"] == YES


def test_a_runtime_that_was_not_measured_is_a_gap_and_a_wrong_tier_an_error(rows):
    with pytest.raises(ValueError, match="no number in column 'seconds'"):
        report.choose(rows, at_most={"seconds": 1}, runtime=report.EAGER)
    with pytest.raises(ValueError, match="known tier"):
        report.columns_of(rows, tier="guessed")
    with pytest.raises(ValueError, match="at least one row"):
        report.choose([], at_most={"bytes": 1})
    with pytest.raises(ValueError, match="each row needs a name of its own"):
        report.choose([*rows, rows[1]], at_most={"bytes": 1})
