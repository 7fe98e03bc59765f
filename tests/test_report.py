"""One row per model, measured alike; a table with units; the models that no other beats."""
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import cost, files, intervals, report, timing, training
from helpers import random_split, same, state, tiny

BOTH = (report.ONNX_RUNTIME, report.EAGER)


@pytest.fixture(scope="module")
def measured():
    """Two models on the ruler: models, images, rows, and the models' states and modes before."""
    models, split = {"small": tiny("mlp"), "large": tiny("student")}, random_split(40)
    models["large"].train()
    before = {name: (state(m), [module.training for module in m.modules()]) for name, m in models.items()}
    rows = report.measure(models, split, batches=(1, 8), runtimes=BOTH, blocks=2)
    return models, split, rows, before


def test_each_model_has_a_row_with_what_the_parts_of_the_ruler_say(measured):
    models, split, rows, _ = measured
    assert [row.name for row in rows] == ["small", "large"]
    for row in rows:
        model = models[row.name]
        assert row.accuracy == training.evaluate(model, split)
        assert row.file_bytes == files.saved_bytes(model)
        assert (row.parameters, row.nonzeros) == (cost.parameters(model), cost.nonzeros(model))
        assert row.macs == cost.macs(model, split.images[:1])
        assert set(row.latency) == {(runtime, batch) for runtime in BOTH for batch in (1, 8)}
        assert all(latency.seconds > 0 for latency in row.latency.values())


def test_differences_and_ratios_are_to_the_first_model(measured):
    models, split, (first, second), _ = measured
    assert first.difference.value == 0 and first.difference.low < 0 < first.difference.high
    predictions = [training.predict(model, split.images) for model in models.values()]
    assert second.difference == training.compare_predictions(*predictions, split.labels)
    for key, latency in first.latency.items():
        assert (latency.ratio.value, latency.ratio.low, latency.ratio.high) == (1, 1, 1) and not latency.differs
        assert second.latency[key].control == latency.control


def test_measuring_leaves_the_models_as_they_were(measured):
    models, _, _, before = measured
    for name, model in models.items():
        assert same(state(model), before[name][0])
        assert [module.training for module in model.modules()] == before[name][1]
        assert not any(module._forward_hooks for module in model.modules())


def test_what_is_timed_is_each_model_in_evaluation_mode_on_the_batch(monkeypatch):
    models, split, seen = {"a": tiny("student"), "b": tiny("mlp")}, random_split(10), []

    def compare(candidates, *, seed, **_):
        seen.append({name: function() for name, function in candidates.items()})
        clock = {name: torch.ones(3).numpy() for name in (*candidates, timing.AGAIN)}
        return timing.Timings(clock, clock, dict.fromkeys(clock, 1), seed)
    monkeypatch.setattr(timing, "compare", compare)
    expected = {name: model(split.images) for name, model in models.items()}
    models["a"].train()
    report.measure(models, split, batches=(1, 7), runtimes=(report.EAGER,))
    assert [len(results["a"]) for results in seen] == [1, 7]
    for results in seen:
        for name, logits in results.items():
            torch.testing.assert_close(logits, expected[name][:len(logits)])
            assert not logits.requires_grad


def row(name="dense", correct=900, n=1000, **changes):
    """A row made up, with one latency."""
    e = intervals.Estimate
    latency = report.Latency(12.3e-6, e(1.0, 1.0, 1.0), e(1.0, 1.0, 1.0), e(1.0, 0.97, 1.04), False)
    values = {"difference": e(0.0, -0.01, 0.01), "file_bytes": 407_440, "parameters": 101_770, "nonzeros": 101_770,
              "macs": 101_632, "latency": {(report.ONNX_RUNTIME, 1): latency}, **changes}
    return report.Row(name, training.Accuracy(correct, n), **values)


