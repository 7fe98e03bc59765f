"""Integer layers count exactly, ONNX Runtime gets the same codes, and what 32 bits cannot hold is refused."""
import math
from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from course_lib import cost, deploy, files, models, report, training
from course_lib.declared import DeclaresCost
from course_lib.quantization.affine import Grid, dequantize, fake_quantize, grid_for, quantize
from course_lib.quantization.calibration import calibrate
from course_lib.quantization.folding import fold_batch_norm
from course_lib.quantization.integer import (Int8Conv2d, Int8Linear, accumulate, accumulate_expanded, check_accumulator,
                                             requantize)
from course_lib.quantization.static import quantize_static
from helpers import random_split, run_python, same, state, tiny

NAMES = ("mlp", "lenet_300_100", "lenet5", "cnn", "student")


def codes_of(shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def weights_of(shape, seed=1, most=127):
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def grid(scale, zero_point):
    return Grid(torch.tensor(float(scale)), torch.tensor(zero_point, dtype=torch.int32), 0, 255)


def prepared(name):
    """A small model without batch normalisation, and its grids."""
    model = fold_batch_norm(tiny(name))
    return model, calibrate(model, random_split(40, seed=3).images)


# --- the arithmetic ---

def test_a_sum_by_hand():
    """(10 − 3)·2 + (0 − 3)·(−5) + 100 = 129 and, expanded, 10·2 + 0·(−5) + (100 − 3·(2 − 5)) = 129."""
    arguments = torch.tensor([[10, 0]], dtype=torch.uint8), torch.tensor(3), torch.tensor([[2, -5]], dtype=torch.int8), \
        torch.tensor([100], dtype=torch.int32)
    for function in (accumulate, accumulate_expanded):
        acc = function(*arguments)
        assert acc.dtype == torch.int32 and acc.tolist() == [[129]]


@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 5), st.integers(0, 255), st.integers(0, 10**6))
def test_both_forms_of_the_sum_equal_64_bit_arithmetic(n, k, outputs, zero_point, seed):
    codes, weight = codes_of((n, k), seed), weights_of((outputs, k), seed + 1)
    bias = torch.randint(-10**6, 10**6, (outputs,), generator=torch.Generator().manual_seed(seed)).int()
    expected = (codes.numpy().astype(np.int64) - zero_point) @ weight.numpy().astype(np.int64).T + bias.numpy()
    for function in (accumulate, accumulate_expanded):
        assert (function(codes, torch.tensor(zero_point, dtype=torch.uint8), weight, bias).numpy() == expected).all()


