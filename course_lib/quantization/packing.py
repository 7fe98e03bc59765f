"""Bit packing: whole numbers of 1 to 16 bits, without the gaps that whole bytes would leave.

Four numbers of 2 bits share a byte. The first number is in the lowest bits of the first byte, and a number may
cross from one byte into the next. Book: chapter 3, "A file that is really smaller".
"""
import numpy as np
import torch

__all__ = ["pack", "packed_bytes", "unpack"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take, the last byte filled up."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers from 0 to 2^bits − 1, of any shape, as uint8 of shape (packed_bytes,).

    Raises: ValueError for numbers that do not fit, or bits outside 1…16.
    Equals: numpy.packbits(…, bitorder="little") for one bit.
    """
    _check_bits(bits)
    flat = codes.reshape(-1).numpy()
    if flat.size and not (0 <= flat.min() and flat.max() < 2**bits):
        raise ValueError(f"numbers of {bits} bits go from 0 to {2**bits - 1}; got {flat.min()} to {flat.max()}")
    if bits in (8, 16):
        return torch.from_numpy(flat.astype("<u2" if bits == 16 else np.uint8).view(np.uint8))
    columns = (flat.astype(np.uint16)[:, None] >> np.arange(bits, dtype=np.uint16) & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(columns, bitorder="little"))


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The `count` numbers that `pack` packed, int32 of shape (count,).

    Raises: ValueError if the bytes are not as many as `count` numbers take, or their filling is not zero.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ValueError(f"{count} numbers of {bits} bits take {packed_bytes(count, bits)} bytes; got {tuple(packed.shape)} "
                         f"of {packed.dtype}")
    content = packed.numpy()
    if bits in (8, 16):
        return torch.from_numpy(content.view("<u2" if bits == 16 else np.uint8).astype(np.int32))
    columns = np.unpackbits(content, bitorder="little")
    if columns[count * bits:].any():
        raise ValueError("the bits behind the last number are not zero: these bytes were packed otherwise")
    columns = columns[: count * bits].reshape(count, bits).astype(np.int32)
    return torch.from_numpy((columns << np.arange(bits, dtype=np.int32)).sum(axis=1, dtype=np.int32))


def _check_bits(bits: int) -> None:
    if type(bits) is not int or not 1 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 1 to 16; got {bits!r}")
