"""The grid by hand, equal to torch, torchao and ONNX Runtime, and what must hold for every tensor."""
import contextlib
import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import quant_utils as ort
from torch.ao.quantization import observer as observers

from course_lib.quantization import affine, blocks
from course_lib.quantization.affine import Grid, dequantize, fake_quantize, formula, formula_back, grid_for, grid_from_range, quantize

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    from torchao.quantization import quant_primitives as torchao

BITS = range(1, 17)
EXAMPLE = torch.tensor([-0.3, 0.0, 0.1, 1.0])
FLOATS = st.floats(-2.0**100, 2.0**100, width=32)
GRIDS = {"bits": st.integers(1, 16), "symmetric": st.booleans(), "signed": st.booleans(),
         "convention": st.sampled_from(affine.CONVENTIONS)}


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def full_of_ties(grid, n=40_000):
    """Values on, halfway between and around the points of a grid, beyond its ends too."""
    steps = torch.arange(n).remainder(4 * (grid.quant_max - grid.quant_min)) - 2 * (grid.quant_max - grid.quant_min)
    x = steps / 2 * grid.scale
    return torch.cat([x, torch.nextafter(x, torch.tensor(math.inf)), torch.nextafter(x, torch.tensor(-math.inf)), normal(n)])


# --- by hand ---

def test_the_two_formulas_are_not_the_same():
    codes, x_min, x_max = formula(EXAMPLE, 3)
    assert codes.tolist() == [0, 2, 2, 7]
    back = formula_back(codes, x_min, x_max, 3)
    assert back[1].item() == pytest.approx(0.0714286) and back[[0, 3]].tolist() == pytest.approx([-0.3, 1.0])
    grid = grid_for(EXAMPLE, 3)
    assert quantize(EXAMPLE, grid).tolist() == [0, 2, 3, 7] and int(grid.zero_point) == 2
    assert grid.scale.item() == pytest.approx(1.3 / 7)
    assert dequantize(quantize(EXAMPLE, grid), grid)[1] == 0


def test_a_half_goes_to_the_even_neighbour():
    grid = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -4, 3)
    x = torch.tensor([-9, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9])
    assert quantize(x, grid).tolist() == [-4, -2, -2, 0, 0, 2, 2, 3]


def test_whole_types_are_the_smallest_that_fit():
    x = normal(50)
    for bits in BITS:
        assert quantize(x, grid_for(x, bits)).dtype == (torch.uint8 if bits <= 8 else torch.int16 if bits < 16 else torch.int32)
        assert quantize(x, grid_for(x, bits, signed=True)).dtype == (torch.int8 if bits <= 8 else torch.int16)
        assert grid_for(x, bits).bits == grid_for(x, bits, signed=True).bits == bits


@pytest.mark.parametrize("bits", BITS)
def test_the_source_formula_uses_every_end_and_is_half_a_step_off_at_most(bits):
    x = normal(1000)
    codes, x_min, x_max = formula(x, bits)
    assert codes.min() == 0 and codes.max() == 2**bits - 1
    error = (formula_back(codes, x_min, x_max, bits).double() - x.double()).abs().max()
    assert error <= (x_max - x_min) / (2**bits - 1) / 2 * 1.0001 + 1e-7


# --- equal to torch ---

