"""Folding of batch normalisation: same outputs, one layer less, and a refusal wherever that is not certain."""
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from course_lib import files, models
from course_lib.quantization.folding import fold_batch_norm
from helpers import IMAGE_SIZE, TINY, same, state, tiny


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def shaken(model, seed=0):
    """The model with batch normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        for tensor, low, high in [(norm.running_mean, -1, 1), (norm.running_var, 0.2, 3)]:
            tensor.uniform_(low, high, generator=generator)
        if norm.affine:
            nn.init.uniform_(norm.weight, -2, 2, generator=generator)
            nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    return model.eval()


def relative_difference(model, folded, x):
    with torch.no_grad():
        expected = model(x)
        return float((folded(x) - expected).abs().max() / expected.abs().max())


def test_one_channel_by_hand():
    """γ = 3, σ = 2, μ = 1, β = 5: 3 · (4x + 7 − 1) / 2 + 5 = 6x + 14."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    model.load_state_dict({"0.weight": torch.tensor([[4.0]]), "0.bias": torch.tensor([7.0]), "1.weight": torch.tensor([3.0]),
                           "1.bias": torch.tensor([5.0]), "1.running_mean": torch.tensor([1.0]),
                           "1.running_var": torch.tensor([4.0]), "1.num_batches_tracked": torch.tensor(1)})
    folded = fold_batch_norm(model)
    assert folded[0].weight.item() == 6 and folded[0].bias.item() == 14
    assert type(folded[1]) is nn.Identity


@pytest.mark.parametrize("name", ["student", "resnet"])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_stay(name, dtype, limit, seed):
    model = shaken(tiny(name, seed=seed), seed).to(dtype)
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert relative_difference(model, folded, torch.rand(20, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype)) < limit


@given(st.integers(0, 1000), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_a_convolution_equals_pytorch(seed, bias, affine, groups):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(4, 6, 3, bias=bias, groups=groups), nn.BatchNorm2d(6, affine=affine, eps=0.01)
    folded = fold_batch_norm(shaken(nn.Sequential(conv, norm), seed))[0]
    expected = fuse_conv_bn_eval(conv, norm)
    assert torch.equal(folded.weight, expected.weight)
    assert torch.allclose(folded.bias, expected.bias, rtol=1e-5, atol=1e-6)      # PyTorch multiplies in another order


@given(st.integers(0, 1000), st.booleans())
def test_a_linear_layer_equals_pytorch(seed, bias):
    torch.manual_seed(seed)
    linear, norm = nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6)
    folded = fold_batch_norm(shaken(nn.Sequential(linear, norm), seed))[0]
    expected = fuse_linear_bn_eval(linear, norm)
    assert torch.equal(folded.weight, expected.weight) and torch.equal(folded.bias, expected.bias)


class Branches(nn.Module):
    """Not a Sequential; found all the same."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


def test_the_data_is_followed_and_not_the_order_of_the_layers():
    model = shaken(Branches())
    assert relative_difference(model, fold_batch_norm(model), torch.rand(4, 1, 8, 8)) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_the_argument_stays(training):
    model = tiny("resnet")
    model[0].train(training)                # not a normalisation, so its mode does not matter
    before = state(model)
    folded = fold_batch_norm(model)
    assert same(before, state(model)) and len(norms(model)) == 6 and model[0].training == training
    assert not any(m.training for m in folded.modules())
    assert all(a is not b for a in folded.parameters() for b in model.parameters())


@pytest.mark.parametrize("name", ["student", "resnet"])
def test_saved_and_loaded(name, tmp_path):
    folded = fold_batch_norm(shaken(tiny(name)))
    files.save(folded, tmp_path / "folded")
    again = files.load(tmp_path / "folded")
    assert same(state(folded), state(again)) and repr(folded) == repr(again)
    x = torch.rand(3, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        assert torch.equal(folded(x), again(x))


@pytest.mark.parametrize("name", sorted(set(TINY) - {"student", "resnet"}))
def test_nothing_to_fold_is_a_plain_copy(name):
    model = tiny(name)
    folded = fold_batch_norm(model)
    assert same(state(model), state(folded)) and folded is not model and folded.architecture == model.architecture


def test_folding_twice_is_folding_once():
    folded = fold_batch_norm(tiny("student"))
    assert same(state(folded), state(fold_batch_norm(folded)))


# --- refusals ---

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)


class ConvTwice(Twice):
    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


class ReadTwice(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class NormTwice(Twice):
    def forward(self, x):
        return self.norm(self.norm(self.conv(x)))


class Decides(Twice):
    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


class Functional(Twice):
    def forward(self, x):
        return self.norm(torch.relu(self.conv(x)))


def tied():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
    model[2].weight = model[0].weight
    return model


def hooked():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("model, message", [
    (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)), "0 must stand directly behind .* behind input"),
    (nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)), "behind ReLU"),
    (nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)), "2 must stand .* behind BatchNorm2d"),
    (nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2)), "behind ConvTranspose2d"),
    (Functional(), "other is called 0 times|behind relu"), (ConvTwice(), "conv is used by more|called 0 times"),
    (ReadTwice(), "conv is used by more"), (NormTwice(), "called 2 times"), (Decides(), "decides by its input"),
    (tied(), "0 is used by more"), (hooked(), "hooks"),
    (nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)), "statistics of the batch")])
def test_what_cannot_be_followed_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        fold_batch_norm(model.eval())


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval()"):
        fold_batch_norm(models.student().train())
