"""Models have the famous sizes, take any image, and can be built again from their description."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from course_lib import models
from helpers import TINY, same, state


@pytest.mark.parametrize("name, parameters", [
    ("mlp", 101_770),               # 784·128 + 128 + 128·10 + 10, the source article's
    ("cnn", 34_826),                # the source article's
    ("lenet_300_100", 266_610),     # Han et al. 2015 write 266K
    ("lenet5", 431_080),            # 431K there
    ("student", 3_146),
])
def test_default_models_have_the_parameter_counts_of_the_literature(name, parameters):
    assert sum(p.numel() for p in models.BUILDERS[name]().parameters()) == parameters


def test_small_networks_by_hand():
    """MLP 4-3-2: 4·3 + 3 + 3·2 + 2. Residual network of width 2: stem 9·2 + 4; first block 2 · (36 + 4);
    second block 72 + 8 + 144 + 8 and the shortcut 8 + 8; dense 4·10 + 10."""
    def count(model):
        return sum(p.numel() for p in model.parameters())
    assert count(models.mlp(1, 2, 2, hidden=(3,))) == 23
    assert count(models.resnet(1, 8, width=2)) == 22 + 80 + 248 + 50


@given(name=st.sampled_from(sorted(TINY)), channels=st.sampled_from([1, 3]), size=st.integers(20, 40),
       n=st.integers(1, 3), classes=st.integers(2, 12))
@settings(max_examples=40)
def test_any_image_gives_one_row_of_logits(name, channels, size, n, classes):
    model = models.BUILDERS[name](channels, size, classes, **TINY[name]).eval()
    logits = model(torch.rand(n, channels, size, size))
    assert logits.shape == (n, classes) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", sorted(models.BUILDERS))
def test_a_model_is_built_again_from_its_architecture_in_json(name):
    model = models.BUILDERS[name](3, 20, classes=4, **TINY[name])
    again = models.build(json.loads(json.dumps(model.architecture)))
    assert type(again) is type(model) and repr(again) == repr(model)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}
    assert json.dumps(again.architecture) == json.dumps(model.architecture)


@pytest.mark.parametrize("name", sorted(models.BUILDERS))
def test_the_same_seed_gives_the_same_weights(name):
    def built(seed):
        torch.manual_seed(seed)
        return state(models.BUILDERS[name](1, 20, **TINY[name]))
    assert same(built(3), built(3)) and not same(built(3), built(4))


@pytest.mark.parametrize("name, smallest", [("cnn", 10), ("lenet5", 16)])
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name, smallest):
    models.BUILDERS[name](1, smallest)(torch.rand(1, 1, smallest, smallest))
    with pytest.raises(ValueError, match="image_size is too small: nothing is left after the convolutions"):
        models.BUILDERS[name](1, smallest - 1)


def test_a_residual_block_without_a_body_passes_positive_inputs_on():
    block = models.ResidualBlock(2, 2, 1).eval()
    torch.nn.init.zeros_(block.body[-1].weight)         # the last normalisation scales F(x) to zero
    x = torch.rand(1, 2, 4, 4)
    assert torch.equal(block(x), x)


def test_the_cnn_computes_what_its_layers_say():
    """Written out once more with functions: a missing or another non-linearity would differ."""
    model, x = models.cnn().eval(), torch.randn(3, 1, 28, 28)
    w = list(model.parameters())
    h = F.max_pool2d(F.relu(F.conv2d(x, w[0], w[1])), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, w[2], w[3])), 2)
    torch.testing.assert_close(model(x), F.linear(h.flatten(1), w[4], w[5]))


def test_the_dense_networks_compute_what_their_layers_say():
    x = torch.randn(3, 1, 28, 28)
    for model in (models.mlp(), models.lenet_300_100()):
        *hidden, last = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        h = x.flatten(1)
        for layer in hidden:
            h = F.relu(F.linear(h, layer.weight, layer.bias))
        torch.testing.assert_close(model(x), F.linear(h, last.weight, last.bias))


def test_lenet5_computes_what_its_layers_say():
    model, x = models.lenet5().eval(), torch.randn(2, 1, 28, 28)
    w = list(model.parameters())
    h = F.max_pool2d(F.conv2d(F.max_pool2d(F.conv2d(x, w[0], w[1]), 2), w[2], w[3]), 2)
    torch.testing.assert_close(model(x), F.linear(F.relu(F.linear(h.flatten(1), w[4], w[5])), w[6], w[7]))


def test_a_residual_block_ends_in_relu_of_body_plus_shortcut():
    block = models.ResidualBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), F.relu(block.body(x) + x))
