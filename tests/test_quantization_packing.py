"""Packed numbers take the bytes that the formula says, equal numpy's packed bits, and come back."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.quantization.packing import pack, packed_bytes, unpack

BITS = range(1, 17)


@st.composite
def numbers(draw):
    bits = draw(st.integers(1, 16))
    return bits, torch.tensor(draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), dtype=torch.int32)


def by_numpy(codes, bits):
    """Each number's bits in a row, lowest first, then packed."""
    columns = codes.reshape(-1, 1).numpy() >> np.arange(bits) & 1
    return np.packbits(columns.astype(np.uint8), bitorder="little")


def test_packing_by_hand():
    assert pack(torch.tensor([1, 2, 3, 0]), 2).tolist() == [0b00_11_10_01]
    assert pack(torch.tensor([7, 0, 5]), 3).tolist() == [0b01_000_111, 0b1]        # the third number crosses into the next byte
    assert pack(torch.tensor([0x1234]), 16).tolist() == [0x34, 0x12]
    assert pack(torch.tensor([1, 0, 1]), 1).tolist() == [0b101]


@given(numbers())
@settings(max_examples=300, deadline=None)
def test_what_is_packed_comes_back_and_equals_numpy(pair):
    bits, codes = pair
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_bytes(len(codes), bits),) == (-(-len(codes) * bits // 8),)
    assert np.array_equal(packed, by_numpy(codes, bits))
    back = unpack(packed, bits, len(codes))
    assert back.dtype == torch.int32 and torch.equal(back, codes)


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_number_is_packed_and_the_next_is_refused(bits):
    most = 2**bits - 1
    assert unpack(pack(torch.full((11,), most), bits), bits, 11).tolist() == [most] * 11
    for bad in (most + 1, -1):
        with pytest.raises(ValueError, match=f"numbers of {bits} bits go from 0 to {most}; got"):
            pack(torch.tensor([0, bad]), bits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_whole_type_and_shape_is_packed_alike(dtype):
    codes = torch.arange(24).remainder(8)
    assert torch.equal(pack(codes.reshape(2, 3, 4).to(dtype), 3), pack(codes, 3))
    assert torch.equal(pack(codes.reshape(4, 6).T.to(dtype), 3), pack(codes.reshape(4, 6).T.contiguous(), 3))


def test_packing_leaves_its_input_alone_and_shares_no_memory():
    for bits in BITS:
        codes = torch.arange(16, dtype=torch.uint8) & (2 ** min(bits, 4) - 1)
        before, packed = codes.clone(), pack(codes, bits)
        back = unpack(packed, bits, 16)
        packed.zero_()
        assert torch.equal(codes, before) and torch.equal(back, codes.int())


@pytest.mark.parametrize("packed", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8),
                                    torch.zeros(4, dtype=torch.int8), torch.zeros(2, 2, dtype=torch.uint8)])
def test_bytes_of_another_count_or_type_are_refused(packed):
    with pytest.raises(ValueError, match="10 numbers of 3 bits take 4 bytes, uint8; got"):
        unpack(packed, 3, 10)


@pytest.mark.parametrize("bits", [0, 17, -1, 2.0, True, "8", None])
def test_bits_must_be_1_to_16(bits):
    for call in (lambda: pack(torch.zeros(4, dtype=torch.uint8), bits), lambda: unpack(torch.zeros(4, dtype=torch.uint8), bits, 4)):
        with pytest.raises(ValueError, match="bits must be a whole number from 1 to 16; got"):
            call()


def test_real_numbers_are_not_packed():
    with pytest.raises(TypeError, match="only whole numbers can be packed; got torch.float32"):
        pack(torch.rand(4), 8)