def convolution_in_64_bits(codes, zero_point, weight, bias, stride, padding, dilation, groups):
    """The definition, one place of the kernel after the other."""
    x = codes.numpy().astype(np.int64) - zero_point
    x = np.pad(x, [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2])
    w = weight.numpy().astype(np.int64)
    high, wide = ((x.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    acc = np.zeros((len(x), len(w), high, wide), np.int64) + bias.numpy()[:, None, None]
    own = len(w) // groups
    for o in range(len(w)):
        for c in range(w.shape[1]):
            channel = x[:, o // own * w.shape[1] + c]
            for i in range(w.shape[2]):
                for j in range(w.shape[3]):
                    part = channel[:, i * dilation[0]:, j * dilation[1]:][:, ::stride[0], ::stride[1]]
                    acc[:, o] += w[o, c, i, j] * part[:, :high, :wide]
    return acc


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), pairs, pairs, pairs,
       st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(0, 255), st.integers(0, 1000))
@example(2, 2, 2, 3, (3, 2), (2, 1), (1, 2), (1, 0), 7, 0)
def test_a_convolution_equals_64_bit_arithmetic(n, groups, channels, own, kernel, stride, dilation, padding, zero_point, seed):
    torch.manual_seed(seed)
    like = nn.Conv2d(groups * channels, groups * own, kernel, stride, padding, dilation, groups)
    layer = Int8Conv2d.of(like, grid(0.1, zero_point))
    layer.bias.data = torch.randint(-1000, 1000, layer.bias.shape, dtype=torch.int32)
    codes = codes_of((n, groups * channels, 9, 8), seed)
    expected = convolution_in_64_bits(codes, zero_point, layer.weight, layer.bias, stride, padding, dilation, groups)
    acc = layer.sums(codes)
    assert acc.dtype == torch.int32 and (acc.movedim(-1, 1).numpy() == expected).all()
    logits = layer(codes)
    torch.testing.assert_close(logits, torch.from_numpy(expected).float() * layer.product_scale[:, None, None], rtol=0, atol=0)


def test_rounding_back_to_codes_by_hand():
    """Ties to the even number, then the zero point, then the clamp; a ReLU clamps at the zero point."""
    acc, half, zero = torch.tensor([5, 7, -5, 600, -600], dtype=torch.int32), torch.tensor(0.5), torch.tensor(10, dtype=torch.uint8)
    assert requantize(acc, half, zero).tolist() == [12, 14, 8, 255, 0]
    assert requantize(acc, half, zero, relu=True).tolist() == [12, 14, 10, 255, 10]
    assert requantize(acc, half, zero).dtype == torch.uint8


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1), st.floats(2**-20, 1, width=32), st.integers(0, 255))
def test_rounding_back_equals_python_s_rounding(sums, multiplier, zero_point):
    got = requantize(torch.tensor(sums, dtype=torch.int32), torch.tensor(multiplier), torch.tensor(zero_point, dtype=torch.uint8))
    products = [float(np.float32(s) * np.float32(multiplier)) for s in sums]
    assert got.tolist() == [min(255, max(0, round(p) + zero_point)) for p in products]


# --- what 32 bits hold ---

@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_that_fits_is_right_and_one_more_is_refused(sign):
    weight = sign * torch.tensor([[100, 27]], dtype=torch.int8)
    bias = sign * torch.tensor([2**31 - 1 - 255 * 127])
    check_accumulator(weight, bias)
    codes, zero = torch.full((1, 2), 255, dtype=torch.uint8), torch.tensor(0, dtype=torch.uint8)
    assert accumulate(codes, zero, weight, bias.int()).item() == sign * (2**31 - 1)
    with pytest.raises(ValueError, match="sum of output 0 can reach 2,147,483,648, and int32 ends at 2,147,483,647"):
        check_accumulator(weight, bias + sign)


def test_an_overflow_by_many_inputs_is_refused_and_the_output_named():
    inputs = (2**31 - 1) // (255 * 127)
    check_accumulator(torch.full((2, inputs), 127, dtype=torch.int8), torch.zeros(2))
    weight = torch.zeros(2, inputs + 1, dtype=torch.int8)
    weight[1] = -127
    with pytest.raises(ValueError, match="sum of output 1"):
        check_accumulator(weight, torch.zeros(2))


@pytest.mark.parametrize("bias", [1e3, -1e3, math.inf, math.nan])
def test_a_bias_that_32_bits_cannot_hold_is_refused(bias):
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 1e-6)
    nn.init.constant_(layer.bias, bias)
    with pytest.raises(ValueError, match="its bias is too large beside its weights"):
        Int8Linear.of(layer, grid(1e-3, 0))


# --- from float layers ---

