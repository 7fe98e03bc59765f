"""Pictures in one style: they take data, draw on given axes, and never show or train anything.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; marks and lines differ too. The
background is white, so that a figure stays readable on a dark page.
"""
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import ticker

from . import joules, report

__all__ = ["COLOURS", "estimates", "forest", "images", "pareto", "pareto_joules", "use_style", "weight_histogram"]

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]


def use_style() -> None:
    """Set the style of the book for all figures that follow."""
    plt.rcParams.update({
        "figure.figsize": (6.4, 3.6), "figure.dpi": 90, "figure.facecolor": "white", "figure.constrained_layout.use": True,
        "axes.prop_cycle": plt.cycler(color=COLOURS), "axes.grid": True, "axes.spines.top": False,
        "axes.spines.right": False, "grid.alpha": 0.3, "font.size": 11, "legend.frameon": False, "savefig.facecolor": "white"})


def images(split, *, n: int = 10):
    """The first `n` images with their labels, in one row of axes."""
    _, axes = plt.subplots(1, min(n, len(split)), figsize=(6.4, 1.0), squeeze=False)
    for ax, image, label in zip(axes[0], split.images, split.labels):
        ax.imshow(image.mean(0).numpy(), cmap="gray_r")
        ax.set_title(int(label), fontsize=10)
        ax.axis("off")
    return axes[0]


def weight_histogram(weight: torch.Tensor, *, threshold: float | None = None, ax=None, label: str = ""):
    """How many weights have which value; the band |w| < threshold, which pruning removes, is shaded."""
    ax = ax or plt.gca()
    values = weight.detach().float().flatten().numpy()
    ax.hist(values, bins=100, color=COLOURS[0])
    if threshold is not None:
        ax.axvspan(-threshold, threshold, color=COLOURS[1], alpha=0.3, label=f"|w| < {threshold:.3f}")
        ax.legend(loc="upper right", fontsize=9)
    ax.set(xlabel="weight", ylabel="number of weights", title=label)
    return ax


def estimates(x, series: dict[str, list], *, xlabel: str, ylabel: str, joined: bool = True, ax=None):
    """Curves (or, if not `joined`, points) of `intervals.Estimate`s with their intervals as bars."""
    ax = ax or plt.gca()
    for i, (name, points) in enumerate(series.items()):
        value, low, high = np.array([(p.value, p.low, p.high) for p in points]).T
        shift = (i - (len(series) - 1) / 2) * 0.004 * (max(x) - min(x))       # so that bars do not hide each other
        ax.errorbar(np.array(x) + shift, value, yerr=[value - low, high - value], marker="osD^v"[i % 5], markersize=4,
                    linestyle=["-", "--", ":", "-."][i % 4] if joined else "none", capsize=3, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="best", fontsize=9)
    return ax


def forest(names: list[str], series: dict[str, list], *, xlabel: str, line: float | None = None, ax=None):
    """`intervals.Estimate`s beside their names, the first name on top; `line` marks a value such as 1."""
    ax = ax or plt.gca()
    for i, (label, points) in enumerate(series.items()):
        value, low, high = np.array([(p.value, p.low, p.high) for p in points]).T
        y = np.arange(len(names)) + (i - (len(series) - 1) / 2) * 0.22       # so that bars do not hide each other
        ax.errorbar(value, y, xerr=[value - low, high - value], marker="osD^v"[i % 5], markersize=4, linestyle="none",
                    capsize=2, label=label)
    if line is not None:
        ax.axvline(line, color=COLOURS[-1], linewidth=1, linestyle=":")
    ax.set(xlabel=xlabel, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    if len(series) > 1:
        ax.legend(loc="best", fontsize=9)
    return ax


def pareto(rows: list, cost_of, *, xlabel: str, ax=None):
    """Accuracy against a cost on a logarithmic axis; the models that none beats are joined by a line."""
    ax = ax or plt.gca()
    front = set(report.pareto_front(rows, cost_of))
    for row in rows:
        e, best = row.accuracy.interval, row.name in front
        ax.errorbar(cost_of(row), e.value, yerr=[[e.value - e.low], [e.high - e.value]], capsize=3, marker="o",
                    color=COLOURS[0], markerfacecolor=COLOURS[0] if best else "white")
        ax.annotate(row.name, (cost_of(row), e.value), xytext=(6, 4), textcoords="offset points", fontsize=9)
    line = sorted((cost_of(r), r.accuracy.value) for r in rows if r.name in front)
    ax.plot(*zip(*line), color=COLOURS[1], linestyle="--", zorder=0, drawstyle="steps-post",
            label="no other model is at least as good in both")
    ax.set(xscale="log", xlabel=xlabel, ylabel="test accuracy")
    ax.margins(x=0.15)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)        # above the axes, where no model can be
    return ax


def pareto_joules(rows: list, *, tier: str, batch: int = 64, ax=None, **which):
    """Accuracy against energy relative to the first row, in one tier; the axis names tier, method and boundary.

    Args: tier: "measured", "declared" or "modelled"; batch, which: see `joules.relative`.
    """
    ratios = {row.name: joules.relative(row.joules, tier=tier, batch=batch, **which) for row in rows}
    ratio = ratios[rows[0].name]
    origin = f"{tier}: {ratio.method}" + (f"; {ratio.constants}" if tier == "modelled" else "")
    ax = pareto(rows, lambda row: ratios[row.name].estimate.value, ax=ax,
                xlabel=f"energy per inference, batch {batch}, relative to “{rows[0].name}”\n{origin}\n{ratio.boundary}")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")                                       # 0.2 of the first, and not 10 to some power
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    return ax
