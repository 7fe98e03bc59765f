"""How well does a number stand in for another: MACs, parameters or latency for measured energy?

Rank correlation, the error on a family of models that a fit never saw, ratios with an interval, and the
ratio at equal accuracy. Nothing is measured here: the functions take columns of a table.
Book: "What compression did to measured energy", "What predicts a joule, and what does not".
"""
import math
from collections.abc import Callable

import numpy as np

from .intervals import Estimate

__all__ = ["bootstrap", "cheapest_as_accurate", "geometric_mean", "held_out_errors", "pareto_mask",
           "ratio_of_means", "spearman"]


def spearman(first, second) -> np.ndarray:
    """Spearman's rank correlation along the last axis: 1 if both put the cases in the same order.

    Equal values share their mean rank; the result is NaN where all values of a column are equal.
    Source: Spearman 1904; equals scipy.stats.spearmanr.
    """
    from scipy.stats import rankdata
    a, b = (rankdata(x, axis=-1) for x in _columns(first, second))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def geometric_mean(ratios) -> np.ndarray:
    """Geometric mean along the last axis: the mean for ratios, where 2 and 1/2 cancel.

    Raises: ValueError unless all are positive.
    """
    ratios, = _columns(ratios)
    if not (ratios > 0).all():
        raise ValueError(f"ratios must be positive; the smallest is {ratios.min():g}")
    return np.exp(np.log(ratios).mean(axis=-1))


def bootstrap(statistic: Callable, *columns, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """A statistic of one or more columns with its percentile bootstrap interval; whole rows are drawn.

    Args:   statistic: from arrays of shape (…, n) to shape (…), such as `spearman`; columns: n values each.
    Raises: ValueError for fewer than three rows, or if the statistic is undefined in some draw.
    Source: Efron & Tibshirani 1993, ch. 13. Rows are taken for independent; related ones make it too narrow.
    """
    columns = _columns(*columns)
    if columns[0].ndim != 1 or len(columns[0]) < 3:
        raise ValueError(f"need columns of at least three rows; got shape {columns[0].shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a fraction between 0 and 1, e.g. 0.95; got {confidence!r}")
    n = len(columns[0])
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    drawn = statistic(*(column[picks] for column in columns))
    if not np.isfinite(drawn).all():
        raise ValueError(f"the statistic is undefined in some draws of {n} rows: too few different values")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(*columns)), float(low), float(high))


def ratio_of_means(first, second, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean of `first` ÷ mean of `second`, two separate samples, with its percentile bootstrap interval.

    Raises: ValueError for fewer than three values in a sample, or values that are not positive.
    """
    (first,), (second,) = _columns(first), _columns(second)
    if min(len(first), len(second)) < 3 or min(first.min(), second.min()) <= 0:
        raise ValueError(f"need at least three positive values in each sample; got {len(first)} and {len(second)}, "
                         f"the smallest {min(first.min(), second.min()):g}")
    chance = np.random.default_rng(seed)
    drawn = [x[chance.integers(len(x), size=(resamples, len(x)))].mean(axis=1) for x in (first, second)]
    low, high = np.quantile(drawn[0] / drawn[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(first.mean() / second.mean()), float(low), float(high))


def held_out_errors(features, energy, groups) -> np.ndarray:
    """Relative errors |predicted / measured − 1| of energy ≈ features · slopes + constant, on unseen groups.

    For each group: fit on all others, by least squares of the relative error, then predict the group.

    Args:   features: shape (n,) or (n, k); energy: n positive values; groups: n labels, at least two different.
    """
    features, (energy,) = np.asarray(features, dtype=float), _columns(energy)
    features, groups = features.reshape(len(features), -1), np.asarray(groups)
    if not len(features) == len(energy) == len(groups) or not (energy > 0).all() or len(set(groups)) < 2:
        raise ValueError(f"need as many rows of features, positive energies and groups, and two groups or more; "
                         f"got {len(features)}, {len(energy)}, {len(groups)} rows and {len(set(groups))} groups")
    design, errors = np.column_stack([features, np.ones(len(energy))]), np.empty(len(energy))
    for group in set(groups):
        unseen = groups == group
        weight = 1 / energy[~unseen]                    # so that a tenth too much counts alike everywhere
        slopes, *_ = np.linalg.lstsq(design[~unseen] * weight[:, None], np.ones(weight.size), rcond=None)
        errors[unseen] = np.abs(design[unseen] @ slopes / energy[unseen] - 1)
    return errors


def cheapest_as_accurate(cost, accuracy, *, wanted: float) -> float:
    """The smallest cost among the models whose accuracy is at least `wanted`; NaN if there is none."""
    cost, accuracy = _columns(cost, accuracy)
    return float(cost[accuracy >= wanted].min(initial=math.inf)) if (accuracy >= wanted).any() else math.nan


def pareto_mask(cost, accuracy) -> np.ndarray:
    """True for the models that no other beats: none is as cheap and as accurate, and better in one."""
    cost, accuracy = _columns(cost, accuracy)
    no_worse = (cost <= cost[:, None]) & (accuracy >= accuracy[:, None])        # [i, j]: j is no worse than i
    better = (cost < cost[:, None]) | (accuracy > accuracy[:, None])
    return ~(no_worse & better).any(axis=1)


def _columns(*columns) -> list[np.ndarray]:
    """The columns as arrays of one shape, without gaps."""
    arrays = [np.asarray(column, dtype=float) for column in columns]
    if len({array.shape for array in arrays}) != 1 or not arrays[0].size:
        raise ValueError(f"columns must have one shape and at least one row; got {[a.shape for a in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("a column has gaps (NaN) or infinities: drop those rows first")
    return arrays
