"""Training with quantization in the loop: PyTorch's gradients, the numbers that are stored, and what is refused."""
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import cost, files, training
from course_lib.quantization import quantize_weights
from course_lib.quantization.affine import Grid, fake_quantize, grid_for, integer_range
from course_lib.quantization.binary import SignForm
from course_lib.quantization.learned_step import LearnedStep
from course_lib.quantization.qat import TRAINED_METHODS, FakeInput, fake_quantized, to_stored
from course_lib.quantization.stored import StoredLayer
from course_lib.quantization.ste import FakeForm, FakeMinMax, FakeSign, fake_quantize_through, straight_through
from helpers import TINY, random_split, same, state, tiny

SPLIT = random_split()
CASES = [("min-max", 8), ("min-max", 2), ("min-max", 1), ("sign", 1), ("learned step", 4), ("learned step", 2), ("learned step", 1)]


def logits(model, images=SPLIT.images):
    with training.evaluating(model):
        return model(images)


def values(seed=0, shape=(6, 5)):
    """Random numbers with ties between two neighbours of a grid, and some far outside of it."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2
    x.flatten()[::3] = (x.flatten()[::3] * 4).round() / 4
    return x


def gradients(function, *inputs):
    """Value of the function, and the gradients of its weighted sum in all inputs."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(9)))
    return [y.detach(), *(x.grad for x in inputs)]


# --- the straight-through estimator ---

def test_the_gradient_passes_where_the_rounded_number_is_in_range_by_hand():
    """Steps of 1 from −2 to 1: −2.5 rounds to −2, still in range; 1.5 rounds to 2, and is clamped to 1."""
    x = torch.tensor([-3, -2.6, -2.5, 0.4, 1.4, 1.5, 2], requires_grad=True)
    y = fake_quantize_through(x, Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -2, 1))
    y.sum().backward()
    assert y.tolist() == [-2, -2, -2, 0, 1, 1, 1]
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_pytorch_for_a_tensor(bits, seed):
    x = values(seed)
    grid = grid_for(values(seed + 50) / 2, bits)
    expected = gradients(lambda x: torch.fake_quantize_per_tensor_affine(
        x, float(grid.scale), int(grid.zero_point), grid.quant_min, grid.quant_max), x)
    for ours, theirs in zip(gradients(lambda x: fake_quantize_through(x, grid), x), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2)])
def test_value_and_gradient_equal_pytorch_for_channels(bits, shape):
    x = values(1, shape)
    grid = grid_for(values(2, shape) / 2, bits, axis=0)
    expected = gradients(lambda x: torch.fake_quantize_per_channel_affine(
        x, grid.scale, grid.zero_point, 0, grid.quant_min, grid.quant_max), x)
    for ours, theirs in zip(gradients(lambda x: fake_quantize_through(x, grid), x), expected):
        assert torch.equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.booleans(), st.sampled_from([None, 0]), st.integers(0, 10_000))
def test_the_forward_pass_is_fake_quantize(bits, symmetric, axis, seed):
    x = values(seed)
    grid = grid_for(values(seed + 1), bits, symmetric=symmetric, axis=axis)
    assert torch.equal(fake_quantize_through(x, grid), fake_quantize(x, grid))


def test_ties_round_as_in_pytorch():
    """x = (n + ½)·s for many s: in floating point x/s and x·(1/s) then fall on different sides of the tie."""
    generator = torch.Generator().manual_seed(0)
    for scale in torch.rand(40, generator=generator):
        grid = Grid(scale, torch.tensor(7, dtype=torch.int32), 0, 255)
        x = (torch.arange(-10, 260) + 0.5) * scale
        assert torch.equal(fake_quantize_through(x, grid), torch.fake_quantize_per_tensor_affine(x, float(scale), 7, 0, 255))


def test_a_sign_passes_every_gradient():
    form = FakeSign.of(torch.tensor([[-3.0, 0.0, 0.5, 1.5]]), 1)
    form.decode().backward(torch.tensor([[1.0, 2, 3, 4]]))
    assert form.decode().tolist() == [[-1.25, 1.25, 1.25, 1.25]]
    assert form.weight.grad.tolist() == [[1, 2, 3, 4]]


