"""Layers really replaced: the same function at full rank, fewer multiplications below break-even, and an ordinary model afterwards."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course_lib import cost, deploy, files, low_rank, models, pruning, quantization, training
from course_lib.low_rank import METHODS, factorizable, factorize, factorize_layer, input_moments, joined_weight, largest_ranks
from helpers import IMAGE_SIZE, TINY, HalfUsed, random_split, same, saved_and_loaded, state, tiny

IMAGES = random_split(5).images


def full_rank(layer, method):
    if isinstance(layer, nn.Linear):
        return min(layer.weight.shape)
    ranks = largest_ranks(layer.weight, method)
    return ranks if len(ranks) > 1 else ranks[0]


def low_ranks(model, method, numerator=1, denominator=2):
    """About half of the full rank everywhere."""
    def half(rank):
        return max(1, rank * numerator // denominator)
    found = {name: full_rank(layer, method) for name, layer in factorizable(model).items()}
    return {name: tuple(map(half, rank)) if isinstance(rank, tuple) else half(rank) for name, rank in found.items()}


def factorized(name, method="channel"):
    model = tiny(name)
    return factorize(model, low_ranks(model, method), method=method, allow_larger=True)


def output(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


# --- a linear layer ---

@given(n_in=st.integers(1, 8), n_out=st.integers(1, 8), bias=st.booleans(), seed=st.integers(0, 10_000), data=st.data())
def test_a_linear_layer_becomes_two_with_the_bias_in_the_last(n_in, n_out, bias, seed, data):
    torch.manual_seed(seed)
    layer, x = nn.Linear(n_in, n_out, bias=bias).double(), torch.rand(4, n_in).double()
    rank = data.draw(st.integers(1, min(n_in, n_out)))
    thin = factorize_layer(layer, rank, allow_larger=True)
    assert [(type(p), p.in_features, p.out_features, p.bias is not None) for p in thin] == [
        (nn.Linear, n_in, rank, False), (nn.Linear, rank, n_out, bias)]
    u, values, vh = torch.linalg.svd(layer.weight.detach())
    nearest = u[:, :rank] * values[:rank] @ vh[:rank]
    torch.testing.assert_close(output(thin, x), F.linear(x, nearest, layer.bias.detach() if bias else None))
    torch.testing.assert_close(joined_weight(thin), nearest)
    assert not bias or torch.equal(thin[1].bias, layer.bias)


def test_the_multiplications_are_counted_exactly():
    """784·300 becomes 32·(784 + 300); the layers around stay."""
    model = models.lenet_300_100()
    small = factorize(model, {"1": 32, "3": 16})
    images = torch.rand(2, 1, 28, 28)
    assert cost.macs(small, images) == 32 * (784 + 300) + 16 * (300 + 100) + 1000
    assert cost.parameters(small) == cost.macs(small, images) + 410
    assert [row.layer for row in cost.layer_costs(small, images)] == ["1.0", "1.1", "3.0", "3.1", "5"]


def test_a_rank_at_or_above_break_even_is_refused_unless_asked_for():
    layer = nn.Linear(6, 3)     # 18 weights; rank 2 has 18 as well
    assert low_rank.break_even_rank(3, 6) == 1
    assert sum(p.numel() for p in factorize_layer(layer, 1).parameters()) == 9 + 3
    with pytest.raises(ValueError, match="rank 2 is above break-even: 18 weights in place of 18; choose a smaller rank, or pass allow_larger"):
        factorize_layer(layer, 2)
    torch.testing.assert_close(joined_weight(factorize_layer(layer, 3, allow_larger=True)), layer.weight.detach())
    model = nn.Sequential(nn.Flatten(), layer)
    with pytest.raises(ValueError, match="layer 1: rank 2 is above break-even"):
        factorize(model, {"1": 2})
    factorize(model, {"1": 2}, allow_larger=True)
    conv = nn.Conv2d(4, 8, 3)   # 288 weights; Tucker: 4·4 + 4·8·9 + 8·8
    with pytest.raises(ValueError, match=r"rank \(8, 4\) is above break-even: 368 weights in place of 288"):
        factorize_layer(conv, (8, 4), method="tucker")


# --- convolutions ---

convolutions = st.fixed_dictionaries({
    "in_channels": st.integers(1, 4), "out_channels": st.integers(1, 5), "bias": st.booleans(),
    "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)), "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)), "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2))})


@given(options=convolutions, method=st.sampled_from(METHODS), seed=st.integers(0, 10_000))
def test_a_convolution_at_full_rank_computes_the_same(options, method, seed):
    torch.manual_seed(seed)
    layer, x = nn.Conv2d(**options).double(), torch.rand(2, options["in_channels"], 9, 10).double()
    thin = factorize_layer(layer, full_rank(layer, method), method=method, allow_larger=True)
    torch.testing.assert_close(output(thin, x), output(layer, x))
    assert all(type(part) is nn.Conv2d for part in thin)
    assert [part.bias is not None for part in thin] == [False] * (len(thin) - 1) + [options["bias"]]


@given(options=convolutions, method=st.sampled_from(METHODS), seed=st.integers(0, 10_000), data=st.data())
def test_a_convolution_at_low_rank_computes_what_the_joined_kernel_computes(options, method, seed, data):
    torch.manual_seed(seed)
    layer, x = nn.Conv2d(**options).double(), torch.rand(2, options["in_channels"], 9, 10).double()
    ranks = tuple(data.draw(st.integers(1, largest)) for largest in largest_ranks(layer.weight, method))
    thin = factorize_layer(layer, ranks if len(ranks) > 1 else ranks[0], method=method, allow_larger=True)
    expected = F.conv2d(x, joined_weight(thin), layer.bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(output(thin, x), expected.detach())
    if method == "spatial":     # the column goes first, and moves down only
        assert (thin[0].kernel_size[1], thin[0].stride[1], thin[0].padding[1]) == (1, 1, 0)
        assert (thin[1].kernel_size[0], thin[1].stride[0], thin[1].padding[0]) == (1, 1, 0)


def test_the_multiplications_of_a_split_convolution_by_hand():
    """64 × 32 × 3 × 3 on 13 × 13 places, of which 11 × 11 are left; the column has run at 11 × 13."""
    layer, images = nn.Conv2d(32, 64, 3), torch.rand(2, 32, 13, 13)
    assert cost.macs(layer, images) == 121 * 64 * 32 * 9
    assert cost.macs(factorize_layer(layer, 16), images) == 121 * 16 * (32 * 9 + 64)
    assert cost.macs(factorize_layer(layer, 16, method="spatial"), images) == 11 * 13 * 16 * 32 * 3 + 121 * 16 * 64 * 3
    assert cost.macs(factorize_layer(layer, (20, 10), method="tucker"), images) == 169 * 10 * 32 + 121 * 20 * (10 * 9 + 64)


# --- whole models ---

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(TINY))
def test_at_full_rank_every_model_predicts_the_same(name, method):
    model = tiny(name).double()
    ranks = {layer_name: full_rank(layer, method) for layer_name, layer in factorizable(model).items()}
    again = factorize(model, ranks, method=method, allow_larger=True)
    torch.testing.assert_close(output(again, IMAGES.double()), output(model, IMAGES.double()))
    assert {type(again.get_submodule(layer_name)) for layer_name in ranks} == {nn.Sequential}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(TINY))
def test_saved_loaded_and_exported_models_predict_the_same(name, method, tmp_path):
    small = factorized(name, method)
    again = saved_and_loaded(small, tmp_path)
    assert repr(again) == repr(small) and json.loads(json.dumps(small.architecture)) == again.architecture
    saved_and_loaded(again, tmp_path)
    if method == "tucker" or name in ("mlp", "resnet"):         # an export takes a second
        run = deploy.load_onnx(deploy.onnx_bytes(small, IMAGES))
        torch.testing.assert_close(torch.from_numpy(run(IMAGES.numpy())), output(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet_300_100", "resnet"])
def test_a_fine_tuned_model_can_be_saved_and_exported(name, tmp_path):
    small = factorized(name, "spatial")
    tuned, _ = training.fit(small, random_split(), epochs=1, lr=0.01)
    changed = [n for n, p in tuned.named_parameters() if not torch.equal(p, small.get_parameter(n))]
    assert {n for n, _ in small.named_parameters() if n.endswith((".0.weight", ".1.weight"))} <= set(changed)      # both factors learn
    saved_and_loaded(tuned, tmp_path)
    deploy.onnx_bytes(tuned, IMAGES)


def test_after_pruning_weights_and_after_removing_units_and_before_quantization(tmp_path):
    model = tiny("lenet_300_100")
    pruned = pruning.prune(model, amount=0.5)
    saved_and_loaded(factorize(pruned, {"1": 16}), tmp_path)
    groups = pruning.unit_groups(model, IMAGES)
    plan = pruning.choose_units(groups, pruning.unit_magnitude(model, groups), amount=0.5)
    small = factorize(pruning.remove_units(model, groups, plan), {"1": 16, "3": 8})
    assert [c[1] for c in small.architecture["changes"]][-1] == "factorized" and len(small.architecture["changes"]) == 2
    saved_and_loaded(small, tmp_path)
    integers = quantization.quantize_weights(small, 8)
    assert len(integers.architecture["changes"]) == 3
    saved_and_loaded(integers, tmp_path)
    assert quantization.quantizable(small).keys() == {"1.0", "1.1", "3.0", "3.1", "5"}
    masked = pruning.prune(small, amount=0.5)
    saved_and_loaded(masked, tmp_path)
    run = deploy.load_onnx(deploy.onnx_bytes(masked, IMAGES))
    torch.testing.assert_close(torch.from_numpy(run(IMAGES.numpy())), output(masked), rtol=1e-4, atol=1e-5)


def test_factors_can_be_factorised_again(tmp_path):
    twice = factorize(factorize(tiny("lenet_300_100"), {"1": 60}), {"1.0": 20, "3": 10})
    assert [c[2]["ranks"] for c in twice.architecture["changes"]] == [{"1": 60}, {"1.0": 20, "3": 10}]
    saved_and_loaded(twice, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_stays_as_it_was_and_no_random_number_is_drawn(method):
    model = tiny("resnet").train()
    before, note, numbers = state(model), json.dumps(model.architecture), torch.get_rng_state()
    small = factorize(model, low_ranks(model, method), method=method, allow_larger=True)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert same(state(model), before) and json.dumps(model.architecture) == note and "Conv2d(1, 2," in repr(model[0])
    assert all(module.training for module in small.modules())
    assert not any(module.training for module in factorize(model.eval(), {}).modules())
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    assert same(state(model), before)


def test_data_type_and_frozen_weights_stay_so():
    layer = nn.Linear(8, 8).double()
    layer.weight.requires_grad_(False)
    thin = factorize_layer(layer, 2)
    assert {p.dtype for p in thin.parameters()} == {torch.float64}
    assert [p.requires_grad for p in thin.parameters()] == [False, False, True]


def test_a_model_that_is_one_layer():
    layer, x = nn.Linear(8, 8), torch.rand(3, 8)
    thin = factorize(layer, {"": 2})
    assert [p.out_features for p in thin] == [2, 8] and torch.equal(output(thin, x), output(factorize_layer(layer, 2), x))
    with pytest.raises(ValueError, match="layer Linear: rank must be a whole number from 1 to 8; got 9"):
        factorize(layer, {"": 9})


def test_each_convolution_by_its_own_method(tmp_path):
    model = models.cnn(image_size=IMAGE_SIZE, widths=(8, 16))
    small = factorize(model, {"0": 2, "3": (6, 4), "7": 5}, method={"0": "spatial", "3": "tucker"})
    assert [len(small[i]) for i in (0, 3, 7)] == [2, 3, 2] and small[0][0].kernel_size == (3, 1)
    assert factorize(model, {"3": 4}, method={"0": "spatial"})[3][0].kernel_size == (3, 3)     # channel where nothing is said
    saved_and_loaded(small.eval(), tmp_path)


# --- what can be factorised ---

class Odd(nn.Module):
    """Layers that cannot be replaced, beside two that can."""

    def __init__(self):
        super().__init__()
        self.plain, self.plain_conv = nn.Linear(6, 6), nn.Conv2d(4, 4, 3)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.twice = self.again = nn.Linear(6, 6)
        self.hooked, self.before = nn.Linear(6, 6), nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda module, inputs, out: out + 1)
        self.before.register_forward_pre_hook(lambda module, inputs: None)
        self.grouped, self.word = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")
        self.mirror, self.norm = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm1d(6)


def test_only_layers_whose_replacement_computes_the_same_are_offered():
    assert list(factorizable(Odd())) == ["plain", "plain_conv"]
    assert list(factorizable(Odd(), skip=iter(["plain"]))) == ["plain_conv"]
    assert list(factorizable(tiny("resnet"))) == ["0", "3.body.0", "3.body.3", "4.body.0", "4.body.3", "4.shortcut.0", "7"]


@pytest.mark.parametrize("name, reason", [
    ("one", "its weight is shared"), ("twice", "its weight is shared"), ("again", "its weight is shared"), ("hooked", "it has hooks"),
    ("before", "it has hooks"), ("grouped", "a convolution must be without groups and padded with zeros by a number; it has groups=2"),
    ("word", ".* it has groups=1, padding='same'"), ("mirror", ".* padding_mode='reflect'"), ("norm", "only Linear and Conv2d can be factorised, not BatchNorm1d"),
    ("gone", "the model has no such layer; possible are plain, plain_conv")])
def test_others_are_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=f"cannot factorise '{name}': {reason}"):
        factorize(Odd(), {name: 1})


MLP = tiny("mlp")


def damaged(model):
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize("call, message", [
    (lambda: factorize(MLP, {"1": 0}), "layer 1: rank must be a whole number from 1 to 5; got 0"),
    (lambda: factorize(MLP, {"1": 2}, method="cp"), "layer 1: method must be one of channel, spatial, tucker; got 'cp'"),
    (lambda: factorize(MLP, {"1": 2}, method={"2": "channel"}), "cannot factorise '2': only Linear and Conv2d can be factorised, not ReLU"),
    (lambda: factorize(MLP, {"1": 2}, moments={"2": torch.eye(5)}), "cannot factorise '2'"),
    (lambda: factorize(MLP, {"1": 2}, moments={"1": torch.eye(5)}), r"layer 1: the moment must be finite, symmetric and of shape \(256, 256\)"),
    (lambda: factorize(tiny("cnn"), {"3": 1}, method="spatial", moments={"3": torch.eye(18)}), "layer 3: inputs can be taken into account"),
    (lambda: factorize(damaged(tiny("mlp")), {"1": 1}), r"layer 1: the weights are not all finite \(did training diverge\?\)"),
    (lambda: factorize_layer(nn.Conv2d(4, 4, 3, groups=2), 1), "must be without groups"),
    (lambda: factorize_layer(nn.ReLU(), 1), "only Linear and Conv2d can be factorised, not ReLU"),
    (lambda: factorizable(MLP, skip=["fc"]), "skip names layers that the model does not have: fc"),
    (lambda: low_rank.empty_factorized(tiny("mlp"), ranks={"2": 1}, method={"2": "channel"}), "cannot build factors for '2'"),
    (lambda: low_rank.empty_factorized(tiny("mlp"), ranks={"8": 1}, method={}), "cannot build factors for '8' by the method None"),
    (lambda: low_rank.empty_factorized(tiny("mlp"), ranks={"1": 1}, method={"1": "cp"}), "by the method 'cp'"),
    (lambda: input_moments(MLP, IMAGES, ["2"]), "2 cannot be factorised; possible are 1, 3"),
    (lambda: input_moments(MLP, IMAGES[:0]), "need images"),
    (lambda: input_moments(HalfUsed(), torch.rand(3, 4)), "the model never calls unused"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_damaged_file_is_refused(tmp_path):
    small = factorized("mlp")
    small.architecture["changes"][-1][2]["ranks"] = {"1": 1, "7": 1}
    with pytest.raises(ValueError, match="cannot build factors for '7'"):
        files.save(small, tmp_path / "model")


# --- moments ---

def test_the_moment_of_a_linear_layer_is_the_sum_of_outer_products():
    images = random_split(230).images           # more than two batches
    x = images.flatten(1).double()
    moments = input_moments(MLP, images)
    torch.testing.assert_close(moments["1"], x.T @ x, rtol=1e-5, atol=1e-4)
    hidden = output(MLP[:3], images).double()
    torch.testing.assert_close(moments["3"], hidden.T @ hidden, rtol=1e-5, atol=1e-4)
    assert list(moments) == ["1", "3"] and list(input_moments(MLP, images, ["3"])) == ["3"]


@given(options=convolutions, seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_the_moment_of_a_convolution_knows_the_size_of_its_outputs(options, seed):
    """Σ (w·patch)² over all places and images is wᵀ C w, for each output."""
    torch.manual_seed(seed)
    layer, x = nn.Conv2d(**{**options, "bias": False}).double(), torch.rand(3, options["in_channels"], 9, 10).double()
    moment, weights = input_moments(layer, x)[""], layer.weight.detach().flatten(1)
    torch.testing.assert_close((weights @ moment @ weights.T).diagonal(), (output(layer, x) ** 2).sum((0, 2, 3)))


@pytest.mark.parametrize("name", ["lenet_300_100", "cnn", "resnet"])
def test_moments_make_the_outputs_of_every_layer_better(name):
    """On the images that the moments come from, and for layers that get the true inputs."""
    model, images = tiny(name), random_split(60).images * torch.linspace(0, 1, IMAGE_SIZE)
    moments = input_moments(model, images)
    for layer_name, layer in factorizable(model).items():
        moment, weight = moments[layer_name], layer.weight.detach().flatten(1).double()
        rank = max(1, min(weight.shape) // 2)

        def lost(thin):
            difference = weight - joined_weight(thin).flatten(1).double()
            return float((difference @ moment * difference).sum())
        plain, better = (lost(factorize_layer(layer, rank, moment=m, allow_larger=True)) for m in (None, moment))
        assert better <= plain + 1e-5 * float(moment.trace()), layer_name
    small = factorize(model, {"1": 8, "3": 8} if name == "lenet_300_100" else {layer_name: 1}, moments=moments)
    assert small is not model           # what is known of layers that stay whole does no harm


def test_a_layer_that_sees_sequences_has_a_moment_too():
    layer, x = nn.Linear(4, 4), torch.rand(2, 5, 4)
    torch.testing.assert_close(input_moments(layer, x)[""], (x.flatten(0, 1).T @ x.flatten(0, 1)).double(), rtol=1e-5, atol=1e-5)
