"""In every group of m neighbours exactly the n best stay: by brute force, and as PyTorch's sparsifier has it."""
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import models, pruning, training
from helpers import random_split, same, state, tiny

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def model_of(weight):
    """A layer with this weight: linear, or a convolution."""
    layer = nn.Linear(1, 1) if weight.dim() == 2 else nn.Conv2d(1, 1, 1)
    layer.weight = nn.Parameter(weight)
    return layer


@st.composite
def cases(draw):
    """Weights of a linear layer or a convolution, with ties and zeros, and a pattern that fits."""
    m = draw(st.integers(1, 5))
    n = draw(st.integers(1, m))
    places = draw(st.sampled_from([(), (1, 1), (2, 3)]))
    shape = (draw(st.integers(1, 3)), m * draw(st.integers(1, 3)), *places)
    values = st.sampled_from([0.0, -0.0, 0.25, -0.25, 1.0, -2.0]) | st.floats(-4, 4, width=16)
    count = math.prod(shape)
    weight = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.float64).view(shape)
    return weight.to(draw(DTYPES)), n, m


def groups_of(tensor, m):
    """Every group as a list, by brute force: one output, one place, m neighbouring inputs."""
    flat = tensor.flatten(2) if tensor.dim() > 2 else tensor[..., None]
    return [[flat[o, i + j, p].item() for j in range(m)]
            for o in range(flat.shape[0]) for p in range(flat.shape[2]) for i in range(0, flat.shape[1], m)]


def test_two_of_four_by_hand():
    """The example at the top of the module."""
    weight = torch.tensor([[0.9, 0.1, -0.3, 0.2, 0.0, 0.5, 0.4, -0.6]])
    pruned = pruning.prune_n_m(model_of(weight))
    assert torch.equal(pruned.weight, torch.tensor([[0.9, 0, -0.3, 0, 0, 0.5, 0, -0.6]]))


@given(cases())
@settings(max_examples=200)
def test_the_n_largest_of_every_group_stay(case):
    weight, n, m = case
    pruned = pruning.prune_n_m(model_of(weight.clone()), n=n, m=m).weight.detach()
    assert pruned.dtype == weight.dtype and pruned.shape == weight.shape and pruning.follows_pattern(pruned, n=n, m=m)
    for before, after in zip(groups_of(weight, m), groups_of(pruned, m)):
        assert all(b in (a, 0) for a, b in zip(before, after))                     # kept as it was, or removed
        assert sorted(abs(x) for x in after) == sorted([0.0] * (m - n) + sorted(abs(x) for x in before)[m - n:])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_with_ties_exactly_n_stay_and_those_that_come_first_go(n):
    pruned = pruning.prune_n_m(model_of(torch.full((2, 8), -0.7)), n=n).weight
    assert torch.equal(pruned != 0, torch.tensor(([False] * (4 - n) + [True] * n) * 2).repeat(2, 1))


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_sparsifier_of_pytorch(n, m, seed):
    from torch.ao.pruning import WeightNormSparsifier
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 8))
    ours = pruning.prune_n_m(model, n=n, m=m)
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, m), zeros_per_block=m - n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
        sparsifier.step()
        sparsifier.squash_mask()
    assert torch.equal(ours[0].weight, model[0].weight) and torch.equal(ours[2].weight, model[2].weight)


@given(cases())
@settings(max_examples=50)
def test_pruning_twice_changes_nothing_more(case):
    weight, n, m = case
    once = pruning.prune_n_m(model_of(weight), n=n, m=m)
    assert same(state(pruning.prune_n_m(once, n=n, m=m)), state(once))


def test_n_of_n_changes_nothing_and_the_share_is_exact():
    model = tiny("lenet_300_100")
    assert same(state(pruning.prune_n_m(model, n=4, m=4)), state(model))
    assert pruning.sparsity(pruning.prune_n_m(model)) == 0.5
    assert pruning.sparsity(pruning.prune_n_m(model, n=1)) == 0.75


def test_neighbours_in_a_convolution_are_channels_at_one_place():
    """Four channels of 1 × 2: at the left place channels 0 and 1 are large, at the right 2 and 3."""
    weight = torch.tensor([[9.0, 1], [8, 2], [3, 7], [4, 6]]).view(1, 4, 1, 2)
    pruned = pruning.prune_n_m(model_of(weight)).weight
    assert torch.equal(pruned, torch.tensor([[9.0, 0], [8, 0], [0, 7], [0, 6]]).view(1, 4, 1, 2))


# --- scores, layers ---

def test_the_scores_decide_and_what_is_gone_goes_first():
    weight = torch.tensor([[9.0, 8, 7, 6, 0, 5, 4, 3]])
    scores = {"weight": torch.tensor([[1.0, 2, 3, 4, 9, 1, 2, 3]])}
    pruned = pruning.prune_n_m(model_of(weight), scores=scores).weight
    assert pruned.tolist() == [[0, 0, 7, 6, 0, 0, 4, 3]]


def test_random_scores_leave_the_pattern_too():
    model = tiny("lenet_300_100")
    pruned = pruning.prune_n_m(model, scores=pruning.at_random(model, seed=3))
    assert all(pruning.follows_pattern(w) for w in pruning.prunable(pruned).values())
    assert not same(state(pruned), state(pruning.prune_n_m(model)))


