"""Signs and trits: the scale is the best there is, the bytes are true, the file gives the same model."""
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_lib import deploy, files, models
from course_lib.quantization.binary import SignForm, TernaryForm, pack_trits, quantize_binary, quantize_ternary, unpack_trits
from course_lib.quantization.stored import StoredLayer, store
from helpers import TINY, random_split, same, saved_and_loaded, state, tiny


@st.composite
def weights(draw):
    shape = draw(st.sampled_from([(1, 1), (3, 7), (2, 3, 2, 2), (5, 4)]))
    values = draw(st.lists(st.floats(-10, 10, width=32), min_size=torch.Size(shape).numel(), max_size=torch.Size(shape).numel()))
    return torch.tensor(values).reshape(shape)


axes = st.sampled_from([None, 0])


def by_channel(x, axis):
    return x.double().reshape(1 if axis is None else len(x), -1)


# --- signs ---

def test_signs_by_hand():
    weight = torch.tensor([[0.5, -1.5, 0.0, 2.0], [-1.0, -3.0, 1.0, 3.0]])
    form = SignForm.of(weight)
    assert form.decode().tolist() == [[1.0, -1.0, 1.0, 1.0], [-2.0, -2.0, 2.0, 2.0]]
    assert form.packed.tolist() == [0b11001101]
    assert SignForm.of(weight, axis=None).decode().unique().tolist() == [-1.5, 1.5]
    assert form.stored_bytes() == 1 + 2 * 4


@given(weights(), axes, st.floats(0, 12))
def test_no_other_scale_is_better(weight, axis, other):
    form = SignForm.of(weight, axis=axis)
    target, signs = by_channel(weight, axis), by_channel(form.codes, axis)
    ours = ((target - by_channel(form.decode(), axis)) ** 2).sum(dim=1)
    assert bool((ours <= ((target - other * signs) ** 2).sum(dim=1) + 1e-4).all())
    assert torch.equal(signs.abs(), torch.ones_like(signs))


@given(weights(), axes)
def test_the_scale_is_the_mean_magnitude_and_signs_stay(weight, axis):
    form = SignForm.of(weight, axis=axis)
    torch.testing.assert_close(form.scale.double().reshape(-1), by_channel(weight, axis).abs().mean(dim=1), rtol=1e-5, atol=1e-6)
    assert bool((form.decode() * weight >= 0).all())


# --- trits ---

def test_three_values_by_hand():
    weight = torch.tensor([[1.0, -2.0, 0.1, -0.9]])         # mean |w| is 1, the threshold 0.7
    form = TernaryForm.of(weight)
    assert form.decode().tolist() == [[pytest.approx(1.3), pytest.approx(-1.3), 0.0, pytest.approx(-1.3)]]
    assert form.packed.tolist() == [2 + 3 * 0 + 9 * 1 + 27 * 0]


@given(weights(), axes, st.sampled_from(["trits", "bits"]), st.floats(0, 12))
def test_the_ternary_scale_is_the_best_for_its_codes(weight, axis, packing, other):
    form = TernaryForm.of(weight, axis=axis, packing=packing)
    target, codes = by_channel(weight, axis), by_channel(form.codes, axis)
    kept = target.abs() > 0.7 * weight.reshape(target.shape).abs().mean(dim=1, keepdim=True)
    assert torch.equal(codes, target.sign() * kept)
    ours = ((target - by_channel(form.decode(), axis)) ** 2).sum(dim=1)
    assert bool((ours <= ((target - other * codes) ** 2).sum(dim=1) + 1e-4).all())


