"""Calibration of activations: the ranges, where they are collected, and that nothing is changed by looking."""
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector
from torch import nn

from course_lib import models
from course_lib.quantization import fake_quantize, grid_from_range
from course_lib.quantization.calibration import METHODS, activations, calibrate, entropy_threshold, range_of
from helpers import TINY, HalfUsed, random_split, same, state, tiny

finite = st.floats(-1e4, 1e4, width=32)
some_values = arrays.arrays(np.float32, st.integers(1, 60), elements=finite).map(torch.from_numpy)


def squared_error(values, low, high, bits):
    grid = grid_from_range(low, high, bits, signed=False)
    return float((fake_quantize(values, grid).double() - values.double()).square().sum())


def skewed(seed, n=4000, outliers=0.01):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * np.where(rng.random(n) < outliers, 6, 1)
    return torch.from_numpy(np.maximum(x, 0 if seed % 2 else x).astype(np.float32))


# --- the ranges ---

def test_four_ranges_by_hand():
    """Zero to nine and one outlier."""
    values = torch.tensor([*range(10), 1000.0])
    assert range_of(values, "min-max") == (0, 1000)
    assert range_of(values, "percentile", percentile=80) == (0, 9)       # places 1 to 9 of 0 to 10; and 0 stays in
    low, high = range_of(values, "mse", bits=8)
    assert (low, high) == (0, 1000)             # clipping 1000 costs more than rounding the ten small ones
    many = torch.cat([values[:10].repeat(10_000), values[10:]])
    assert range_of(many, "mse", bits=4)[1] < 1000


