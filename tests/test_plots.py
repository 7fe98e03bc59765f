"""Plots draw the data they are given on the axes they are given, and show nothing by themselves."""
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from course_lib import data, intervals, plots, training
from helpers import random_split


@pytest.fixture(autouse=True)
def ax(monkeypatch):
    """Axes of their own for every test, and no window ever."""
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a plot showed itself"))
    _, ax = plt.subplots()
    yield ax
    plt.close("all")


def points(ax):
    """Centre and error bar of everything drawn by `errorbar`: (x, y, low, high)."""
    result = []
    for container in ax.containers:
        line, _, (bars,) = container
        for x, y, segment in zip(*line.get_data(), bars.get_segments()):
            result.append((x, y, segment[0][1], segment[1][1]))
    return result


def row(name, correct, cost, n=1000):
    return SimpleNamespace(name=name, accuracy=training.Accuracy(correct, n), cost=cost)


def test_the_histogram_counts_every_weight_and_shades_the_band(ax):
    weight = torch.linspace(-1, 1, 300).view(10, 30).half().requires_grad_()
    assert plots.weight_histogram(weight, threshold=0.25, ax=ax, label="layer 1") is ax
    heights = [patch.get_height() for patch in ax.containers[0]]
    assert sum(heights) == 300 and len(heights) == 100
    band = ax.patches[-1]
    assert (band.get_x(), band.get_x() + band.get_width()) == (-0.25, 0.25)
    assert ax.get_legend().get_texts()[0].get_text() == "|w| < 0.250"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("weight", "number of weights", "layer 1")


def test_the_histogram_has_no_band_without_a_threshold(ax):
    plots.weight_histogram(torch.rand(50), ax=ax)
    assert len(ax.patches) == 100 and ax.get_legend() is None


def test_estimates_are_drawn_with_their_intervals(ax):
    e = intervals.Estimate
    series = {"one": [e(0.9, 0.88, 0.91), e(0.8, 0.75, 0.83)], "two": [e(0.5, 0.4, 0.6), e(0.4, 0.3, 0.5)]}
    assert plots.estimates([0.0, 0.9], series, ax=ax, xlabel="sparsity", ylabel="accuracy") is ax
    drawn, expected = points(ax), [p for curve in series.values() for p in curve]
    np.testing.assert_allclose([p[1:] for p in drawn], [(p.value, p.low, p.high) for p in expected])
    assert [p[0] for p in drawn] == pytest.approx([0.0, 0.9, 0.0, 0.9], abs=0.01)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sparsity", "accuracy")


def test_a_forest_is_drawn_from_the_top_with_its_intervals(ax):
    e = intervals.Estimate
    series = {"one": [e(0.4, 0.3, 0.6), e(1.2, 1.1, 1.5)], "two": [e(0.5, 0.4, 0.7), e(2.0, 1.0, 3.0)]}
    assert plots.forest(["first", "second"], series, ax=ax, xlabel="ratio", line=1) is ax
    bars = [segment for container in ax.containers for segment in container[2][0].get_segments()]
    np.testing.assert_allclose([bar[:, 0] for bar in bars], [(p.low, p.high) for row in series.values() for p in row])
    values = [x for container in ax.containers for x in container[0].get_xdata()]
    assert values == [p.value for row in series.values() for p in row]
    heights = [y for container in ax.containers for y in container[0].get_ydata()]
    assert heights == pytest.approx([-0.11, 0.89, 0.11, 1.11]) and ax.yaxis_inverted()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.get_xlabel() == "ratio" and any(list(line.get_xdata()) == [1, 1] for line in ax.lines)


def test_the_pareto_plot_joins_the_models_that_none_beats(ax):
    rows = [row("large", 950, 1000), row("beaten", 900, 1000), row("small", 900, 10), row("middle", 930, 100)]
    assert plots.pareto(rows, lambda r: r.cost, xlabel="bytes", ax=ax) is ax
    for (x, y, low, high), r in zip(points(ax), rows):
        assert (x, y, low, high) == pytest.approx((r.cost, r.accuracy.value, r.accuracy.interval.low, r.accuracy.interval.high))
    assert [text.get_text() for text in ax.texts] == ["large", "beaten", "small", "middle"]
    filled = [container[0].get_markerfacecolor() != "white" for container in ax.containers]
    assert filled == [True, False, True, True]
    front = ax.lines[-1]
    assert np.column_stack(front.get_data()).tolist() == [[10, 0.9], [100, 0.93], [1000, 0.95]]
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "bytes", "test accuracy")


@pytest.mark.parametrize("correct", [0, 220])
def test_a_perfect_or_hopeless_model_can_be_drawn(ax, correct):
    plots.pareto([row("a", correct, 10, n=220)], lambda r: r.cost, xlabel="bytes", ax=ax)
    assert points(ax)[0][1] == correct / 220


@pytest.mark.parametrize("n, channels", [(1, 1), (3, 1), (4, 3)])
def test_images_are_drawn_in_a_row_with_their_labels(n, channels):
    split = random_split(6, channels=channels)
    axes = plots.images(split, n=n)
    assert len(axes) == n
    for i, ax in enumerate(axes):
        np.testing.assert_allclose(ax.get_images()[0].get_array(), split.images[i].mean(0), rtol=1e-6)
        assert ax.get_title() == str(i) and not ax.axison


def test_fewer_images_than_asked_for_leave_no_empty_frame():
    split = data.Split(torch.rand(2, 1, 4, 4), torch.tensor([7, 8]))
    assert [ax.get_title() for ax in plots.images(split, n=5)] == ["7", "8"]


def test_without_axes_the_current_ones_are_used(ax):
    assert plots.weight_histogram(torch.rand(5)) is ax is plt.gca()
    e = intervals.Estimate(1, 0, 2)
    assert plots.estimates([1, 2], {"a": [e, e]}, xlabel="x", ylabel="y") is ax
    assert plots.forest(["a", "b"], {"a": [e, e]}, xlabel="x") is ax
    assert plots.pareto([row("a", 5, 10)], lambda r: r.cost, xlabel="x") is ax


def test_the_style_is_white_and_its_colours_differ():
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.facecolor"] == plt.rcParams["savefig.facecolor"] == "white"
        assert [c["color"] for c in plt.rcParams["axes.prop_cycle"]] == plots.COLOURS
    assert len(set(plots.COLOURS)) == 7
