"""Layers that store their weight in fewer bits: same predictions after loading, bytes as reported, honest costs."""
import copy
import itertools
import json
import math

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from course_lib import cost, deploy, files, language, models, report, training
from course_lib.quantization import stored
from course_lib.quantization.affine import fake_quantize, grid_for
from course_lib.quantization.packing import packed_bytes
from course_lib.quantization.stored import AffineForm, StoredLayer, quantizable, quantize_weights, store
from helpers import IMAGE_SIZE, TINY, random_split, same, state, tiny

IMAGES = random_split(6).images


def mlp(width=6):
    """Rows of 256 and 6 weights, so that groups of 2 fit."""
    torch.manual_seed(3)
    return models.mlp(1, IMAGE_SIZE, hidden=(width,)).eval()


def stored_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, StoredLayer)}


def expected_bytes(shape, bits, symmetric, axis=None, group=None):
    count = math.prod(shape)
    scales = count // group if group else 1 if axis is None else shape[axis]
    return packed_bytes(count, bits) + 4 * scales + (0 if symmetric else packed_bytes(scales, bits))


# --- what a form holds ---

@given(bits=st.integers(1, 16), symmetric=st.booleans(), signed=st.booleans(), seed=st.integers(0, 1000),
       convention=st.sampled_from(("torch", "torchao", "onnxruntime")), share=st.sampled_from([{}, {"axis": 0}, {"axis": 1}, {"group": 3}]))
@settings(max_examples=150, deadline=None)
def test_a_form_decodes_to_what_rounding_gives(bits, symmetric, signed, seed, convention, share):
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    grid = grid_for(weight, bits, symmetric=symmetric, signed=signed, convention=convention, **share)
    form = AffineForm.of(weight, grid)
    assert torch.equal(form.decode(), fake_quantize(weight, grid))
    again = AffineForm(**json.loads(json.dumps(form.options)))
    again.load_state_dict(form.state_dict())
    assert torch.equal(again.decode(), form.decode()) and torch.equal(again.codes, form.codes)
    assert (again.grid.quant_min, again.grid.quant_max, again.bits) == (grid.quant_min, grid.quant_max, bits)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("share", [{"axis": None}, {"axis": 0}, {"group": 8}], ids=str)
def test_stored_bytes_are_those_of_the_formula(bits, share):
    weight = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        form = AffineForm.of(weight, grid_for(weight, bits, symmetric=symmetric, signed=True, **share))
        centred = not form.grid.zero_point.any()
        assert form.stored_bytes() == expected_bytes((7, 24), bits, centred, **share)
        assert centred >= symmetric


# --- saved and reloaded ---

@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet", "student"])
def test_a_saved_model_predicts_the_same_in_the_bytes_that_are_reported(tmp_path, name, bits):
    for symmetric, axis in itertools.product((True, False), (None, 0, 1)) if name == "cnn" else [(bits % 3 == 0, bits % 2)]:
        small = quantize_weights(tiny(name), bits, axis=axis, symmetric=symmetric)
        size = files.save(small, tmp_path / "m.safetensors")
        loaded = files.load(tmp_path / "m.safetensors")
        assert torch.equal(loaded(IMAGES), small(IMAGES)) and same(state(loaded), state(small)) and repr(loaded) == repr(small)
        assert not any(m.training for m in loaded.modules())
        header = int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little") + 8
        assert size == header + files.payload_bytes(small)
        for layer in stored_layers(loaded).values():
            options = layer.form.options
            assert layer.form.stored_bytes() == expected_bytes(options["shape"], bits, options["centred"], axis)


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_groups_are_saved_too(tmp_path, bits):
    for symmetric in (True, False):
        small = quantize_weights(mlp(), bits, group=2, symmetric=symmetric)
        files.save(small, tmp_path / "m")
        loaded = files.load(tmp_path / "m")
        assert torch.equal(loaded(IMAGES), small(IMAGES)) and loaded[1].form.scale.shape == (6, 128)


def test_predictions_are_those_of_the_model_with_rounded_weights():
    for name in TINY:
        model = tiny(name)
        rounded = copy.deepcopy(model)
        for layer in quantizable(rounded).values():
            layer.weight.data = fake_quantize(layer.weight, grid_for(layer.weight, 4, axis=0, symmetric=True))
        before = state(model)
        assert torch.equal(quantize_weights(model, 4)(IMAGES), rounded(IMAGES))
        assert same(state(model), before)


def test_sizes_at_eight_bits_are_nearly_a_quarter():
    model = models.cnn()
    small = quantize_weights(model, 8)
    assert files.payload_bytes(model) / files.payload_bytes(small) > 3.8
    weights = sum(layer.weight.numel() for layer in quantizable(model).values())
    assert sum(layer.form.packed.numel() for layer in stored_layers(small).values()) == weights


