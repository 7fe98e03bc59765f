"""Bit packing: whole numbers of 1 to 16 bits, without the gaps that whole bytes would leave.

Four numbers of 2 bits share a byte. The first number is in the lowest bits of the first byte, and a number may
cross from one byte into the next; eight numbers of b bits fill just b bytes. Book: chapter 3, "A file that is really
smaller".
"""
import numpy as np
import torch
from torch.nn import functional as F

from .blocks import check_bits

__all__ = ["pack", "packed_bytes", "unpack"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take, the last byte filled up with zeros."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers from 0 to 2^bits − 1, of any shape, as uint8 of shape (packed_bytes,).

    Raises: TypeError for numbers that are not whole; ValueError for numbers that do not fit, or bits outside 1…16.
    Equals: numpy.packbits(…, bitorder="little") for one bit.
    """
    check_bits(bits)
    if codes.is_floating_point() or codes.is_complex():
        raise TypeError(f"only whole numbers can be packed; got {codes.dtype}")
    flat = codes.detach().reshape(-1).numpy()
    if flat.size and flat.view(f"u{flat.itemsize}").max() >= 2**bits:         # seen so, a number below 0 is a large one
        raise ValueError(f"numbers of {bits} bits go from 0 to {2**bits - 1}; got {flat.min()} to {flat.max()}")
    if bits == 1:
        return torch.from_numpy(np.packbits(flat.astype(np.uint8, copy=False), bitorder="little"))      # the same, quicker
    eights = np.zeros((-(-flat.size // 8), 8), np.uint8 if bits <= 8 else np.uint16)
    eights.reshape(-1)[:flat.size] = flat
    packed = np.zeros((len(eights), bits), np.uint8)
    for number, byte, shift in _places(bits):
        packed[:, byte] |= (eights[:, number] << shift if shift >= 0 else eights[:, number] >> -shift).astype(np.uint8)
    return torch.from_numpy(packed.reshape(-1)[:packed_bytes(flat.size, bits)])


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The `count` numbers that `pack` packed, int32 of shape (count,). It can be recorded in an ONNX file.

    Raises: ValueError if the bytes are not as many as `count` numbers take.
    """
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ValueError(f"{count} numbers of {bits} bits take {packed_bytes(count, bits)} bytes, uint8; got "
                         f"{packed.numel()}, {packed.dtype}")
    if bits == 8:
        return packed.int()                     # the same, quicker
    content = F.pad(packed.int(), (0, -len(packed) % bits)).reshape(-1, bits)
    eights = [0] * 8
    for number, byte, shift in _places(bits):
        eights[number] = eights[number] + (content[:, byte] >> shift if shift >= 0 else content[:, byte] << -shift)
    return (torch.stack(eights, dim=1) & (2**bits - 1)).reshape(-1)[:count]


def _places(bits: int) -> list[tuple[int, int, int]]:
    """For eight numbers in `bits` bytes: which number has bits in which byte, and how far it is shifted left there."""
    return [(number, byte, shift) for number in range(8) for byte in range(bits)
            if -bits < (shift := number * bits - 8 * byte) < 8]