def test_ternary_loses_less_than_binary_on_bell_shaped_weights():
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    binary, ternary = (float(((weight - form.of(weight).decode()) ** 2).mean()) for form in (SignForm, TernaryForm))
    # For normal weights the sign leaves 1 − 2/π, and the best three values 0.190.
    assert binary == pytest.approx(1 - 2 / torch.pi, abs=0.02) and ternary == pytest.approx(0.19, abs=0.02)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_trits_come_back(digits):
    packed = pack_trits(torch.tensor(digits, dtype=torch.int64))
    assert packed.dtype == torch.uint8 and len(packed) == -(-len(digits) // 5)
    assert unpack_trits(packed, len(digits)).tolist() == digits


def test_all_243_bytes_are_used():
    every = torch.tensor(list(itertools.product(range(3), repeat=5))).flip(1)
    assert pack_trits(every).tolist() == list(range(243))


@pytest.mark.parametrize("act, message", [
    (lambda: pack_trits(torch.tensor([0, 3])), "a trit is 0, 1 or 2; got 0 to 3"), (lambda: pack_trits(torch.tensor([-1])), "got -1"),
    (lambda: unpack_trits(torch.zeros(2, dtype=torch.uint8), 5), "5 trits take 1 bytes"),
    (lambda: unpack_trits(torch.zeros(1), 5), "float32"),
    (lambda: SignForm.of(torch.empty(2, 0)), "empty tensor"), (lambda: TernaryForm.of(torch.tensor([[float("nan")]])), "finite"),
    (lambda: SignForm([2, 2], axis=1), "axis must be 0"), (lambda: TernaryForm([2, 2], packing="bytes"), "'trits' or 'bits'"),
    (lambda: quantize_binary(nn.Sequential(nn.ReLU())), "no linear layer"),
    (lambda: quantize_ternary(tiny("mlp"), skip=("x",)), "no layer named")])
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()


# --- models ---

QUANTIZE = {"sign": quantize_binary, "sign, one scale": lambda model: quantize_binary(model, axis=None), "trits": quantize_ternary,
            "two bits": lambda model: quantize_ternary(model, axis=None, packing="bits")}
CODE_BYTES = {"sign": lambda n: -(-n // 8), "sign, one scale": lambda n: -(-n // 8), "trits": lambda n: -(-n // 5),
              "two bits": lambda n: -(-n // 4)}


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("way", QUANTIZE)
def test_saved_and_loaded_with_the_bytes_that_are_reported(name, way, tmp_path):
    model = tiny(name)
    before = state(model)
    small = QUANTIZE[way](model)
    assert same(state(model), before)
    again = saved_and_loaded(small, tmp_path)
    shapes = [layer.weight.shape for layer in model.modules() if type(layer) in (nn.Linear, nn.Conv2d)]
    scales = [1 if way in ("sign, one scale", "two bits") else shape[0] for shape in shapes]
    expected = [CODE_BYTES[way](shape.numel()) + 4 * n for shape, n in zip(shapes, scales)]
    assert [layer.form.stored_bytes() for layer in again.modules() if isinstance(layer, StoredLayer)] == expected
    others = sum(t.numel() * t.element_size() for t in before.values()) - 4 * sum(shape.numel() for shape in shapes)
    assert files.payload_bytes(again) == others + sum(expected)


@pytest.mark.parametrize("way", ["sign", "trits"])
def test_the_onnx_file_predicts_the_same(way):
    model, images = QUANTIZE[way](tiny("cnn")), random_split(5).images
    run = deploy.load_onnx(deploy.onnx_bytes(model, images))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(images.numpy())), model(images), rtol=1e-4, atol=1e-5)


def test_a_dead_channel_stays_dead():
    weight = torch.zeros(2, 3)
    assert not SignForm.of(weight).decode().any() and not TernaryForm.of(weight).decode().any()


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t["1.form.scale"].fill_(float("inf")), "finite float32"), (lambda t: t["1.form.scale"].mul_(-1), "not below 0"),
    (lambda t: t["1.form.packed"].fill_(250), "at most 242"), (lambda t: t["3.form.packed"].fill_(255), "−1, 0 or 1")])
def test_a_damaged_file_is_refused(spoil, message, tmp_path):
    model = models.mlp(1, 4, hidden=(5,), classes=4)            # 80 and 20 weights
    small = store(model, {"1": TernaryForm.of(model[1].weight), "3": TernaryForm.of(model[3].weight, packing="bits")})
    tensors = state(small)
    spoil(tensors)
    files.save_form(small, tensors, tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path / "model")