@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_an_integer_layer_equals_the_float_layer_with_rounded_numbers(per_channel, relu):
    """Its scales and codes are those of `affine`, and its result that of the real numbers they stand for."""
    torch.manual_seed(0)
    like, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(4, 3, 6, 6)
    inputs, outputs = grid_for(x, 8), grid_for(like(x), 8)
    layer = Int8Conv2d.of(like, inputs, outputs, per_channel=per_channel, relu=relu)
    of_weights = grid_for(like.weight, 8, symmetric=True, axis=0 if per_channel else None, convention="onnxruntime")
    assert torch.equal(layer.weight, quantize(like.weight, of_weights)) and torch.equal(layer.weight_scale, of_weights.scale)
    assert layer.weight.abs().max() == 127
    with torch.no_grad():
        real = nn.functional.conv2d(fake_quantize(x, inputs).double(), fake_quantize(like.weight, of_weights).double(),
                                    (layer.bias * layer.product_scale).double(), padding=1)
    expected = fake_quantize((real.relu() if relu else real).float(), outputs)
    got = dequantize(layer(quantize(x, inputs)), outputs)
    assert (got - expected).abs().max() <= 1.01 * outputs.scale and (got == expected).float().mean() > 0.99
    step = layer.product_scale if per_channel else layer.product_scale.expand(5)
    assert (like.bias - layer.bias * step).abs().le(0.5001 * step).all()


def test_what_comes_out_of_the_last_layer_are_real_numbers():
    layer = Int8Linear.of(nn.Linear(4, 3), grid(0.5, 128))
    logits = layer(codes_of((7, 4)))
    assert logits.dtype == torch.float32 and torch.equal(logits, layer.sums(codes_of((7, 4))) * layer.product_scale)


def test_fewer_bits_use_a_part_of_the_range_only():
    assert Int8Linear.of(nn.Linear(50, 3), grid(0.5, 0), weight_bits=7).weight.abs().max() == 64


def test_a_layer_without_bias_has_a_bias_of_zeros():
    assert not Int8Linear.of(nn.Linear(4, 3, bias=False), grid(1, 0)).bias.any()


def test_a_valid_padding_is_none():
    torch.manual_seed(0)
    like = nn.Conv2d(1, 2, 3, padding="valid")
    assert Int8Conv2d.of(like, grid(1, 3))(codes_of((1, 1, 5, 5))).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("make, message", [
    (lambda: Int8Linear.of(nn.Linear(2, 2), Grid(torch.tensor(1.0), torch.tensor(0), -128, 127)), "codes from 0 to 255"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), Grid(torch.ones(2), torch.zeros(2), 0, 255, 0)), "one positive scale for the whole"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(1, 0), grid(0, 0)), "one positive scale"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(math.nan, 0)), "one positive scale"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(1, 0), relu=True), "a ReLU is a clamp of the output's codes"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(1, 0), weight_bits=9), "weights of 2 to 8 bits; got 9"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(1, 0), weight_bits=1), "weights of 2 to 8 bits; got 1"),
    (lambda: Int8Conv2d.of(nn.Conv2d(1, 1, 3, padding="same"), grid(1, 0)), "padding must be with zeros"),
    (lambda: Int8Conv2d.of(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), grid(1, 0)), "padding must be with zeros"),
    (lambda: Int8Linear.of(nn.Linear(2, 2), grid(1, 0)).train(), "integer layers cannot be trained"),
])
def test_what_cannot_become_an_integer_layer_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- processors that add pairs of products in 16 bits ---

def sums_in_pairs(codes, weight):
    """What vpmaddubsw and the additions behind it give: pairs of products saturate at ±2^15, the rest is exact."""
    products = codes.long()[:, None] * weight.long()                                        # (n, outputs, k)
    return products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2)


def exact_sums(codes, weight):
    return codes.long() @ weight.long().T


def sums_by_onnx_runtime(codes, weight):
    node = helper.make_node("MatMulInteger", ["codes", "weight"], ["sums"])
    return run_node(node, codes, {"weight": weight.T.numpy()}, TensorProto.INT32)


