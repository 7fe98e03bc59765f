"""Intervals: how far a number could be from the truth, given how little was measured.

A 95 % interval comes from a procedure that covers the true value in about 95 of 100 repetitions.
Book: chapter 1, "Column 1: accuracy".
"""
import dataclasses
import math
from statistics import NormalDist

import numpy as np

__all__ = ["Estimate", "bootstrap_median", "format_estimate", "mean_over_runs", "paired_difference", "wilson"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with the two ends of its interval, all in the unit of the value."""
    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def format_estimate(e: Estimate, form: str = "{:.2f}", scale: float = 1) -> str:
    """A value and its interval for people: 0.37 [0.36, 0.38]."""
    value, low, high = (form.format(scale * x) for x in (e.value, e.low, e.high))
    return f"{value} [{low}, {high}]"


def _upper_end(confidence: float) -> float:
    """Which quantile is the upper end of the interval: 0.975 for 95 %."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a fraction between 0 and 1, e.g. 0.95; got {confidence!r}")
    return (1 + confidence) / 2


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval for a share, such as an accuracy: `successes` out of `n`.

    Raises: ValueError unless 0 <= successes <= n and n >= 1.
    Source: Wilson 1927; equals scipy.stats.binomtest(...).proportion_ci(method="wilson").
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1; got {successes} of {n}")
    z, p = NormalDist().inv_cdf(_upper_end(confidence)), successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At a share of 0 or 1 rounding could put an end on the wrong side of the share itself.
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def paired_difference(gained: int, lost: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Difference of two shares measured on the same `n` cases: (gained − lost) / n.

    Args:   gained: cases that only the second of the two got right; lost: only the first.
            The cases that both or neither got right carry no information about the difference.
    Source: adjusted Wald interval for paired shares, Bonett & Price 2012 (one is added to `gained`
            and `lost`, so that zero disagreements do not claim a perfect measurement).
    """
    if min(gained, lost) < 0 or gained + lost > n or n < 1:
        raise ValueError(f"need gained, lost >= 0 and gained + lost <= n; got {gained}, {lost} of {n}")
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = NormalDist().inv_cdf(_upper_end(confidence)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half))


def mean_over_runs(values, *, confidence: float = 0.95) -> Estimate:
    """Mean of a few independent runs with Student's t interval (1.96 would be too narrow).

    Raises: ValueError for fewer than two runs: one run tells nothing about its own spread.
    """
    from scipy.stats import t
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"need at least two runs in one dimension; got shape {values.shape}")
    half = t.ppf(_upper_end(confidence), len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(values.mean(), values.mean() - half, values.mean() + half)


def bootstrap_median(values, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Median with its percentile bootstrap interval: what other samples like this one would have given.

    Source: Efron & Tibshirani 1993, ch. 13.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"need at least two values in one dimension; got shape {values.shape}")
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    medians = np.median(values[picks], axis=1)
    low, high = np.quantile(medians, [1 - _upper_end(confidence), _upper_end(confidence)])
    return Estimate(float(np.median(values)), float(low), float(high))