@pytest.mark.parametrize("layers", [["3.weight"], ("3.weight",), "3.weight", iter(["3.weight"])])
def test_only_the_named_layers_are_pruned(layers):
    """The first convolution of the CNN has one channel, its dense layer 12 inputs."""
    model = models.cnn(1, 16, widths=(4, 3))
    pruned = pruning.prune_n_m(model, layers=layers)
    assert pruning.follows_pattern(pruned[3].weight)
    changed = [name for name, w in pruning.prunable(pruned).items() if not torch.equal(w, pruning.prunable(model)[name])]
    assert changed == ["3.weight"]


def test_a_layer_that_does_not_fit_is_refused_and_not_left_dense_in_silence():
    model = models.cnn(1, 16, widths=(4, 3))
    before = state(model)
    with pytest.raises(ValueError, match=r"2:4 needs a number of inputs that is a multiple of 4; it is not in 0.weight \(1\)\. "
                                         r"Name the weights to prune in layers=\[…\], and the others stay dense"):
        pruning.prune_n_m(model)
    assert same(state(model), before)


@pytest.mark.parametrize("options, message", [
    ({"n": 0}, "1 <= n <= m, such as 2:4; got 0:4"), ({"n": 5}, "got 5:4"), ({"n": True}, "got True:4"),
    ({"n": 2.0}, "got 2.0:4"), ({"m": -4}, "got 2:-4"), ({"m": "4"}, "got 2:'4'"),
    ({"n": 3, "m": 7}, r"3:7 needs a number of inputs that is a multiple of 7; it is not in 1.weight \(256\)"),
    ({"layers": ["9.weight"]}, "layers must name weights of the model, among 1.weight, 3.weight, 5.weight; got 9.weight"),
    ({"layers": ["1.bias"]}, "got 1.bias"), ({"layers": []}, "got none"),
    ({"scores": {"1.weight": torch.ones(300, 256)}}, "scores must have the names and shapes of the weights"),
])
def test_a_bad_call_says_what_was_wrong(options, message):
    model = tiny("lenet_300_100")
    before = state(model)
    with pytest.raises(ValueError, match=message):
        pruning.prune_n_m(model, **options)
    assert same(state(model), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_and_scores_that_are_not_finite_are_refused(bad):
    model = tiny("lenet_300_100")
    scores = pruning.magnitude(model)
    scores["3.weight"][1, 2] = bad
    with pytest.raises(ValueError, match="scores must be finite; got NaN or infinity"):
        pruning.prune_n_m(model, scores=scores)
    with torch.no_grad():
        model[3].weight[1, 2] = bad
    with pytest.raises(ValueError, match="weights must be finite; got NaN or infinity"):
        pruning.prune_n_m(model)


def test_a_shared_layer_and_a_model_without_weights_are_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="are one and the same weight"):
        pruning.prune_n_m(nn.Sequential(layer, layer))
    with pytest.raises(ValueError, match="nothing to prune"):
        pruning.prune_n_m(nn.ReLU())


# --- follows_pattern ---

@given(cases())
@settings(max_examples=100)
def test_following_a_pattern_by_brute_force(case):
    weight, n, m = case
    expected = all(sum(x != 0 for x in group) <= n for group in groups_of(weight, m))
    assert pruning.follows_pattern(weight, n=n, m=m) is expected


def test_half_of_the_weights_is_not_yet_a_pattern():
    assert pruning.follows_pattern(torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 3]]))
    assert not pruning.follows_pattern(torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]]))
    assert not pruning.follows_pattern(torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 1]]))


@pytest.mark.parametrize("shape", [(4,), (2, 6), (2, 3, 4, 4)])
def test_a_weight_that_cannot_follow_is_refused(shape):
    with pytest.raises(ValueError, match=r"2:4 needs a weight of shape \(outputs, inputs, …\) with a multiple of 4 inputs"):
        pruning.follows_pattern(torch.zeros(shape))
    with pytest.raises(ValueError, match="got 3:2"):
        pruning.follows_pattern(torch.zeros(2, 4), n=3, m=2)


# --- models ---

def test_the_argument_stays_and_so_do_biases():
    model = tiny("lenet_300_100").train()
    before = state(model)
    pruned = pruning.prune_n_m(model)
    assert same(state(model), before) and model.training and pruned.architecture == model.architecture
    assert all(torch.equal(pruned.state_dict()[n], before[n]) for n in before if "bias" in n)
    assert all(p.requires_grad for p in pruned.parameters())


def test_the_pattern_holds_through_fine_tuning():
    pruned = pruning.prune_n_m(tiny("lenet_300_100"))
    tuned, _ = training.fit(pruned, random_split(), epochs=2, lr=0.05, batch_size=8, weight_decay=0.5,
                            callbacks=[pruning.Masks(pruned)])
    for name, weight in pruning.prunable(tuned).items():
        assert pruning.follows_pattern(weight) and not torch.equal(weight, pruning.prunable(pruned)[name])
        assert torch.equal(weight == 0, pruning.prunable(pruned)[name] == 0)