def run_node(node, codes, initializers, kind):
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("codes", TensorProto.UINT8, codes.shape)],
                              [helper.make_tensor_value_info(node.output[0], kind, None)],
                              [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in initializers.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return torch.from_numpy(deploy.load_onnx(model.SerializeToString())(codes.numpy()))


def saturates():
    """Whether ONNX Runtime's kernels do so on this processor."""
    codes, weight = torch.full((4, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    return not torch.equal(sums_by_onnx_runtime(codes, weight).long(), exact_sums(codes, weight))


def test_pairs_of_products_saturate_where_full_weights_meet_full_codes():
    """By hand: 2·255·127 = 64,770 becomes 32,767."""
    codes, weight = torch.tensor([[255, 255, 1, 1]], dtype=torch.uint8), torch.tensor([[127, 127, 5, 6]], dtype=torch.int8)
    assert exact_sums(codes, weight).item() == 64_781 and sums_in_pairs(codes, weight).item() == 32_778
    assert sums_in_pairs(codes, -weight).item() == -32_768 - 11


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_weights_of_seven_bits_never_saturate(pairs_of_inputs, seed):
    codes, weight = codes_of((3, 2 * pairs_of_inputs), seed), weights_of((4, 2 * pairs_of_inputs), seed, most=64)
    codes[0], weight[0] = 255, -64
    assert torch.equal(sums_in_pairs(codes, weight), exact_sums(codes, weight))


def test_onnx_runtime_counts_exactly_or_saturates_as_described():
    """With VNNI the sums are exact. Without, they may saturate, but weights of seven bits do not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            vnni = "_vnni" in file.read()
    except OSError:
        vnni = False
    assert not (vnni and saturates())
    codes = codes_of((5, 64))
    codes[0] = 255
    small, large = weights_of((16, 64), most=64), weights_of((16, 64))
    small[0], large[0] = 64, 127
    assert torch.equal(sums_by_onnx_runtime(codes, small).long(), exact_sums(codes, small))
    expected = sums_in_pairs if saturates() else exact_sums
    assert torch.equal(sums_by_onnx_runtime(codes, large).long(), expected(codes, large))
    assert not torch.equal(sums_in_pairs(codes, large), exact_sums(codes, large))


WEIGHT_BITS = 7 if saturates() else 8


# --- ONNX Runtime's single operations ---

def assert_within_a_step(got, expected):
    difference = (got.int() - expected.int()).abs()
    assert got.dtype == expected.dtype == torch.uint8 and got.shape == expected.shape
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def quantization_inputs(layer, transpose=False):
    """The numbers of a layer in the form that QLinear… operations take."""
    weight = layer.weight.T if transpose else layer.weight
    return {"x_scale": layer.input_scale, "x_zero": layer.input_zero_point, "weight": weight, "w_scale": layer.weight_scale,
            "w_zero": torch.zeros(layer.weight_scale.shape, dtype=torch.int8), "y_scale": layer.output_scale,
            "y_zero": layer.output_zero_point}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("where", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2, "padding": 2}], ids=str)
def test_a_convolution_is_within_a_step_of_onnx_runtime_s(per_channel, where):
    torch.manual_seed(0)
    like, x = nn.Conv2d(4, 6, 3, **where), torch.randn(5, 4, 12, 12) + 0.3
    layer = Int8Conv2d.of(like, grid_for(x, 8), grid_for(like(x), 8), per_channel=per_channel, weight_bits=WEIGHT_BITS)
    numbers = quantization_inputs(layer) | {"bias": layer.bias}
    node = helper.make_node("QLinearConv", ["codes", *numbers], ["y"], strides=list(like.stride), group=like.groups,
                            dilations=list(like.dilation), pads=[*like.padding, *like.padding])
    codes = quantize(x, grid_for(x, 8))
    assert_within_a_step(layer(codes), run_node(node, codes, {k: v.detach().numpy() for k, v in numbers.items()}, TensorProto.UINT8))


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_linear_layer_is_within_a_step_of_onnx_runtime_s(per_channel):
    torch.manual_seed(0)
    like, x = nn.Linear(50, 7, bias=False), torch.randn(64, 50) + 0.3
    layer = Int8Linear.of(like, grid_for(x, 8), grid_for(like(x), 8), per_channel=per_channel, weight_bits=WEIGHT_BITS)
    numbers = quantization_inputs(layer, transpose=True)
    node = helper.make_node("QLinearMatMul", ["codes", *numbers], ["y"])
    codes = quantize(x, grid_for(x, 8))
    assert_within_a_step(layer(codes), run_node(node, codes, {k: v.detach().numpy() for k, v in numbers.items()}, TensorProto.UINT8))


# --- whole networks ---

@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_leaves_the_codes_that_onnx_runtime_does(name, per_channel):
    model, grids = prepared(name)
    static = quantize_static(model, grids, per_channel=per_channel, weight_bits=WEIGHT_BITS)
    images, mine = random_split(40, seed=4).images, []
    for layer in static.modules():
        if hasattr(layer, "output_scale") or layer is static.quantize:
            layer.register_forward_hook(lambda layer, inputs, output: mine.append(output))
    static(images)
    for layer in static.modules():
        layer._forward_hooks.clear()
    proto = onnx.load_from_string(deploy.onnx_bytes(static, images))
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            proto.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"images": images.numpy()})[1:]
    assert len(mine) == len(theirs) == sum(type(m) in (nn.Linear, nn.Conv2d) for m in model.modules())
    for codes, other in zip(mine, theirs):
        assert_within_a_step(codes, torch.from_numpy(other))


@pytest.mark.parametrize("name", NAMES)
def test_an_integer_network_predicts_nearly_as_the_float_one(name):
    model, grids = prepared(name)
    before = state(model)
    static = quantize_static(model, grids)
    images = random_split(40, seed=4).images
    with torch.no_grad():
        expected, got = model(images), static(images)
    assert got.dtype == torch.float32 and (got - expected).abs().max() < 0.1 * (expected.max() - expected.min())
    assert (got - expected).abs().max() > 0
    assert same(state(model), before) and not static.training


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_integer_network_is_as_small_as_its_numbers_and_predicts_the_same(name, per_channel, tmp_path):
    model, grids = prepared(name)
    static = quantize_static(model, grids, per_channel=per_channel)
    layers = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    size = files.save(static, tmp_path / "m.safetensors")
    loaded = files.load(tmp_path / "m.safetensors")
    assert same(state(loaded), state(static)) and repr(loaded) == repr(static)
    images = random_split(9, seed=5).images
    assert torch.equal(loaded(images), static(images))
    # weights 1 byte; bias 4; weight scales 4; a scale and a zero point for each input, and each output but the last, and the entry
    outputs = sum(len(layer.weight) for layer in layers)
    payload = sum(layer.weight.numel() for layer in layers) + 4 * outputs
    payload += 4 * (outputs if per_channel else len(layers)) + 5 * 2 * len(layers)
    assert files.payload_bytes(static) == payload and 0 < size - payload < 6000
    assert size == files.saved_bytes(static)


def test_the_article_s_network_takes_almost_four_times_fewer_bytes():
    model = models.cnn()
    static = quantize_static(model, calibrate(model, random_split(4, image_size=28).images))
    assert files.payload_bytes(model) > 3.8 * files.payload_bytes(static)


def test_the_ruler_counts_the_same_products_in_integers():
    model, grids = prepared("cnn")
    static, image = quantize_static(model, grids), random_split(1).images
    rows = {row.layer: row for row in cost.layer_costs(static, image)}
    floats = {row.layer: row for row in cost.layer_costs(model, image)}
    assert list(rows) == ["quantize", *floats]
    for name, row in floats.items():
        assert rows[name].operands == "int8" and rows[name].macs == row.macs and rows[name].ideal_macs <= row.ideal_macs
        layer = static.get_submodule(name)
        assert rows[name].weight_bytes == layer.weight.numel() + 4 * len(layer.weight)
        assert isinstance(layer, DeclaresCost)
    assert rows["3"].activation_bytes < floats["3"].activation_bytes / 3.9
    assert cost.parameters(static) == cost.parameters(model) and cost.nonzeros(static) <= cost.nonzeros(model)


def test_the_ruler_takes_an_integer_network_in_both_runtimes():
    model, grids = prepared("cnn")
    split = random_split(20)
    rows = report.measure({"float": model, "int8": quantize_static(model, grids)}, split, batches=(1, 8), blocks=10,
                          runtimes=("ONNX Runtime", "eager PyTorch"))
    assert set(rows[1].latency) == {(r, b) for r in ("ONNX Runtime", "eager PyTorch") for b in (1, 8)}
    assert rows[0].macs == rows[1].macs and all(ratio.estimate.value < 0.5 for _, ratio in rows[1].joules.modelled.values())
    assert "int8" in repr(report.compare(rows))


def test_what_is_behind_the_last_layer_runs_on_real_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 5), nn.Dropout(), nn.ReLU(), nn.Identity(), nn.Linear(5, 3), nn.ReLU(),
                          nn.LogSoftmax(1)).eval()
    images = random_split(6).images
    static = quantize_static(model, calibrate(model, images))
    assert [name for name, _ in static.named_children()] == ["quantize", "0", "1", "5", "6", "7"]
    torch.testing.assert_close(static(images), model(images), rtol=0, atol=0.05)
    torch.testing.assert_close(static(images).exp().sum(1), torch.ones(6))
    with pytest.raises(ValueError, match="only models made by course_lib.models can be saved"):
        files.save(static, "never-written")


def test_one_relu_may_stand_in_two_places_and_behind_a_pooling():
    relu = nn.ReLU()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), relu, nn.Flatten(), nn.Linear(98, 6), relu, nn.Linear(6, 3))
    images = random_split(6).images
    static = quantize_static(model, calibrate(model, images))
    assert [static.get_submodule(name).relu for name in ("0", "4", "6")] == [True, True, False]
    torch.testing.assert_close(static(images), model(images), rtol=0, atol=0.02)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize("make, message", [
    (lambda: tiny("student"), r"module '1' is a BatchNorm2d, which cannot run on integer codes here; fold it"),
    (lambda: fold_batch_norm(tiny("resnet")), r"module '3' is a ResidualBlock, which cannot run on integer codes"),
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)), "module '1' is a Sigmoid"),
    (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "module '0' is a ReLU"),
    (lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 2))), "module '0' is a Sequential"),
    (Own, "only an nn.Sequential says in which order its layers run; got a Own"),
    (lambda: nn.Sequential(nn.Flatten()), "no linear layer or convolution"),
    (lambda: nn.Sequential(OrderedDict(quantize=nn.Linear(4, 3), last=nn.Linear(3, 2))), 'a layer is named "quantize"'),
])
def test_what_cannot_run_on_codes_is_refused_by_name(make, message):
    model = make()
    grids = {name: grid(1, 0) for name, _ in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        quantize_static(model, grids)


def test_a_missing_grid_is_named():
    model, grids = prepared("cnn")
    del grids["3"]
    with pytest.raises(ValueError, match="no grid for the input of 3: calibrate this model"):
        quantize_static(model, grids)


def test_training_an_integer_network_is_refused():
    model, grids = prepared("mlp")
    with pytest.raises(ValueError, match="integer layers cannot be trained"):
        training.fit(quantize_static(model, grids), random_split(8), epochs=1, lr=1e-3)


def test_a_network_that_is_integer_already_is_refused():
    model, grids = prepared("mlp")
    with pytest.raises(ValueError, match="only Linear and Conv2d can be quantized, not 1"):
        quantize_static(quantize_static(model, grids), grids)


def test_integers_do_not_need_onnx():
    assert run_python("import sys; from course_lib.quantization.static import quantize_static; "
                      "print('onnx' in sys.modules or 'onnxruntime' in sys.modules)").strip() == "False"