def test_the_estimator_takes_no_gradient_from_the_rounded_values():
    x, rounded = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    straight_through(x, rounded, torch.tensor([True, False, True])).sum().backward()
    assert x.grad.tolist() == [1, 0, 1] and rounded.grad is None


# --- the learned step ---

def test_the_gradient_of_the_step_by_hand():
    """s = 1, two bits: −0.4 rounds to 0 (slope +0.4), 0.8 to 1 (+0.2), 3 is clamped to 1 (+1), −9 to −2 (−2)."""
    form = LearnedStep.of(torch.tensor([[-0.4, 0.8, 3.0, -9.0]]), 2)
    form.step.data.fill_(1)
    form.decode().sum().backward()
    assert form.step.grad.item() == pytest.approx((0.4 + 0.2 + 1 - 2) / (4 * 1) ** 0.5, abs=1e-6)
    assert form.weight.grad.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_learned_step_equals_pytorchs_learnable_fake_quantization(bits, axis):
    x = values(3)
    form = LearnedStep.of(x, bits, axis)
    low, high = integer_range(bits, signed=True)
    factor = ((x.numel() if axis is None else x.shape[1]) * high) ** -0.5

    def ours(weight, step):
        copy = LearnedStep(list(x.shape), bits, axis)
        del copy.weight, copy.step
        copy.weight, copy.step = weight, step
        return copy.decode()

    def theirs(weight, step):
        zeros = torch.zeros(step.numel())
        if axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(weight, step.reshape(1), zeros, low, high, factor)
        return torch._fake_quantize_learnable_per_channel_affine(weight, step, zeros, 0, low, high, factor)

    mine, reference = gradients(ours, x, form.step.detach()), gradients(theirs, x, form.step.detach())
    assert torch.equal(mine[0], reference[0])
    torch.testing.assert_close(mine[1:], reference[1:], rtol=1e-5, atol=1e-6)


def test_the_learned_step_equals_the_formula_of_the_paper():
    """The step's gradient written out, summed in double precision."""
    x = values(4).double().float()
    form = LearnedStep.of(x, 3)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    form.decode().backward(upstream)
    v = x.double() / form.step.item()
    slope = torch.where(v.round() < -4, -4.0, torch.where(v.round() > 3, 3.0, v.round() - v))
    assert form.step.grad.item() == pytest.approx(float((upstream * slope).sum()) / (x.numel() * 3) ** 0.5, rel=1e-5)


def test_the_first_step_is_twice_the_mean_magnitude_over_the_root_of_the_largest_number():
    assert LearnedStep.of(torch.tensor([[1.0, -3.0]]), 4).step.item() == pytest.approx(2 * 2 / 7**0.5)
    per_channel = LearnedStep.of(torch.tensor([[1.0, -3.0], [2.0, 0.0]]), 2, 0)
    assert per_channel.step.tolist() == [4, 2]


def test_one_bit_has_two_values_on_both_sides_of_zero():
    form = LearnedStep.of(torch.tensor([[-0.1, 0.0, 0.1, 5.0]]), 1)
    form.step.data.fill_(1)
    form.decode().sum().backward()
    assert form.decode().tolist() == [[-1, 1, 1, 1]]
    assert form.weight.grad.tolist() == [[1, 1, 1, 0]]                      # 5 lies beyond 2 steps
    assert form.step.grad.item() == pytest.approx((-0.9 + 1 + 0.9 + 1) / 4**0.5, abs=1e-6)


@pytest.mark.parametrize("step", [-0.5, 0.0])
def test_the_step_in_use_is_positive_wherever_training_takes_the_parameter(step):
    form = LearnedStep.of(values(), 2)
    form.step.data.fill_(step)
    assert form.positive_step > 0
    assert form.decode().isfinite().all() and torch.equal(form.rounded().decode(), form.decode())