def change_file(path, change):
    """Rewrite a file with its tensors changed by `change`."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def put(name, value):
    return lambda tensors, metadata: tensors.update({name: value(tensors[name])})


def swap(old, new):
    return lambda tensors, metadata: metadata.update(architecture=metadata["architecture"].replace(old, new))


DAMAGE = {
    "a byte is missing": put("1.form.packed", lambda t: t[:-1]),
    "a byte too many": put("1.form.packed", lambda t: torch.cat([t, t[:1]])),
    "packed numbers of another type": put("1.form.packed", lambda t: t.to(torch.int8)),
    "a scale is missing": put("1.form.scale", lambda t: t[:-1]),
    "a scale is 0": put("1.form.scale", lambda t: t * 0),
    "a scale is below 0": put("1.form.scale", lambda t: -t),
    "a scale is not a number": put("1.form.scale", lambda t: t * math.nan),
    "a scale in half precision": put("1.form.scale", lambda t: t.half()),
    "zero points are missing": lambda tensors, metadata: tensors.pop("1.form.zero_points"),
    "zero points of another type": put("1.form.zero_points", lambda t: t.float()),
    "other bits": swap('"quant_max": 15', '"quant_max": 7'),
    "a whole number beyond the range": swap('"quant_max": 15', '"quant_max": 13'),
    "another shape": swap('"shape": [5, 256]', '"shape": [5, 255]'),
    "another form": swap('"affine"', '"magic"'),
    "an axis that does not exist": swap('"axis": 0', '"axis": 7'),
    "a layer that does not exist": swap('"forms": {"1"', '"forms": {"9"'),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(tmp_path, change):
    path = tmp_path / "m"
    files.save(quantize_weights(tiny("mlp"), 4, symmetric=False), path)
    change_file(path, lambda tensors, metadata: None)
    files.load(path)
    change_file(path, change)
    with pytest.raises(ValueError, match="is damaged"):
        files.load(path)


# --- use: gradients, copies, costs, both runtimes ---

def test_biases_stay_trainable_and_packed_weights_stay_as_they_are():
    small = quantize_weights(tiny("cnn"), 4)
    frozen = {name: buffer.clone() for name, buffer in small.named_buffers()}
    assert {name.rsplit(".")[-1] for name, _ in small.named_parameters()} == {"bias"}
    trained, _ = training.fit(small, random_split(40), epochs=1, lr=0.1)
    assert not torch.equal(trained[7].bias, small[7].bias) and same(dict(trained.named_buffers()), frozen)
    frozen_bias = tiny("cnn")
    frozen_bias[0].bias.requires_grad_(False)
    assert not quantize_weights(frozen_bias, 4)[0].bias.requires_grad


def test_gradients_pass_through_to_the_input():
    x = IMAGES.clone().requires_grad_()
    quantize_weights(tiny("mlp"), 4)(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_copy_is_a_model_of_its_own_and_new_numbers_are_seen_at_once():
    small = quantize_weights(tiny("mlp"), 4)
    other, before = copy.deepcopy(small), small(IMAGES)
    other[1].form.scale.mul_(2)
    assert not torch.equal(other(IMAGES), before) and torch.equal(small(IMAGES), before)
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(IMAGES), before)


def test_the_mode_is_that_of_the_model():
    model = tiny("student")
    assert quantize_weights(model.train(), 8).training and not quantize_weights(model.eval(), 8)[0].training


def test_a_printed_model_says_how_it_is_stored():
    text = repr(quantize_weights(tiny("cnn"), 4, axis=0))
    assert "StoredLayer(" in text and "Conv2d, affine" in text and "quant_min=-8, quant_max=7, axis=0" in text and "stride=(1, 1)" in text


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet", "student"])
def test_costs_are_those_of_float32_with_the_stored_bytes(name):
    model = tiny(name)
    small = quantize_weights(model, 4)
    plain, packed = cost.layer_costs(model, IMAGES[:1]), cost.layer_costs(small, IMAGES[:1])
    layers = stored_layers(small)
    assert [(row.layer, row.macs, row.operands, row.activation_bytes) for row in plain] == [
        (row.layer, row.macs, row.operands, row.activation_bytes) for row in packed]
    assert {row.layer: row.weight_bytes for row in packed} == {n: layer.form.stored_bytes() for n, layer in layers.items()}
    for row, old in zip(packed, plain):
        weight = layers[row.layer].form.decode()
        assert row.ideal_macs == old.macs // weight.numel() * int(weight.count_nonzero())


def test_a_linear_layer_costs_the_same_at_every_place_of_a_sequence():
    layer = nn.Linear(6, 4)
    for model in (layer, quantize_weights(layer, 4)):
        assert cost.macs(model, torch.rand(2, 5, 6)) == 5 * 24


@pytest.mark.parametrize("bits", [1, 3, 8, 12])
def test_the_exported_model_predicts_the_same(bits):
    for name, options in (("cnn", {}), ("student", {"symmetric": False, "axis": None})):
        small = quantize_weights(tiny(name), bits, **options)
        run = deploy.load_onnx(deploy.onnx_bytes(small, IMAGES))
        assert torch.allclose(torch.from_numpy(run(IMAGES.numpy())), small(IMAGES), rtol=1e-4, atol=1e-4)


def test_an_exported_file_holds_the_packed_numbers_of_a_large_layer():
    model = models.mlp(1, 28, hidden=(300,)).eval()
    images = random_split(4, image_size=28).images
    small = quantize_weights(model, 4)
    content = deploy.onnx_bytes(small, images)
    assert len(content) < 1.2 * files.payload_bytes(small)
    run = deploy.load_onnx(content)
    assert torch.allclose(torch.from_numpy(run(images.numpy())), small(images), atol=1e-4)


def test_the_ruler_measures_it_in_both_runtimes():
    model = tiny("mlp")
    rows = report.measure({"float": model, "4 bits": quantize_weights(model, 4)}, random_split(8), batches=(1, 4), blocks=2,
                          runtimes=(report.ONNX_RUNTIME, report.EAGER))
    assert rows[1].file_bytes == files.saved_bytes(quantize_weights(model, 4)) and rows[0].macs == rows[1].macs
    assert len(rows[1].latency) == 4


# --- what cannot be quantized ---

def shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def hooked():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


def with_weight(value, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(2, 2).to(dtype))
    model[0].weight.data[0, 0] = value
    return model


def tied():
    model = language.decoder(width=8, depth=1, heads=2)
    model.output.weight = model.token.weight
    return model


def with_bias(value):
    model = mlp()
    model[1].bias.data[0] = value
    return model


REFUSED = {
    "a weight tied to an embedding": (tied(), "the weight of output is shared between layers"),
    "a diverged bias": (with_bias(math.nan), "must be finite float32; those of 1 are not"),
    "nothing to quantize": (nn.Sequential(nn.ReLU()), "no linear layer or convolution that could be quantized (ReLU, Sequential)"),
    "another kind of layer": (nn.Sequential(nn.Linear(2, 2), nn.ConvTranspose2d(1, 1, 2)),
                              "only Linear and Conv2d can be quantized, not 1 (ConvTranspose2d); name it in `skip`"),
    "a recurrent layer": (nn.LSTM(2, 2), "not the model (LSTM)"),
    "attention in one piece": (nn.MultiheadAttention(4, 2), "not the model (MultiheadAttention), out_proj"),
    "a parametrized layer": (nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), "not 0 (ParametrizedLinear)"),
    "a shared weight": (shared(), "the weight of 0 is shared between layers"),
    "hooks": (hooked(), "layer 0 has hooks"),
    "diverged weights": (with_weight(math.nan), "weights must be finite float32; those of 0 are not"),
    "weights in half precision": (with_weight(1.0, torch.float16), "weights must be finite float32; those of 0 are not"),
    "mirrored borders": (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), "0 pads with 'reflect'"),
    "twice": (quantize_weights(mlp(), 8), "no linear layer or convolution that could be quantized"),
}


@pytest.mark.parametrize("model, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_quantized_is_refused(model, message):
    for call in (quantizable, lambda m: quantize_weights(m, 8)):
        with pytest.raises(ValueError) as caught:
            call(model)
        assert message in str(caught.value)


def test_named_layers_stay_as_they_are():
    model = tiny("cnn")
    small = quantize_weights(model, 8, skip=("0",))
    assert type(small[0]) is nn.Conv2d and torch.equal(small[0].weight, model[0].weight) and list(stored_layers(small)) == ["3", "7"]
    other = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), nn.ConvTranspose2d(1, 1, 2))
    assert list(stored_layers(quantize_weights(other, 8, skip=("2",)))) == ["1"]


@pytest.mark.parametrize("options, message", [
    ({"skip": ("9",)}, "no layer named ['9']; the model has 1, 3"),
    ({"axis": 2}, "axis must be one of the 2 dimensions of shape (6, 256); got 2"),
    ({"axis": True}, "got True"),
    ({"group": 5}, "group must be a whole number that divides the 256 values of a row; got 5"),
    ({"convention": "tensorflow"}, "convention must be one of torch, torchao, onnxruntime; got 'tensorflow'"),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError) as caught:
        quantize_weights(mlp(), 8, **options)
    assert message in str(caught.value)


def test_a_form_needs_a_layer_that_exists():
    form = stored_layers(quantize_weights(mlp(), 8))["1"].form
    with pytest.raises(ValueError, match="the model has no linear layer or convolution named '2'"):
        store(mlp(), {"2": form})
    with pytest.raises(ValueError, match=r"unknown forms \['magic'\]; this version of course_lib has affine"):
        stored.empty_stored(mlp(), forms={"1": ["magic", {}]})


def test_two_models_share_no_form():
    model = tiny("mlp")
    forms = {name: AffineForm.of(layer.weight, grid_for(layer.weight, 4)) for name, layer in quantizable(model).items()}
    first, second = store(model, forms), store(model, forms)
    assert not {id(layer.form) for layer in stored_layers(first).values()} & {id(layer.form) for layer in stored_layers(second).values()}
