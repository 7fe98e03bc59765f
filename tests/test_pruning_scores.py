"""Scores equal what they say, computed another way; they judge the model as it is and leave it so."""
import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from course_lib import pruning
from helpers import TINY, random_split, same, state, tiny

SPLIT = random_split(12, channels=3)
IMAGES, LABELS = SPLIT.images, SPLIT.labels
SCORES = {"magnitude": pruning.magnitude,
          "taylor": lambda model: pruning.taylor(model, IMAGES, LABELS),
          "activation": lambda model: pruning.activation(model, IMAGES),
          "at_random": lambda model: pruning.at_random(model, seed=1)}


def close(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **tolerance)


def with_dropout():
    """A net that computes something else in training mode, and whose output depends on the random numbers there."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(10))


# --- all of them ---

@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("name", sorted(TINY))
def test_scores_fit_the_weights_and_are_not_negative(name, score):
    model = tiny(name, channels=3)
    scores, weights = score(model), pruning.prunable(model)
    assert list(scores) == list(weights)
    for n, weight in weights.items():
        assert scores[n].shape == weight.shape and not scores[n].requires_grad and (scores[n] >= 0).all()
        assert scores[n].any() and torch.isfinite(scores[n]).all()


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("training", [True, False])
def test_a_score_leaves_the_model_and_the_random_numbers_as_they_were(score, training):
    model = with_dropout()
    model(IMAGES)
    F.cross_entropy(model(IMAGES), LABELS).backward()
    model[0].weight.requires_grad_(False)
    model.train(training)
    before, grads = state(model), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random_before = torch.get_rng_state()
    scores = score(model)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert same(state(model), before) and model.training == training == model[3].training
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    for parameter, gradient in zip(model.parameters(), grads):
        assert torch.equal(parameter.grad, gradient)
    assert not any(module._forward_pre_hooks for module in model.modules())
    close(score(model), scores, rtol=0, atol=0)                        # and so the answer is the same again
    close(score(copy.deepcopy(model).eval()), scores, rtol=0, atol=0)  # judged in evaluation mode


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_can_be_asked_for_where_gradients_are_off(score):
    """As in a training callback; influence needs gradients of its own."""
    model = tiny("cnn", channels=3)
    with torch.no_grad():
        inside = score(model)
    close(inside, score(model), rtol=0, atol=0)


# --- magnitude and random ---

def test_magnitude_is_the_size_of_the_weight():
    model = tiny("resnet", channels=3)
    assert same(pruning.magnitude(model), {name: w.detach().abs() for name, w in pruning.prunable(model).items()})


def test_random_scores_depend_on_the_seed_alone():
    model, other = tiny("cnn", seed=0), tiny("cnn", seed=1)
    torch.manual_seed(5)
    first = pruning.at_random(model, seed=7)
    torch.manual_seed(6)
    assert same(first, pruning.at_random(other, seed=7)) and not same(first, pruning.at_random(model, seed=8))
    values = torch.cat([s.flatten() for s in pruning.at_random(tiny("lenet_300_100"), seed=0).values()])
    assert 0 <= values.min() and values.max() < 1 and abs(values.mean() - 0.5) < 0.01 and len(values.unique()) > 0.9 * len(values)


# --- Taylor ---

def squared_influence(model, images, labels):
    """(w · g)² by torch.func, the whole data in one go."""
    model = copy.deepcopy(model).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters):
        return F.cross_entropy(functional_call(model, (parameters, buffers), (images,)), labels)

    gradients = grad(loss)(parameters)
    return {name: (parameters[name] * gradients[name]) ** 2 for name in pruning.prunable(model)}


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("batch_size", [128, 12, 5, 1])
def test_taylor_equals_torch_func_at_any_batch_size(name, batch_size):
    model = tiny(name, channels=3).double()
    images = IMAGES.double()
    close(pruning.taylor(model, images, LABELS, batch_size=batch_size), squared_influence(model, images, LABELS),
          rtol=1e-9, atol=1e-18)


def test_taylor_by_hand():
    """One image, two classes: p = (½, ½), so ∂L/∂w = (p − one-hot) · x = (−x/2, x/2), and w is (1, 1)."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    scores = pruning.taylor(model, torch.tensor([[4.0, 2.0]]), torch.tensor([0]))
    assert scores["weight"].tolist() == [[4.0, 1.0], [4.0, 1.0]]


@pytest.mark.parametrize("size", [1e-3, 1e-4])
def test_the_loss_changes_by_the_root_of_the_score_if_a_small_weight_is_zeroed(size):
    """To first order: the error shrinks like the square of the weight, while the change shrinks like the weight."""
    model = tiny("mlp", channels=3).double()
    images, places = IMAGES.double(), [("1.weight", 7), ("1.weight", 700), ("3.weight", 3), ("3.weight", 30)]
    with torch.no_grad():
        for name, place in places:
            model.get_parameter(name).view(-1)[place] = size
    scores, base = pruning.taylor(model, images, LABELS), F.cross_entropy(model(images), LABELS)
    for name, place in places:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[place] = 0
            change = abs(F.cross_entropy(changed(images), LABELS) - base)
        assert abs(float(change) - math.sqrt(scores[name].view(-1)[place])) < size ** 2 and change > size ** 2 / 10