def test_the_table_has_units_intervals_and_conditions():
    e = intervals.Estimate
    faster = report.Latency(4.56e-3, e(0.5, 0.4, 0.6), e(0.48, 0.4, 0.6), e(1.0, 0.97, 1.04), True)
    table = report.compare([
        row(), row("pruned", correct=880, difference=e(-0.02, -0.031, -0.009), nonzeros=10_177),
        row("tiny", latency={(report.ONNX_RUNTIME, 1): faster})])
    assert list(table.frame.columns) == ["dense", "pruned", "tiny"]
    accuracy, difference, *_, time = table.frame.index
    assert "%" in accuracy and "points" in difference and "ONNX Runtime" in time and "batch 1" in time
    assert list(table.frame["dense"]) == ["90.0 [88.0, 91.7]", "–", "407.4 kB", "101,770", "101,632", "1 · 12.3 µs"]
    assert table.frame.loc[difference, "pruned"] == "-2.0 [-3.1, -0.9]"
    # wall ratio with its interval, then the time of a call and the CPU ratio; ≈ where it is not to be told from 1
    cell = table.frame.loc[time, "pruned"]
    assert cell.startswith("1.00 [1.00, 1.00] ≈") and "12.3 µs" in cell and "CPU 1.00" in cell
    cell = table.frame.loc[time, "tiny"]
    assert cell.startswith("0.50 [0.40, 0.60]") and "CPU 0.48" in cell and "4.56 ms" in cell and "≈" not in cell
    for condition in ("1,000 test images", "95 %", "safetensors", "“dense” with one thread",
                      "ONNX Runtime, batch 1: 1.00 [0.97, 1.04]"):
        assert condition in table.caption
    assert "<table" in table._repr_html_() and "Accuracy" in table.caption
    for line in table.caption.splitlines():                     # in HTML each is a paragraph
        topic, text = line.split(": ", 1)
        assert f"<b>{topic}:</b> {text}</p>" in table._repr_html_()
    assert table.caption in repr(table) and "90.0 [88.0, 91.7]" in repr(table)


def test_a_name_may_hold_signs_that_mean_something_in_html():
    shown = report.compare([row("|w|<t & more")])._repr_html_()
    assert "<th>|w|&lt;t &amp; more</th>" in shown and "“|w|&lt;t &amp; more”" in shown and "<t " not in shown


def test_rows_without_latencies_make_a_table_that_speaks_of_none():
    table = report.compare([row(latency={}), row("pruned", latency={})])
    assert len(table.frame) == 5 and not [name for name in table.frame.index if "time" in name]
    assert "1,000 test images" in table.caption and "Time" not in table.caption


def test_a_measured_comparison_shows_every_runtime_and_batch(measured):
    table = report.compare(measured[2])
    keys = [(runtime, batch) for runtime in BOTH for batch in (1, 8)]
    assert all(runtime in name and f"batch {batch}" in name for name, (runtime, batch) in zip(table.frame.index[5:9], keys))
    assert all(f"{runtime}, batch {batch}: " in table.caption for runtime in BOTH for batch in (1, 8))


# --- the front ---

def points(pairs):
    return [SimpleNamespace(name=str(i), accuracy=SimpleNamespace(value=value), cost=c) for i, (value, c) in enumerate(pairs)]


def test_the_front_by_hand():
    """c is beaten by b (as cheap, more accurate), d by a (dearer, no better); e is cheapest; f equals a."""
    rows = points([(0.9, 10), (0.8, 5), (0.7, 5), (0.9, 11), (0.1, 1), (0.9, 10)])
    assert report.pareto_front(rows, lambda r: r.cost) == ["0", "1", "4", "5"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=8))
@settings(max_examples=150)
def test_no_member_of_the_front_is_beaten_and_every_other_is_beaten_by_a_member(pairs):
    def beats(b, a):
        return b != a and b[0] >= a[0] and b[1] <= a[1]
    names = report.pareto_front(points(pairs), lambda r: r.cost)
    front = [pairs[int(name)] for name in names]
    assert not any(beats(other, member) for member in front for other in pairs)
    assert all(any(beats(member, other) for member in front) for i, other in enumerate(pairs) if str(i) not in names)
    assert names == sorted(names, key=int) and bool(names) == bool(pairs)


# --- words for numbers ---

@pytest.mark.parametrize("n, text", [(0, "0 B"), (999, "999 B"), (1234, "1,234 B"), (9999, "9,999 B"), (10_000, "10.0 kB"),
                                     (12_345, "12.3 kB"), (999_949, "999.9 kB"), (999_999, "1.00 MB"), (1_070_000, "1.07 MB"),
                                     (123_456_789, "123.46 MB")])
def test_bytes_for_people(n, text):
    assert report.format_bytes(n) == text


@pytest.mark.parametrize("seconds, text", [(1.23, "1.23 s"), (75, "75 s"), (0.0123, "12.3 ms"),
                                           (0.00123, "1.23 ms"), (1.23e-5, "12.3 µs"), (1e-6, "1 µs"), (4.5e-8, "45 ns"),
                                           (0.0009996, "1 ms"), (0.9999, "1 s"), (0.000123456, "123 µs"), (9.999e-7, "1 µs")])
def test_seconds_for_people(seconds, text):
    assert report.format_seconds(seconds) == text