@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_equals_torch_to_the_last_bit_on_and_off_ties(bits, signed):
    low, high = affine.integer_range(bits, signed=signed)
    for scale in (1.0, 0.1, 3e-5, 7e4, 2.0**-126, 1.7e38):
        for zero_point in {low, (low + high) // 2, high}:
            grid = Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)
            x = full_of_ties(grid, 4000)
            x = x[torch.isfinite(x)]
            assert torch.equal(fake_quantize(x, grid), torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_fake_quantize_equals_torch_in_every_data_type(dtype):
    grid = Grid(torch.tensor(0.125), torch.tensor(3, dtype=torch.int32), 0, 15)
    x = full_of_ties(grid).to(dtype)
    ours = fake_quantize(x, grid)
    assert ours.dtype == dtype and torch.equal(ours, torch.fake_quantize_per_tensor_affine(x, 0.125, 3, 0, 15))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fake_quantize_by_channel_equals_torch(axis, symmetric):
    x = normal(5, 6, 7)
    grid = grid_for(x, 4, axis=axis, symmetric=symmetric)
    x = torch.cat([x, torch.round(2 * normal(5, 6, 7, seed=1)) / 2 * grid.scale.reshape([-1 if d == axis % 3 else 1 for d in range(3)])])[:5]
    theirs = torch.fake_quantize_per_channel_affine(x, grid.scale, grid.zero_point, axis % 3, grid.quant_min, grid.quant_max)
    assert torch.equal(fake_quantize(x, grid), theirs)


def test_it_does_not_matter_how_a_tensor_lies_in_memory():
    x = normal(6, 8, 10)
    for other in (x.transpose(0, 2), x[:, ::2], x.to(memory_format=torch.contiguous_format).permute(1, 0, 2)):
        for options in ({}, {"axis": 1}, {"group": 5 if other.shape[1:].numel() % 5 == 0 else 2}):
            grid = grid_for(other, 5, **options)
            assert torch.equal(fake_quantize(other, grid), fake_quantize(other.clone(memory_format=torch.contiguous_format), grid))
            assert torch.equal(dequantize(quantize(other, grid), grid), fake_quantize(other, grid))


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantize_equals_torch_off_ties(bits):
    x = normal(20_000, seed=bits)
    grid = grid_for(x, bits)
    off_ties = ((x / grid.scale).frac().abs() - 0.5).abs() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # torch says that this will go
        theirs = torch.quantize_per_tensor(x, float(grid.scale), int(grid.zero_point), torch.quint8).int_repr()
    theirs = theirs.clamp(grid.quant_min, grid.quant_max)
    assert torch.equal(quantize(x, grid)[off_ties], theirs[off_ties])
    assert (quantize(x, grid).int() - theirs.int()).abs().max() <= 1


def observed(x, bits, *, symmetric, signed, axis):
    """Scale and zero point of torch's own observer."""
    low, high = affine.integer_range(bits, signed=signed)
    own_range = {} if bits == 8 else {"quant_min": low, "quant_max": high}      # torch takes another middle where it is given
    kind = torch.int16 if signed and bits > 8 else torch.qint8 if signed else torch.quint8 if bits <= 8 else torch.uint16
    if axis is None:
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        observer = observers.MinMaxObserver(dtype=kind, qscheme=scheme, **own_range)
    else:
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        observer = observers.PerChannelMinMaxObserver(ch_axis=axis, dtype=kind, qscheme=scheme, **own_range)
    observer(x)
    return observer.calculate_qparams()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_parameters_equal_those_of_torchs_observers(symmetric, signed, axis):
    for seed, bits in enumerate([1, 2, 3, 4, 7, 8, 16]):
        for x in (normal(5, 20, seed=seed), normal(5, 20, seed=seed).abs(), -normal(5, 20, seed=seed).abs(), torch.zeros(5, 20),
                  normal(5, 20, seed=seed, scale=1e-9), normal(5, 20, scale=1e30)):
            scale, zero_point = observed(x, bits, symmetric=symmetric, signed=signed, axis=axis)
            ours = grid_for(x, bits, symmetric=symmetric, signed=signed, axis=axis)
            assert torch.equal(ours.scale.reshape(-1), scale) and torch.equal(ours.zero_point.reshape(-1), zero_point.int())


# --- equal to torchao and ONNX Runtime ---

@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", ["tensor", "channel", "group"])
def test_parameters_and_codes_equal_torchao(bits, shape):
    block = {"tensor": (6, 40), "channel": (1, 40), "group": (1, 8)}[shape]
    options = {"tensor": {}, "channel": {"axis": 0}, "group": {"group": 8}}[shape]
    for symmetric in (False, True):
        for signed in (False, True):
            low, high = affine.integer_range(bits, signed=signed)
            for x in (normal(6, 40, seed=bits), torch.zeros(6, 40), normal(6, 40, scale=1e-39), normal(6, 40).abs() + 1):
                kind = torchao.MappingType.SYMMETRIC if symmetric else torchao.MappingType.ASYMMETRIC
                scale, zero_point = torchao.choose_qparams_affine(x, kind, block, torch.int32, low, high)
                grid = grid_for(x, bits, symmetric=symmetric, signed=signed, convention="torchao", **options)
                assert torch.equal(grid.scale.reshape(-1), scale.reshape(-1))
                assert torch.equal(grid.zero_point.reshape(-1), zero_point.reshape(-1))
                args = (block, scale, zero_point, torch.int32, low, high)
                assert torch.equal(quantize(x, grid).int(), torchao.quantize_affine(x, *args))
                assert torch.equal(fake_quantize(x, grid), torchao._fake_quantize_affine(x, *args))
                assert torch.equal(dequantize(quantize(x, grid), grid), torchao.dequantize_affine(
                    torchao.quantize_affine(x, *args), block, scale, zero_point, torch.int32, low, high))


ORT_TYPES = {(8, True): "INT8", (8, False): "UINT8", (16, True): "INT16", (16, False): "UINT16", (4, True): "INT4", (4, False): "UINT4"}


@pytest.mark.parametrize("bits, signed", ORT_TYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_parameters_and_codes_equal_onnx_runtime(bits, signed, symmetric):
    kind = getattr(ort.onnx_proto.TensorProto, ORT_TYPES[bits, signed])
    low, high = ort.get_qmin_qmax_for_qType(kind, symmetric=symmetric)
    for seed in range(20):
        for x in (normal(300, seed=seed), normal(300, seed=seed).abs(), -normal(300, seed=seed).abs() - 1, torch.zeros(9),
                  normal(300, scale=1e-42), normal(300, scale=1e37)):
            wide = (x.min().numpy(), x.max().numpy(), low.astype(np.int64), high.astype(np.int64))
            zero_point, scale = ort.compute_scale_zp(*wide, symmetric=symmetric)
            grid = grid_for(x, bits, symmetric=symmetric, signed=signed, convention="onnxruntime")
            assert (grid.quant_min, grid.quant_max) == (int(low), int(high))
            assert float(grid.scale) == float(scale) and int(grid.zero_point) == int(zero_point)
            theirs = torch.from_numpy(ort.quantize_nparray(kind, x.numpy(), scale, zero_point).astype(np.int32))
            off_ties = ((x / grid.scale).frac().abs() - 0.5).abs() > 1e-2
            assert torch.equal(quantize(x, grid).int()[off_ties], theirs[off_ties])


def test_conventions_differ_as_the_book_says():
    x = torch.tensor([-1.0, 1.0])
    assert grid_for(x, 8, symmetric=True).scale.item() == pytest.approx(1 / 127.5)
    onnx = grid_for(x, 8, symmetric=True, convention="onnxruntime")
    assert onnx.scale.item() == pytest.approx(1 / 127) and (onnx.quant_min, onnx.quant_max) == (-127, 127)
    least = [grid_for(torch.zeros(2), 8, convention=c).scale.item() for c in affine.CONVENTIONS]
    assert least == [2.0**-23, 2.0**-126, 1.0]


# --- what must hold for every tensor ---

@given(values=st.lists(FLOATS, min_size=1, max_size=30), **GRIDS)
@settings(max_examples=400, deadline=None)
def test_rounding_is_half_a_step_off_at_most_keeps_zero_and_order_and_is_done_once(values, **options):
    x = torch.tensor(sorted(values))
    grid = grid_for(x, **options)
    y = fake_quantize(x, grid)
    rounding = (x.double().abs() + 2 * float(grid.scale)) * 2.0**-22
    assert ((y.double() - x.double()).abs() <= float(grid.scale) / 2 + rounding).all()
    assert (fake_quantize(torch.zeros(3), grid) == 0).all()
    assert torch.equal(fake_quantize(y, grid), y)
    assert (y[1:] >= y[:-1]).all()
    assert torch.equal(dequantize(quantize(x, grid), grid), y)
    assert len(y.unique()) <= 2 ** options["bits"]


@given(seed=st.integers(0, 10**6), shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data(), **GRIDS)
@settings(max_examples=150, deadline=None)
def test_channels_and_groups_equal_a_loop_over_slices(seed, shape, data, **options):
    x = normal(*shape, seed=seed)
    axis = data.draw(st.integers(0, len(shape) - 1))
    grid = grid_for(x, axis=axis, **options)
    parts = [fake_quantize(part, grid_for(part, **options)) for part in x.unbind(axis)]
    assert torch.equal(fake_quantize(x, grid), torch.stack(parts, axis)) and grid.scale.shape == (shape[axis],)
    columns = x.numel() // (shape[0] if len(shape) > 1 else 1)
    group = data.draw(st.sampled_from([g for g in range(1, columns + 1) if columns % g == 0]))
    grid = grid_for(x, group=group, **options)
    parts = [fake_quantize(part, grid_for(part, **options)) for part in x.reshape(-1).split(group)]
    assert torch.equal(fake_quantize(x, grid).reshape(-1), torch.cat(parts))
    assert grid.scale.shape == (x.numel() // columns, columns // group)


def test_nothing_is_changed_in_place_and_no_gradient_flows():
    x = normal(4, 6).requires_grad_()
    before = x.detach().clone()
    grid = grid_for(x, 3, axis=0)
    codes = quantize(x, grid)
    kept = codes.clone()
    assert not fake_quantize(x, grid).requires_grad and not grid.scale.requires_grad
    dequantize(codes, grid)
    assert torch.equal(x, before) and torch.equal(codes, kept)


def test_more_bits_are_never_worse_on_the_same_range():
    x = normal(3000)
    errors = [float((fake_quantize(x, grid_for(x, bits)) - x).square().mean()) for bits in BITS]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:]))