def test_a_layer_that_does_not_run_has_no_influence():
    model = tiny("mlp", channels=3)
    model.add_module("spare", nn.Identity())
    model.spare.weight = nn.Parameter(torch.ones(2, 2))
    assert pruning.taylor(model, IMAGES, LABELS)["spare.weight"].tolist() == [[0, 0], [0, 0]]


def test_weights_that_are_frozen_have_an_influence_too():
    model = tiny("cnn", channels=3)
    expected = pruning.taylor(model, IMAGES, LABELS)
    close(pruning.taylor(model.requires_grad_(False), IMAGES, LABELS), expected, rtol=0, atol=0)


# --- activation ---

def brute_force(model, images):
    """|w| times the rms of the input's channel, from the recorded inputs, number by number."""
    inputs, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            handles.append(module.register_forward_pre_hook(lambda m, args, n=name: inputs.update({n: args[0].detach()})))
    model(images)
    for handle in handles:
        handle.remove()
    scores = {}
    for name, x in inputs.items():
        weight = model.get_submodule(name).weight
        key = f"{name}.weight".lstrip(".")
        scores[key] = torch.empty_like(weight.detach())
        for channel in range(weight.shape[1]):
            seen = x[:, channel] if isinstance(model.get_submodule(name), nn.Conv2d) else x[..., channel]
            rms = math.sqrt(sum(v * v for v in seen.flatten().tolist()) / seen.numel())
            scores[key][:, channel] = weight[:, channel].detach().abs() * rms
    return scores


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("batch_size", [500, 12, 5, 1])
def test_activation_equals_brute_force_at_any_batch_size(name, batch_size):
    """The models have padding, strides, pooling and shortcuts; 12 images are no multiple of 5."""
    model = tiny(name, channels=3)
    expected = brute_force(model, IMAGES)
    scores = pruning.activation(model, IMAGES, batch_size=batch_size)
    close(scores, {n: expected[n] for n in scores}, rtol=1e-4, atol=1e-7)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_activation_of_any_convolution_equals_brute_force(channels, kernel, padding, stride, n):
    torch.manual_seed(n)
    model = nn.Sequential(nn.Conv2d(channels, 3, kernel, padding=padding, stride=stride), nn.ReLU(), nn.Conv2d(3, 2, 1))
    images = torch.randn(n, channels, 6, 6)
    close(pruning.activation(model, images, batch_size=3), brute_force(model, images), rtol=1e-4, atol=1e-7)


def test_activation_by_hand():
    """Inputs (3, 1) and (4, 1): rms √12.5 and 1. A large weight on a faint input scores less than a small one."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 2.0]]))
    scores = pruning.activation(model, torch.tensor([[3.0, 1.0], [4.0, 1.0]]))
    torch.testing.assert_close(scores["weight"], torch.tensor([[math.sqrt(12.5), 2.0]]))


def test_activation_on_sequences_counts_every_place():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(True)
    images = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0))
    close(pruning.activation(model, images, batch_size=2), brute_force(model, images), rtol=1e-5, atol=1e-7)


class Twice(nn.Module):
    """A layer that runs twice, and one that never does."""

    def __init__(self, times):
        super().__init__()
        self.layer, self.times = nn.Linear(4, 4), times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("model, images, message", [
    (Twice(2), torch.ones(3, 4), "the layer of layer.weight must run exactly once for each batch"),
    (Twice(0), torch.ones(3, 4), "the layer of layer.weight must run exactly once for each batch"),
    (nn.Conv2d(4, 4, 1, groups=2), torch.ones(3, 4, 2, 2), "an ungrouped 2-d convolution"),
    (nn.Conv2d(4, 4, 1, groups=4), torch.ones(3, 4, 2, 2), "an ungrouped 2-d convolution"),
    (nn.Conv1d(4, 4, 1), torch.ones(3, 4, 2), "an ungrouped 2-d convolution"),
    (nn.ConvTranspose2d(4, 4, 1), torch.ones(3, 4, 2, 2), "an ungrouped 2-d convolution"),
    (nn.Linear(4, 4), torch.ones(0, 4), "need at least one image"),
], ids=["twice", "never", "grouped", "depthwise", "1-d", "transposed", "no images"])
def test_activation_refuses_what_it_cannot_score_and_leaves_the_model_alone(model, images, message):
    before = state(model)
    with pytest.raises(ValueError, match=message):
        pruning.activation(model, images)
    assert same(state(model), before) and not any(m._forward_pre_hooks for m in model.modules())


# --- which to remove ---

def test_the_scores_disagree_and_each_removes_its_own_choice():
    """A large weight on an input that is always zero: magnitude keeps it, influence and activation do not."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 9.0], [2.0, 9.0]]))
    images, labels = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    zeros = {"magnitude": [[True, False], [True, False]], "taylor": [[False, True]] * 2, "activation": [[False, True]] * 2}
    chosen = {"magnitude": None, "taylor": pruning.taylor(model, images, labels), "activation": pruning.activation(model, images)}
    for name, scores in chosen.items():
        assert (pruning.prune(model, amount=0.5, scores=scores).weight == 0).tolist() == zeros[name]
