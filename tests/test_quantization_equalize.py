"""Equalisation changes no output and makes the ranges equal; bias correction takes the mean error away."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_lib import files, models
from course_lib.quantization.equalize import correct_bias, equalize_channels, neighbours
from course_lib.quantization.stored import StoredLayer, quantize_weights
from helpers import random_split, same, state, tiny


def ranges(maker, reader):
    """max |w| of each channel, where it is made and where it is read, by a loop."""
    channels, each = len(maker.weight), reader.weight.shape[1] // len(maker.weight)
    return [(float(maker.weight[i].detach().abs().max()), float(reader.weight[:, i * each:(i + 1) * each].detach().abs().max()))
            for i in range(channels)]


def uneven(model, seed=0):
    """Give the channels very different ranges, as trained networks with batch normalisation have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if type(layer) in (nn.Linear, nn.Conv2d):
                layer.weight *= torch.exp(2 * torch.randn(len(layer.weight), generator=generator)).reshape(
                    -1, *[1] * (layer.weight.dim() - 1))
    return model


# --- equalisation ---

def test_two_channels_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[4.0], [-1.0]])
    model[0].bias.data = torch.tensor([8.0, 3.0])
    model[2].weight.data = torch.tensor([[1.0, 9.0]])
    equal = equalize_channels(model)
    # Ranges 4 and 1: both become 2. Ranges 1 and 9: both become 3.
    assert equal[0].weight.tolist() == [[2.0], [-3.0]] and equal[0].bias.tolist() == [4.0, 9.0]
    assert equal[2].weight.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("name, pairs", [("mlp", ["1 3"]), ("lenet_300_100", ["1 3", "3 5"]), ("cnn", ["0 3", "3 7"]),
                                         ("lenet5", ["0 2", "2 5", "5 7"])])
def test_outputs_stay_and_ranges_become_equal(name, pairs, tmp_path):
    model = uneven(tiny(name))
    before = state(model)
    equal = equalize_channels(model, rounds=100)
    assert same(state(model), before)
    assert [" ".join(pair) for pair in neighbours(model)] == pairs
    images = random_split(20).images
    with torch.no_grad():
        wanted, got = model(images), equal(images)
    assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    for pair in pairs:
        for made, read in ranges(*(equal[int(i)] for i in pair.split())):
            assert made == pytest.approx(read, rel=1e-3)
    files.save(equal, tmp_path / "model")
    assert same(state(files.load(tmp_path / "model")), state(equal))


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 4))
def test_one_round_is_enough_for_one_pair(seed, width, outputs):
    torch.manual_seed(seed)
    model = uneven(nn.Sequential(nn.Conv2d(2, width, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, outputs)), seed)
    equal = equalize_channels(model, rounds=1)
    assert all(made == pytest.approx(read, rel=1e-5) for made, read in ranges(equal[0], equal[4]))
    images = torch.rand(3, 2, 5, 5)
    torch.testing.assert_close(equal(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_channel_that_is_never_made_or_never_read_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1], model[2].weight[:, 2] = 0, 0
    equal = equalize_channels(model)
    assert torch.equal(equal[0].weight[1:3], model[0].weight[1:3]) and torch.equal(equal[0].bias[1:3], model[0].bias[1:3])
    assert bool(equal[2].weight.isfinite().all()) and not torch.equal(equal[0].weight[0], model[0].weight[0])


def test_padding_and_strides_do_not_matter_but_groups_and_other_activations_part():
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, groups=2), nn.MaxPool2d(2),
                         nn.Conv2d(4, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 2, 1))
    assert neighbours(conv) == [("2", "4")]
    images = torch.rand(3, 1, 9, 9)
    torch.testing.assert_close(equalize_channels(uneven(conv))(images), conv(images), rtol=1e-4, atol=1e-5)


def test_equal_ranges_repair_a_scale_for_the_whole_tensor():
    model = uneven(tiny("lenet_300_100"))
    images = random_split(30).images

    def error(candidate):
        with torch.no_grad():
            return float(((candidate(images) - model(images)) ** 2).mean())

    assert error(quantize_weights(equalize_channels(model), 6, axis=None)) < error(quantize_weights(model, 6, axis=None)) / 3