@given(some_values, st.floats(50, 100))
def test_percentile_equals_numpy(values, percentile):
    cut = (100 - percentile) / 2
    low, high = np.percentile(values.double().numpy(), [cut, 100 - cut])
    assert range_of(values, "percentile", percentile=percentile) == pytest.approx((min(low, 0), max(high, 0)), rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(some_values, st.integers(1, 8))
def test_mse_is_never_worse_than_min_max(values, bits):
    kept = squared_error(values, *range_of(values, "min-max"), bits)
    best = squared_error(values, *range_of(values, "mse", bits=bits), bits)
    assert best <= kept * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_equals_a_search_that_looks_at_every_value(seed, bits):
    values = skewed(seed)
    low, high = range_of(values)
    tried = [0.98**k for k in range(230)]
    both = min(tried, key=lambda f: squared_error(values, low * f, high * f, bits))
    high = min((high * f for f in tried), key=lambda end: squared_error(values, low * both, end, bits))
    low = min((low * f for f in tried), key=lambda end: squared_error(values, end, high, bits))
    best = range_of(values, "mse", bits=bits)
    assert squared_error(values, *best, bits) == pytest.approx(squared_error(values, low, high, bits), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_is_near_the_best_pair_of_ends_for_weights_on_both_sides(bits):
    """One end after the other, from the full range, would stop at a lopsided grid with twice the error."""
    values = 0.05 * torch.randn(4000, generator=torch.Generator().manual_seed(1))
    values[:2] = torch.tensor([0.5, -0.45])
    shares = torch.linspace(0.05, 1, 25).tolist()
    best = min(squared_error(values, -0.45 * a, 0.5 * b, bits) for a in shares for b in shares)
    assert squared_error(values, *range_of(values, "mse", bits=bits), bits) < 1.15 * best


@given(some_values, st.sampled_from(METHODS), st.sampled_from([1, 4, 8]))
def test_every_range_holds_zero_and_stays_inside_the_values(values, method, bits):
    low, high = range_of(values, method, bits=bits)
    widest = range_of(values)
    assert widest[0] <= low <= 0 <= high <= widest[1]
    grid_from_range(low, high, bits, signed=False)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins, levels", [(32, 4), (128, 128), (501, 16), (512, 128), (2048, 128)])
def test_entropy_equals_onnx_runtime(seed, bins, levels):
    x = skewed(seed).numpy()
    theirs = HistogramCollector("entropy", False, bins, levels, 99.9, "same")
    theirs.collect_value({"x": x})
    counts, edges, smallest, largest, _ = theirs.histogram_dict["x"]
    _, expected = theirs.get_entropy_threshold((counts, edges, smallest, largest), levels)
    assert min(entropy_threshold(counts, edges, levels=levels), largest) == expected


def test_entropy_by_hand():
    """Five bins, two levels: empty outer bins are clipped off, four equal ones are merged in pairs without loss."""
    edges = np.linspace(-2.5, 2.5, 6)
    assert entropy_threshold(np.array([0, 2, 1, 0, 0]), edges, levels=2) == 1.5
    assert entropy_threshold(np.array([1, 1, 1, 1, 0]), edges, levels=2) == 2.5


def test_percentile_and_mse_repair_what_an_outlier_breaks():
    values = torch.cat([torch.rand(100_000), torch.tensor([50.0])])

    def typical(method):
        low, high = range_of(values, method, bits=4)
        return squared_error(values[:-1], low, high, 4)

    assert max(typical("percentile"), typical("entropy")) < typical("min-max") / 50
    assert typical("mse") < typical("min-max") / 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [0.0, 3.0, -0.25])
def test_a_constant_is_kept_exactly(method, constant):
    values = torch.full((50,), constant)
    low, high = range_of(values, method)
    assert (low, high) == (min(constant, 0), max(constant, 0))
    assert torch.allclose(fake_quantize(values, grid_from_range(low, high, 8, signed=False)), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("values, options, message", [
    (torch.empty(0), {}, "empty"), (torch.tensor([1.0, float("nan")]), {}, "finite"),
    (torch.tensor([float("inf")]), {"method": "mse"}, "finite"), (torch.ones(3), {"method": "best"}, "min-max, percentile"),
    (torch.rand(9), {"method": "percentile", "percentile": 0.999}, "50 to 100"),
    (torch.rand(9), {"method": "percentile", "percentile": 101}, "50 to 100"),
    *((torch.rand(9), {"method": method, "bits": bits}, "1 to 16") for method in METHODS for bits in (0, 17, 2.5)), (torch.rand(9), {"method": "entropy", "bits": 16}, "fewer bits")])
def test_bad_values(values, options, message):
    with pytest.raises(ValueError, match=message):
        range_of(values, **options)


# --- where they are collected ---

@pytest.mark.parametrize("name", TINY)
def test_activations_are_what_goes_into_each_layer(name):
    model, images = tiny(name), random_split().images
    seen = activations(model, images, batch_size=17)
    with torch.no_grad():
        assert torch.allclose(seen["output"], model(images), atol=1e-6)
    layers = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    assert list(seen) == [*layers, "output"]
    assert torch.equal(seen[layers[0]].flatten(), images.flatten())


def test_activations_in_the_middle_by_hand():
    model, images = tiny("mlp"), random_split().images
    with torch.no_grad():
        hidden = torch.relu(model[1](images.flatten(1)))
    assert torch.allclose(activations(model, images)["3"], hidden, atol=1e-6)


class Overwrites(nn.Module):
    """Reuses the memory of a layer's input, as in-place operations do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        x = x + 1
        y = self.layer(x)
        x.zero_()
        return y


def test_inputs_are_seen_as_they_were_even_if_they_are_overwritten_later():
    x = torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.equal(activations(Overwrites(), x)["layer"], x + 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training):
    model = tiny("resnet").train(training)
    before, modes = state(model), [m.training for m in model.modules()]
    calibrate(model, random_split().images, method="percentile")
    assert same(before, state(model)) and modes == [m.training for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hooks_are_removed_even_if_the_model_fails():
    model = tiny("mlp")
    with pytest.raises(RuntimeError):
        activations(model, torch.rand(2, 1, 3, 3))
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_calibrate_makes_the_grid_of_the_range(method, bits):
    model, images = tiny("cnn"), random_split().images
    grids = calibrate(model, images, method=method, bits=bits, percentile=99)
    for name, values in activations(model, images).items():
        expected = grid_from_range(*range_of(values, method, bits=bits, percentile=99), bits, signed=False)
        assert torch.equal(grids[name].scale, expected.scale) and torch.equal(grids[name].zero_point, expected.zero_point)
        assert (grids[name].quant_min, grids[name].quant_max, grids[name].axis) == (0, 2**bits - 1, None)


def test_batches_do_not_matter():
    model, images = tiny("cnn"), random_split().images
    one, many = calibrate(model, images), calibrate(model, images, batch_size=7)
    assert all(torch.allclose(one[name].scale, many[name].scale, rtol=1e-5) for name in one)


def test_bad_models_and_images():
    model = models.mlp(1, 4, hidden=(3,))
    with pytest.raises(ValueError, match="images"):
        calibrate(model, torch.empty(0, 1, 4, 4))
    with pytest.raises(ValueError, match="never calls unused"):
        calibrate(HalfUsed(), torch.rand(3, 4))
    with pytest.raises(ValueError, match='"output"'):
        calibrate(nn.ModuleDict({"output": nn.Linear(2, 2)}), torch.rand(3, 2))
    with pytest.raises(ValueError, match="no linear layer"):
        calibrate(nn.ReLU(), torch.rand(3, 2))
    with pytest.raises(ValueError, match="activations at 1: .*finite"):
        calibrate(model, torch.full((2, 1, 4, 4), float("nan")))