def test_training_moves_the_steps_and_keeps_them_positive():
    model = fake_quantized(tiny("cnn"), 2, method="learned step")
    trained, _ = training.fit(model, SPLIT, epochs=3, lr=0.02)
    steps = [(m.form.step, old.form.step) for m, old in zip(trained.modules(), model.modules()) if isinstance(m, StoredLayer)]
    assert len(steps) == 3 and all(new != old and new.abs() > 0 for new, old in steps)


# --- the model ---

@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("axis", [None, 0])
def test_before_training_it_is_rounding_alone(name, axis):
    model = tiny(name)
    for bits in (1, 2, 5, 8):
        alone = quantize_weights(model, bits, axis=axis, symmetric=False)
        assert torch.equal(logits(fake_quantized(model, bits, axis=axis)), logits(alone))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("method, bits", CASES)
@pytest.mark.parametrize("axis", [None, 0])
def test_the_stored_model_predicts_the_same_to_the_last_bit_also_after_loading(name, method, bits, axis, tmp_path):
    fake = fake_quantized(tiny(name), bits, method=method, axis=axis)
    trained, _ = training.fit(fake, SPLIT, epochs=2, lr=0.01)
    stored = to_stored(trained)
    assert torch.equal(logits(stored), logits(trained))
    size = files.save(stored, tmp_path / "model.safetensors")
    assert torch.equal(logits(files.load(tmp_path / "model.safetensors")), logits(trained))
    assert size < files.saved_bytes(trained) or name in ("student", "resnet", "cnn")        # a header can outweigh tiny weights


@pytest.mark.parametrize("method, bits", CASES)
def test_a_model_in_training_is_saved_and_loaded_too(method, bits, tmp_path):
    fake = fake_quantized(tiny("lenet5"), bits, method=method, activations=8)
    fake, _ = training.fit(fake, SPLIT, epochs=1, lr=0.01)
    files.save(fake, tmp_path / "model.safetensors")
    again = files.load(tmp_path / "model.safetensors")
    assert same(state(again), state(fake)) and torch.equal(logits(again), logits(fake))
    assert torch.equal(logits(to_stored(again)), logits(fake))


@pytest.mark.parametrize("method, bits", CASES)
def test_the_arguments_stay_as_they_were(method, bits):
    model = tiny("resnet")
    before, architecture, text = state(model), model.architecture, repr(model)
    fake = fake_quantized(model, bits, method=method, activations=4)
    trained, _ = training.fit(fake, SPLIT, epochs=1, lr=0.01)
    for parameter in fake.parameters():
        parameter.data.add_(1)
    assert same(state(model), before) and model.architecture == architecture and repr(model) == text
    during, notes, text = state(trained), trained.architecture, repr(trained)
    to_stored(trained)
    assert same(state(trained), during) and trained.architecture == notes and repr(trained) == text


def test_the_stored_numbers_are_packed():
    stored = to_stored(fake_quantized(tiny("mlp"), 2))
    layers = [m for m in stored.modules() if isinstance(m, StoredLayer)]
    assert [layer.form.packed.numel() for layer in layers] == [256 * 5 * 2 // 8, -(-5 * 10 * 2 // 8)]
    assert not any(isinstance(m, FakeForm) for m in stored.modules()) and not list(layers[0].form.parameters())
    assert isinstance(to_stored(fake_quantized(tiny("mlp"), 1, method="learned step"))[1].form, SignForm)


def test_skipped_layers_and_a_layer_called_layer_keep_their_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x):
            return self.inner(self.layer(x).relu())

    torch.manual_seed(0)
    x = torch.randn(7, 4)
    fake = fake_quantized(Net(), 2, skip=("inner.0",), activations=8).train()
    fake(x)
    assert type(fake.inner[0]) is nn.Linear and isinstance(fake.layer, FakeInput) and isinstance(fake.inner[1].layer, StoredLayer)
    stored = to_stored(fake)
    assert torch.equal(logits(stored, x), logits(fake, x))