TANH, TWICE = nn.Tanh(), nn.Linear(2, 2)


@pytest.mark.parametrize("model, message", [
    (tiny("resnet")[4], "nn.Sequential; got ResidualBlock"), (tiny("student")[:4], "batch normalisation to be folded first"),
    (nn.Sequential(nn.Linear(2, 2)), "no two linear layers"),
    (nn.Sequential(nn.Linear(2, 2), TANH, nn.Linear(2, 2), TANH, nn.Linear(2, 2)), "no two linear layers"),
    (nn.Sequential(TWICE, nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), TWICE), "is shared")])
def test_what_cannot_be_equalised(model, message):
    with pytest.raises(ValueError, match=message):
        equalize_channels(model)


# --- bias correction ---

def layer_means(model, images):
    """The mean output of each channel of each layer of a Sequential, by running it step by step."""
    means, x = [], images
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, (StoredLayer, nn.Linear, nn.Conv2d)):
                means.append(x.transpose(0, 1).reshape(x.shape[1], -1).mean(dim=1))
    return means


@pytest.mark.parametrize("name", ["mlp", "lenet_300_100", "cnn", "lenet5"])
def test_the_mean_error_of_every_layer_is_gone(name, tmp_path):
    model, images = tiny(name), random_split(50).images
    rounded = quantize_weights(model, 2)
    before = state(rounded)
    corrected = correct_bias(rounded, model, images)
    assert same(state(rounded), before)
    for wanted, worse, got in zip(*(layer_means(m, images) for m in (model, rounded, corrected))):
        assert float((got - wanted).abs().max()) < 1e-5 < float((worse - wanted).abs().max())
    assert [n for n in before if not torch.equal(before[n], state(corrected)[n])] == [n for n in before if n.endswith("bias")]
    files.save(corrected, tmp_path / "model")
    assert same(state(files.load(tmp_path / "model")), state(corrected))


def test_the_mean_of_a_linear_layer_on_sequences_is_taken_for_each_output():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    rounded, sequences = quantize_weights(model, 2), torch.rand(6, 7, 3)
    corrected = correct_bias(rounded, model, sequences)
    with torch.no_grad():
        wanted, got = (m(sequences).flatten(0, 1).mean(0) for m in (model, corrected))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_one_layer_by_hand():
    model = models.mlp(1, 1, classes=1, hidden=(1,))
    for layer, weight in ((model[1], 1.0), (model[3], 1.0)):
        layer.weight.data, layer.bias.data = torch.tensor([[weight]]), torch.tensor([0.0])
    rounded = quantize_weights(model, 8)
    rounded[1].form.scale *= 2          # x becomes 2·s·x with the scale s·127 = 127/127.5: more than 1
    images = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    corrected = correct_bias(rounded, model, images)
    factor = float(rounded[1].form.decode())
    assert corrected[1].bias.item() == pytest.approx(2 - 2 * factor)
    with torch.no_grad():
        assert float(corrected(images).mean()) == pytest.approx(float(model(images).mean()), rel=1e-6)


def test_modes_and_hooks_are_left_as_they_were():
    model = tiny("cnn").train()
    rounded = quantize_weights(model, 4)
    correct_bias(rounded, model, random_split(5).images)
    assert model.training and not any(layer._forward_hooks for m in (model, rounded) for layer in m.modules())


def test_bad_input_to_bias_correction():
    model = tiny("cnn")
    with pytest.raises(ValueError, match="0 stored layers"):
        correct_bias(model, model, random_split(5).images)
    with pytest.raises(ValueError, match="0 images"):
        correct_bias(quantize_weights(model, 4), model, random_split(5).images[:0])
    with pytest.raises(ValueError, match="fold the batch normalisation"):
        correct_bias(quantize_weights(tiny("student"), 4), tiny("student"), random_split(5).images)
