"""Calibration: the range of the activations, found by running the model on some images.

A weight is known, but an activation depends on the image, and a grid is needed before the first image comes. So the
model runs on training or validation images (never on test images: the ranges would have seen them), and a
range is chosen from what it computes. A wide one makes the grid coarse; a narrow one clips large values.
Book: chapter 3, "Activations need grids too".
"""
import contextlib

import numpy as np
import torch
from torch import nn

from ..training import evaluating
from .affine import Grid, grid_from_range
from .blocks import check_bits
from .stored import quantizable

__all__ = ["METHODS", "activations", "calibrate", "entropy_threshold", "range_of"]

METHODS = ("min-max", "percentile", "mse", "entropy")
_BINS = 2048            # of the histogram for "entropy"
_SHRINK = 0.98 ** np.arange(230)        # what "mse" tries: an end of the range, down to 1/100 of it


def calibrate(model: nn.Module, images: torch.Tensor, *, method: str = "min-max", bits: int = 8, percentile: float = 99.9,
              batch_size: int = 500) -> dict[str, Grid]:
    """Unsigned grids for the input of each linear layer and convolution, by its name, and for the model's "output".

    Args:   images: of training or validation; method, percentile: see `range_of`.
    Raises: ValueError as `activations` and `range_of`; the message names the layer.
    """
    grids = {}
    for name, values in activations(model, images, batch_size=batch_size).items():
        try:
            low, high = range_of(values, method, bits=bits, percentile=percentile)
        except ValueError as error:
            raise ValueError(f"activations at {name or 'the layer'}: {error}") from error
        grids[name] = _grid(low, high, bits)
    return grids


def activations(model: nn.Module, images: torch.Tensor, *, batch_size: int = 500) -> dict[str, torch.Tensor]:
    """What goes into each linear layer and convolution, by its name, and the model's "output", for all images.

    The model runs as it is, in evaluation mode; its layers are only listened to.
    Raises: ValueError for no images, a layer that is never called or is named "output"; and as `quantizable`.
    """
    layers = quantizable(model)
    if not len(images):
        raise ValueError("calibration needs images: an empty tensor has no range")
    if "output" in layers:
        raise ValueError('a layer is named "output", which stands for the output of the model; rename the layer')
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].clone()))
            stack.callback(hook.remove)
        seen["output"] = [model(batch) for batch in images.split(batch_size)]
    if silent := [name for name, parts in seen.items() if not parts]:
        raise ValueError(f"the model never calls {', '.join(silent)}: nothing is known of what would go in")
    return {name: torch.cat(parts) for name, parts in seen.items()}


