"""The energy column: tiers in lines of their own, ratios that follow from the parts, amounts in the caption."""
import dataclasses
import re
from time import perf_counter

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

from course_lib import cost, energy, joules, plots, report
from fake_counters import SteadyCounter
from helpers import random_split, tiny


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short windows, and no counter but the test's own, whatever machine this is."""
    monkeypatch.setattr(joules, "WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(joules, "BLOCKS", 2)
    monkeypatch.setattr(energy, "best_available", lambda: energy.Available(energy.DECLARED, None, "No counter here."))


@pytest.fixture(scope="module")
def models():
    return {"small": tiny("mlp"), "large": tiny("cnn")}


@pytest.fixture(scope="module")
def rows(models):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy, "best_available", lambda: energy.Available(energy.DECLARED, None, "No counter here."))
        return report.measure(models, random_split(8), batches=(1, 8), runtimes=(report.EAGER,), blocks=2)


def test_every_tier_of_the_column_follows_from_its_parts(models, rows):
    first, second = rows
    example = torch.rand(1, 1, 16, 16)
    for (batch, weights), (amount, ratio) in second.joules.modelled.items():
        expected = [energy.modelled(models[name], example, batch=batch, weights=weights) for name in models]
        assert amount == expected[1] and ratio == expected[1] / expected[0]
    assert set(second.joules.modelled) == {(b, w) for b in (1, 8) for w in (energy.ON_CHIP, energy.DRAM)}
    for key, latency in second.latency.items():
        amount, ratio = second.joules.declared[key]
        assert ratio.estimate == latency.cpu_ratio and "ratio of CPU times" in ratio.method
        assert amount.value is None and amount.low < amount.high and amount.constants.startswith("0.46 to 9 W")
        assert first.joules.declared[key][1].estimate.value == 1
    assert second.joules.measured == {} and second.joules.sentence == "No counter here."


