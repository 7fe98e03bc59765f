"""Error compensation follows its reference, stays on the grid and leaves less error at the output than the nearest values."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_lib import files
from course_lib.quantization.affine import fake_quantize, grid_for, quantize
from course_lib.quantization.gptq import compensated_rounding, hessian_of, quantize_gptq
from course_lib.quantization.stored import StoredLayer, quantize_weights
from helpers import TINY, HalfUsed, random_split, same, state, tiny


def correlated(n, inputs, seed=0):
    """Inputs that share a few causes, as pixels and neurons do."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(n, max(1, inputs // 4), generator=generator)
    return causes @ torch.randn(causes.shape[1], inputs, generator=generator) + 0.3 * torch.randn(n, inputs, generator=generator)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_elimination(weight, hessian, grid, damping=0.01):
    """Optimal brain quantization in a fixed order: H⁻¹ is updated by Gaussian elimination after every column."""
    w, n = weight.double().clone(), weight.shape[1]
    inverse = torch.linalg.inv(hessian.double() + damping * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64))
    out = torch.zeros_like(weight)
    for j in range(n):
        column = w[:, j].float()[:, None].expand(-1, n)             # a grid in groups needs the whole row
        out[:, j] = fake_quantize(column.contiguous(), grid)[:, j]
        step = (w[:, j] - out[:, j]) / inverse[j, j]
        w -= step[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


# --- one layer ---

def test_two_weights_by_hand():
    """Both inputs are always equal, so only the sum counts: 0.4 + 0.4 is nearer to 1 + 0 than to 0 + 0."""
    grid = grid_for(torch.tensor([[-1.0, 2.0]]), 2)                 # whole numbers from −1 to 2
    weight, hessian = torch.tensor([[0.4, 0.4]]), torch.ones(2, 2)
    assert fake_quantize(weight, grid).tolist() == [[0.0, 0.0]]
    assert compensated_rounding(weight, hessian, grid, damping=1e-6).tolist() == [[0.0, 1.0]]
    assert compensated_rounding(torch.tensor([[0.6, 0.6]]), hessian, grid, damping=1e-6).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("options", [{"axis": 0, "symmetric": True}, {"axis": None, "symmetric": False}, {"group": 4}])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_equals_optimal_brain_quantization_in_a_fixed_order(bits, options):
    weight, x = gaussian(10, 24), correlated(200, 24)
    hessian, grid = 2 * x.T @ x, grid_for(weight, bits, **options)
    assert torch.equal(compensated_rounding(weight, hessian, grid), by_elimination(weight, hessian, grid))


@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]))
def test_equals_the_nearest_values_where_inputs_are_uncorrelated(seed, bits):
    weight = gaussian(5, 12, seed=seed)
    diagonal = torch.rand(12, generator=torch.Generator().manual_seed(seed)) + 0.1
    grid = grid_for(weight, bits, axis=0)
    assert torch.equal(compensated_rounding(weight, torch.diag(diagonal), grid), fake_quantize(weight, grid))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_output_error_is_below_that_of_the_nearest_values(seed, bits):
    weight, x = gaussian(20, 40, seed=seed), correlated(300, 40, seed=seed)
    grid = grid_for(weight, bits, axis=0, symmetric=True)
    near, better = fake_quantize(weight, grid), compensated_rounding(weight, 2 * x.T @ x, grid)
    errors = [float(((x @ (weight - w).T) ** 2).sum()) for w in (near, better)]
    assert errors[1] < 0.8 * errors[0]
    assert float((weight - better).norm()) >= float((weight - near).norm())         # the weights themselves are farther away
    assert torch.equal(fake_quantize(better, grid), better)                         # on the grid


def test_a_convolution_is_a_linear_layer_on_patches():
    conv, images = nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=1, dilation=(2, 1)), gaussian(5, 3, 9, 8)
    hessian, error = hessian_of(conv, images), gaussian(*conv.weight.shape, seed=1)
    outputs = nn.functional.conv2d(images, error, None, conv.stride, conv.padding, conv.dilation)
    half_trace = 0.5 * torch.trace(error.flatten(1).double() @ hessian @ error.flatten(1).double().T)
    assert float((outputs ** 2).sum()) == pytest.approx(float(half_trace), rel=1e-5)
    linear, x = nn.Linear(6, 2), gaussian(7, 6)
    torch.testing.assert_close(hessian_of(linear, x), 2 * (x.T @ x).double())
    torch.testing.assert_close(hessian_of(linear, x.reshape(7, 1, 6)), 2 * (x.T @ x).double())