# --- ranges near the end of float32, and bad input ---

BIG = torch.finfo(torch.float32).max


@pytest.mark.parametrize("low, high, options", [(-BIG, BIG, {}), (-BIG, 0, {"symmetric": True}), (0, BIG, {"symmetric": True}),
                                                (-BIG, BIG, {"convention": "torchao"})])
def test_a_range_whose_grid_overflows_is_refused(low, high, options):
    with pytest.raises(ValueError, match="the range is too wide: numbers on a grid from .* overflow float32"):
        grid_from_range(low, high, 8, **options)


@given(low=st.floats(-float(BIG), 0, width=32), high=st.floats(0, float(BIG), width=32), **GRIDS)
@settings(deadline=None)
def test_whatever_is_not_refused_decodes_to_finite_numbers(low, high, **options):
    try:
        grid = grid_from_range(low, high, **options)
    except ValueError as error:
        assert "too wide" in str(error) and max(-low, high) > BIG / 5
        return
    assert grid.scale > 0 and torch.isfinite(fake_quantize(torch.tensor([low, high, 0, -BIG, BIG]), grid)).all()


@pytest.mark.parametrize("call", [quantize, fake_quantize])
@pytest.mark.parametrize("place", [0, 17, 39])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_found_wherever_it_is(call, place, bad):
    x = normal(4, 10)
    grid = grid_for(x, 8, axis=0)
    x.view(-1)[place] = bad
    for attempt in (lambda: call(x, grid), lambda: grid_for(x, 8, axis=0), lambda: grid_for(x, 8), lambda: formula(x, 8)):
        with pytest.raises(ValueError, match="values must be finite; got NaN or infinity"):
            attempt()


def test_constant_tensors_have_a_grid_but_no_source_formula():
    for value in (-2.0, 0.0, 3.0):
        x = torch.full((5,), value)
        for convention in affine.CONVENTIONS:
            assert fake_quantize(x, grid_for(x, 8, convention=convention)).tolist() == pytest.approx(x.tolist(), rel=1e-6)
        with pytest.raises(ValueError, match=f"all values are {value:g}: the formula divides by x_max − x_min, which is 0"):
            formula(x, 8)


def test_the_layout_in_blocks_can_be_undone():
    x = normal(4, 6, 3)
    for axis, group, rows in ((None, None, 1), (0, None, 4), (1, None, 6), (-1, None, 3), (0, 9, 8), (None, 2, 36)):
        laid = blocks.blocks_of(x, axis, group)
        assert len(laid) == rows and torch.equal(blocks.unblock(laid, x, axis, group), x)