def test_the_table_has_a_line_for_each_tier_and_the_amounts_below(rows):
    table = report.compare(rows)
    lines = [name for name in table.frame.index if name.startswith("energy")]
    assert lines == ["energy declared (= CPU time), batch 1 (eager PyTorch)", "energy declared (= CPU time), batch 8 (eager PyTorch)",
                     "energy modelled (as executed), batch 1", "energy modelled (as executed), batch 8"]
    assert list(table.frame.loc[lines, "small"]) == ["1"] * 4
    assert all(re.fullmatch(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]( ≈)?", cell) for cell in table.frame.loc[lines[:2], "large"])
    assert all(re.fullmatch(r"\d+\.\d\d on chip · \d+\.\d\d DRAM", cell) for cell in table.frame.loc[lines[2:], "large"])
    accuracy, time, *tiers = table.caption.splitlines()         # a paragraph each
    assert tiers[0] == "Energy: ratio to “small” per inference. No counter here."
    assert [text.split(":")[0] for text in tiers] == ["Energy", "Declared", "Modelled"]
    for words in ("the ratio of one-thread CPU times, at equal power; another run may shift it", "“small” itself takes anything from",
                  "(batch 1, eager PyTorch)", "at 0.46 to 9 W for one busy thread, Cloud Carbon Footprint"):
        assert words in tiers[1], words
    for words in ("operations and bytes as executed, constants of Horowitz 2014, 45 nm", "(batch 8, weights in DRAM)",
                  "(batch 1, weights on chip)"):
        assert words in tiers[2], words
    assert "Measured" not in table.caption
    html = table._repr_html_()                                  # narrow labels leave a phone room for a model or two
    assert "energy declared<br>(= CPU time)<br>batch 1<br>(eager PyTorch)<" in html
    assert "energy modelled<br>(as executed)<br>batch 8<" in html


def test_a_ratio_that_the_control_cannot_resolve_is_marked(rows):
    second = rows[1].joules
    marked = dataclasses.replace(second, unresolved=frozenset([(report.EAGER, 8)]))
    line = joules.cells(marked, first=False)
    assert line["energy declared (= CPU time), batch 8 (eager PyTorch)"].endswith(" ≈")
    assert not line["energy declared (= CPU time), batch 1 (eager PyTorch)"].endswith(" ≈")
    assert rows[0].joules.unresolved == {(report.EAGER, 1), (report.EAGER, 8)}         # the first is never told from itself


def test_a_counter_adds_joules_with_their_interval(models, monkeypatch):
    seen = []
    original = energy.compare
    monkeypatch.setattr(energy, "compare", lambda each, **kwargs: seen.append((list(each), kwargs["inferences"])) or original(each, **kwargs))
    counter = SteadyCounter(perf_counter, watts=10.0)
    rows = report.measure(models, random_split(8), batches=(8,), runtimes=(report.EAGER,), blocks=2, counter=counter)
    table, key = report.compare(rows), (report.EAGER, 8)
    amount, ratio = rows[1].joules.measured[key]
    assert amount.tier == ratio.tier == "measured" and ratio.boundary == "a fake package, gross"
    assert seen == [(["small", "large"], 8)] and 0 < amount.low <= amount.value <= amount.high < 1
    line = table.frame.loc["energy measured, batch 8 (eager PyTorch)"]
    assert line["small"].startswith("1 · ") and line["small"].count("J") == 3 and " · " in line["large"]
    energy_text, measured = table.caption.splitlines()[2:4]
    assert energy_text.endswith("It is measured by a fake counter: a fake package.")
    assert measured.startswith("Measured: a fake counter, 2 short windows of 0.01 s; a fake package, gross;")


def test_a_counter_that_fails_costs_its_own_lines_only_and_the_caption_says_why(models):
    class Reset(SteadyCounter):
        def joules(self):
            raise energy.CounterError("package-0 went backwards: it was reset")
    rows = report.measure(models, random_split(8), batches=(8,), runtimes=(report.EAGER,), blocks=2,
                          counter=Reset(perf_counter, watts=10.0))
    table = report.compare(rows)
    assert rows[1].joules.measured == {} and not [name for name in table.frame.index if "measured" in name]
    assert "Energy could not be measured in this run: package-0 went backwards: it was reset." in table.caption
    assert "energy modelled (as executed), batch 8" in table.frame.index


@pytest.mark.parametrize("low, high, text", [(27e-6, 538e-6, "27 to 538 µJ"), (9e-7, 5e-5, "900 nJ to 50 µJ"),
                                             (1.3e-5, 1.3e-5, "13 µJ"), (1e-3, 2e-3, "1 to 2 mJ"), (0.5, 2.0, "500 mJ to 2 J")])
def test_a_range_names_its_unit_once_where_it_can(low, high, text):
    amount = energy.Energy("modelled", "as executed", "all", 0, "some table", (low + high) / 2, low, high)
    assert joules._range(amount) == text


def test_a_mask_saves_exactly_nothing_in_the_column_which_is_as_executed():
    dense, masked = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    masked.weight.data[:3] = 0
    layers = {name: cost.layer_costs(model, torch.rand(1, 6)) for name, model in (("dense", dense), ("masked", masked))}
    assert layers["masked"][0].ideal_macs == 6
    column = joules.joules_of(layers, {}, {}, (1, 64))
    assert [ratio.estimate.value for _, ratio in column["masked"].modelled.values()] == [1] * 4


def test_the_axis_has_plain_numbers_and_no_powers(rows):
    _, ax = plt.subplots()
    plots.pareto_joules(rows, tier="modelled", batch=8, ax=ax)
    ax.set_xlim(0.04, 3)
    ax.figure.canvas.draw()
    shown = [tick.get_text() for tick, at in zip(ax.get_xticklabels(), ax.get_xticks()) if 0.04 <= at <= 3]
    assert shown == ["0.05", "0.1", "0.2", "0.5", "1", "2"] and len(ax.get_xticks(minor=True)) == 0
    plt.close("all")


def test_a_data_type_without_a_price_leaves_the_model_out_and_is_never_zero():
    layers = {"dense": cost.layer_costs(torch.nn.Linear(3, 2), torch.rand(1, 3)),
              "half": cost.layer_costs(torch.nn.Linear(3, 2).bfloat16(), torch.rand(1, 3, dtype=torch.bfloat16))}
    column = joules.joules_of(layers, {}, {}, (1,))
    assert column["half"].modelled == {} and len(column["dense"].modelled) == 2
    assert list(joules.cells(column["half"], first=False)) == []
    backwards = joules.joules_of(dict(reversed(layers.items())), {}, {}, (1,))
    assert backwards["dense"].modelled == backwards["half"].modelled == {}
    assert len(joules.caption(backwards["half"], "half")) == 1           # no paragraph on a tier that is not there


def test_the_pareto_plot_names_its_tier_and_its_method(rows):
    _, ax = plt.subplots()
    assert plots.pareto_joules(rows, tier="modelled", batch=8, ax=ax) is ax
    label = ax.get_xlabel()
    assert "energy per inference, batch 8, relative to “small”" in label and "modelled: as executed" in label
    assert "weights in DRAM" in label and "Horowitz 2014" in label
    drawn = [container[0].get_xdata()[0] for container in ax.containers]
    assert drawn == [1, rows[1].joules.modelled[8, energy.DRAM][1].estimate.value]
    _, ax = plt.subplots()
    plots.pareto_joules(rows, tier="declared", batch=1, runtime=report.EAGER, ax=ax)
    assert "declared: ratio of CPU times, at equal power" in ax.get_xlabel()
    plt.close("all")


@pytest.mark.parametrize("which, message", [
    ({"tier": "measured", "batch": 8}, "no 'measured' energy for .'ONNX Runtime', 8.; it has nothing"),
    ({"tier": "declared", "batch": 8}, "it has .'eager PyTorch', 1., .'eager PyTorch', 8."),
    ({"tier": "modelled", "batch": 64}, "no 'modelled' energy for .64, 'weights in DRAM'."), ({"tier": "guessed", "batch": 8}, "no 'guessed'"),
    ({"tier": "modelled", "batch": 8, "weights": "on the moon"}, "on the moon")])
def test_what_the_column_does_not_have_is_named(rows, which, message):
    with pytest.raises(ValueError, match=message):
        plots.pareto_joules(rows, **which)


def test_rows_without_the_column_make_a_table_without_it(rows):
    bare = [dataclasses.replace(row, joules=None) for row in rows]
    assert not [name for name in report.compare(bare).frame.index if "energy" in name] and "Energy" not in report.compare(bare).caption