# --- whole models ---

@pytest.mark.parametrize("name", sorted(TINY))
def test_models_are_saved_and_loaded(name, tmp_path):
    model, images = tiny(name), random_split(30).images
    before = state(model)
    small = quantize_gptq(model, images, 3)
    assert same(state(model), before)
    assert files.save(small, tmp_path / "model") == files.saved_bytes(quantize_weights(model, 3))
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path / "model")(images), small(images))
    assert not any(layer._forward_pre_hooks for m in (model, small) for layer in m.modules())


def test_the_stored_codes_are_those_of_the_compensated_weights():
    layer, x = nn.Linear(12, 5), correlated(50, 12)
    form = quantize_gptq(nn.Sequential(layer), x, 3)[0].form
    grid = grid_for(layer.weight, 3, axis=0, symmetric=True)
    assert torch.equal(form.codes, quantize(compensated_rounding(layer.weight, 2 * x.T @ x, grid), grid).int())


def test_each_layer_sees_what_the_rounded_layers_before_it_give():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24))
    x = correlated(60, 12)
    small = quantize_gptq(model, x, 2)
    grid = grid_for(model[2].weight, 2, axis=0, symmetric=True)
    with torch.no_grad():
        seen, unrounded = (compensated_rounding(model[2].weight, hessian_of(model[2], torch.relu(first(x))), grid)
                           for first in (small[0], model[0]))
    assert torch.equal(small[2].form.decode(), seen)
    assert (seen != unrounded).sum() > 30       # so many weights tell the two apart


@pytest.mark.parametrize("name", ["cnn", "lenet5", "mlp"])
def test_the_models_outputs_are_nearer_than_with_the_nearest_values(name):
    model, images = tiny(name), random_split(200).images
    with torch.no_grad():
        wanted = model(images)
        errors = [float(((m(images) - wanted) ** 2).mean()) for m in (quantize_weights(model, 3), quantize_gptq(model, images, 3))]
    assert errors[1] < errors[0]


def test_layers_can_be_skipped():
    assert [type(layer) for layer in quantize_gptq(tiny("mlp"), random_split(5).images, 4, skip=("3",))[1::2]] == [StoredLayer, nn.Linear]


@pytest.mark.parametrize("act, message", [
    (lambda w, g: compensated_rounding(w, torch.eye(3), g), r"of shape \(4, 4\); got \(3, 3\)"),
    (lambda w, g: compensated_rounding(w, torch.zeros(4, 4), g), "not zero"),
    (lambda w, g: compensated_rounding(w, torch.full((4, 4), float("nan")), g), "finite"),
    (lambda w, g: compensated_rounding(w, torch.eye(4), g, damping=0), "damping > 0"),
    (lambda w, g: compensated_rounding(w, torch.eye(4), grid_for(w, 4, axis=1)), "axis 1"),
    (lambda w, g: quantize_gptq(tiny("mlp"), random_split(5).images[:0], 4), "needs images"),
    (lambda w, g: quantize_gptq(HalfUsed(), torch.rand(5, 4), 4), "the model never calls unused"),
    (lambda w, g: quantize_gptq(nn.Sequential(nn.ReLU()), random_split(5).images, 4), "no linear layer"),
    (lambda w, g: hessian_of(nn.Conv2d(2, 2, 1, groups=2), torch.rand(1, 2, 3, 3)), "groups=2"),
    (lambda w, g: hessian_of(nn.Conv2d(2, 2, 3, padding="same"), torch.rand(1, 2, 3, 3)), "padding='same'")])
def test_bad_input(act, message):
    weight = gaussian(2, 4)
    with pytest.raises(ValueError, match=message):
        act(weight, grid_for(weight, 4, axis=0))