def range_of(values: torch.Tensor, method: str = "min-max", *, bits: int = 8, percentile: float = 99.9) -> tuple[float, float]:
    """The range (low, high) for a grid of `bits` bits; values outside will be clipped. It always holds 0.

    Args:   method: "min-max": nothing is clipped. "percentile": the middle `percentile` percent of the values.
            "mse": the range with the smallest squared error after rounding, among shrunk ones.
            "entropy": the range whose rounded histogram tells most about the original one; see `entropy_threshold`.
    Raises: ValueError for values that are empty or not finite, an unknown method, a percentile outside 50…100.
    Equals: "percentile": numpy.percentile; "entropy": ONNX Runtime's calibration, on one histogram.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_bits(bits)
    if not values.numel():
        raise ValueError("an empty tensor has no range")
    x = values.detach().flatten().double().numpy()
    if not np.isfinite(x).all():
        raise ValueError("values must be finite; got NaN or infinity (did training diverge?)")
    if method == "percentile":
        low, high = _middle(x, percentile)
    else:
        low, high = x.min(), x.max()
    low, high = min(0.0, float(low)), max(0.0, float(high))         # 0 will be on the grid anyway
    if low == high:
        return low, high                                            # all are 0: nothing to choose
    if method == "mse":
        return _least_squares(np.sort(x), low, high, bits)
    if method == "entropy":
        top = max(-low, high)
        threshold = entropy_threshold(*np.histogram(x, _BINS, range=(-top, top)), levels=2 ** (bits - 1))
        return max(low, -threshold), min(high, threshold)
    return low, high


def _middle(x: np.ndarray, percentile: float) -> tuple[float, float]:
    """The two ends of the middle `percentile` percent, interpolated between the two nearest values."""
    if not 50 <= percentile <= 100:
        raise ValueError(f"percentile is the share of values to keep, from 50 to 100, e.g. 99.9; got {percentile!r}")
    ends = []
    for share in ((100 - percentile) / 200, (100 + percentile) / 200):
        place = share * (len(x) - 1)
        below, above = int(np.floor(place)), int(np.ceil(place))
        near = np.partition(x, (below, above))
        ends.append(near[below] + (place - below) * (near[above] - near[below]))
    return ends[0], ends[1]


def _least_squares(x: np.ndarray, low: float, high: float, bits: int) -> tuple[float, float]:
    """Shrink both ends together, then one and the other, to where the squared error is smallest; the full range is tried too.

    x: sorted. All values between two neighbouring midpoints of the grid have one code, so three running sums give the
    error of a grid without looking at each value again: Σ(x − v)² = Σx² − 2vΣx + nv².
    """
    sums = [np.concatenate([[0.0], np.cumsum(x**power)]) for power in (0, 1, 2)]

    def error(low: float, high: float) -> float:
        grid = _grid(low, high, bits)
        levels = (np.arange(grid.quant_min, grid.quant_max + 1) - int(grid.zero_point)) * float(grid.scale)
        edges = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2), [len(x)]])
        n, first, second = (np.diff(total[edges]) for total in sums)
        return float((second - 2 * levels * first + n * levels**2).sum())

    share = min(_SHRINK, key=lambda share: error(share * low, share * high))
    top = min(_SHRINK * high, key=lambda end: error(share * low, end))
    return float(min(_SHRINK * low, key=lambda end: error(end, top))), float(top)


def entropy_threshold(counts: np.ndarray, edges: np.ndarray, *, levels: int = 128) -> float:
    """The t for which the histogram, clipped to ±t and then merged into `levels` bins, loses least information.

    Information lost is the Kullback-Leibler divergence Σ p·log(p/q) from the clipped histogram p to the merged one q.
    Args:   counts, edges: a histogram with the same edges left and right of 0, as numpy.histogram gives it.
    Raises: ValueError for fewer bins than levels.
    Source: Migacz 2017, in the form of ONNX Runtime, which spreads whole counts evenly over the merged bins.
    Equals: the calibrator of onnxruntime.quantization with the method entropy.
    """
    middle, half = len(counts) // 2, levels // 2
    if middle < max(1, half):
        raise ValueError(f"a histogram of {len(counts)} bins cannot be merged into {levels} levels: use fewer bits")
    tried = []
    for i in range(max(1, half), middle + 1):
        first, last = middle - i, min(middle + i + 1, len(counts))
        inside = counts[first:last]
        p = inside.copy()
        p[0] += counts[:first].sum()                    # what is clipped lands in the outermost bins
        p[-1] += counts[last:].sum()
        width = len(p) // levels                        # bins that become one level
        merged = inside[: levels * width].reshape(levels, width).sum(axis=1)
        merged[-1] += inside[levels * width:].sum()
        filled = (p[: levels * width] != 0).reshape(levels, width).sum(axis=1)
        q = np.zeros_like(p)
        q[: levels * width] = np.repeat(np.where(filled, merged // np.maximum(filled, 1), 0), width)
        tried.append((_divergence(p, q), float(edges[last])))
    return min(tried, key=lambda pair: pair[0])[1]


def _divergence(p: np.ndarray, q: np.ndarray, tiny: float = 1e-4) -> float:
    """Σ p·log(p/q) in float32; empty bins borrow a little from the others, so that no logarithm is infinite."""
    if not p.any() or not q.any():
        return np.inf
    shares = []
    for counts in (p, q):
        empty = counts == 0
        smooth = counts.astype(np.float32) + np.where(empty, tiny, -tiny * empty.sum() / (~empty).sum()).astype(np.float32)
        shares.append(smooth / smooth.sum())
    return float((shares[0] * np.log(shares[0] / shares[1])).sum())


def _grid(low: float, high: float, bits: int) -> Grid:
    return grid_from_range(torch.tensor(low), torch.tensor(high), bits, symmetric=False, signed=False)