def test_a_model_that_is_one_layer():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    for activations in (None, 8):
        fake = fake_quantized(layer, 3, activations=activations).train()
        fake(x)
        assert torch.equal(logits(to_stored(fake), x), logits(fake, x))


def test_the_grid_follows_the_weights_in_training():
    fake = fake_quantized(tiny("mlp"), 2)
    trained, _ = training.fit(fake, SPLIT, epochs=2, lr=0.05)
    form = trained[1].form
    assert form.grid.scale != fake[1].form.grid.scale and torch.equal(form.grid.scale, grid_for(form.weight, 2).scale)


def test_an_execution_of_one_layer_multiplies_as_before():
    model = tiny("cnn")
    for activations in (None, 8):
        fake = fake_quantized(model, 2, activations=activations).train()
        fake(SPLIT.images)
        costs = [(layer.macs, layer.operands) for layer in cost.layer_costs(fake, SPLIT.images[:1])]
        assert costs == [(layer.macs, layer.operands) for layer in cost.layer_costs(model, SPLIT.images[:1])]


# --- activations ---

def test_activations_equal_pytorchs_fake_quantization_with_a_moving_average():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
        reference = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)
    ours = FakeInput(nn.Identity(), 8)
    for seed in range(6):
        x = values(seed) + seed / 3
        for mine, theirs in zip(gradients(ours, x), gradients(reference, x)):
            assert torch.equal(mine, theirs)
    assert ours.grid.scale == reference.scale.item()
    ours.eval(), reference.disable_observer()
    x = values(8) * 3                   # the range stays what it was, so that some are clamped
    for mine, theirs in zip(gradients(ours, x), gradients(reference, x)):
        assert torch.equal(mine, theirs)


def test_the_range_of_activations_is_not_known_before_training():
    fake = fake_quantized(tiny("mlp"), 4, activations=4)
    with pytest.raises(ValueError, match="not known yet"):
        logits(fake)


# --- what is refused ---

@pytest.mark.parametrize("bits, more, message", [
    (0, {}, "bits"), (17, {}, "bits"), (2.0, {}, "bits"), (True, {}, "bits"), (2, {"method": "sign"}, "one bit"),
    (2, {"method": "lsq"}, "min-max, sign, learned step"), (2, {"axis": 1}, "axis None or 0"), (2, {"skip": ("fc",)}, "no layer named"),
    (2, {"activations": 0}, "bits"), (2, {"activations": 17}, "bits")])
def test_bad_arguments_are_refused(bits, more, message):
    with pytest.raises(ValueError, match=message):
        fake_quantized(tiny("mlp"), bits, **more)


def test_models_without_layers_or_without_numbers_are_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        fake_quantized(nn.Sequential(nn.ReLU()), 2)
    model = tiny("mlp")
    model[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fake_quantized(model, 2)
    for plain in (tiny("mlp"), quantize_weights(tiny("mlp"), 8), to_stored(fake_quantized(tiny("mlp"), 8))):
        with pytest.raises(ValueError, match="fake_quantized"):
            to_stored(plain)


@pytest.mark.parametrize("method", ["min-max", "learned step", "sign"])
def test_weights_that_are_all_zero_do_not_stop_it(method):
    model = tiny("mlp")
    model[1].weight.data.zero_()
    fake = fake_quantized(model, 1 if method == "sign" else 2, method=method)
    assert logits(fake).isfinite().all() and torch.equal(logits(to_stored(fake)), logits(fake))


def test_weights_that_diverged_are_named_when_they_are_rounded():
    fake = fake_quantized(tiny("mlp"), 2)
    fake[1].form.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="finite"):
        to_stored(fake)


def test_every_method_is_tested_here():
    assert TRAINED_METHODS.keys() == {method for method, _ in CASES} and TRAINED_METHODS["min-max"] is FakeMinMax


def test_a_grid_along_another_axis_is_refused():
    w = torch.rand(4, 4)
    for options in ({"axis": 1}, {"group": 2}):
        with pytest.raises(ValueError, match="axis 0"):
            fake_quantize_through(w, grid_for(w, 4, **options))
