"""Which values share a scale: the whole tensor, a channel, or a group of neighbours in a row.

Every grid does the same to each block, so a tensor is laid out with one row for each block, and put back after.
Book: chapter 3, "From the formula to a grid".
"""
import math

import torch

__all__ = ["blocks_of", "check_bits", "check_finite", "check_kind", "scale_shape", "unblock"]


def scale_shape(shape: tuple[int, ...], axis: int | None, group: int | None) -> tuple[int, ...]:
    """Shape of the scales for a tensor of this shape: (), (channels,) or (rows, groups).

    Args:   axis: a dimension, with a block for each slice; group: that many neighbours in a row, which is all that
            follows dimension 0; neither: one block.
    Raises: ValueError for an axis that is none of the dimensions, or a group that does not divide a row.
    """
    if group is not None:
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // rows
        if type(group) is not int or group < 1 or columns % group:
            raise ValueError(f"group must be a whole number that divides the {columns} values of a row; got {group!r}")
        return rows, columns // group
    if axis is None:
        return ()
    if type(axis) is not int or not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis must be one of the {len(shape)} dimensions of shape {tuple(shape)}; got {axis!r}")
    return (shape[axis],)


def blocks_of(x: torch.Tensor, axis: int | None, group: int | None) -> torch.Tensor:
    """The values of shape (blocks, values in a block); see `scale_shape`."""
    blocks = math.prod(scale_shape(x.shape, axis, group))
    return (x.movedim(axis, 0) if axis and group is None else x).reshape(blocks, -1)       # axis 0 is in its place


def unblock(blocks: torch.Tensor, like: torch.Tensor, axis: int | None, group: int | None) -> torch.Tensor:
    """Blocks back in the shape of the tensor that they came from."""
    if axis and group is None:
        return blocks.reshape(like.movedim(axis, 0).shape).movedim(0, axis)
    return blocks.reshape(like.shape)


def check_bits(bits: int) -> None:
    """Raise ValueError for bits outside 1…16."""
    if type(bits) is not int or not 1 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 1 to 16; got {bits!r}")


def check_kind(x: torch.Tensor) -> None:
    """Raise an error for values that are none: whole numbers (TypeError), or an empty tensor (ValueError)."""
    if not x.is_floating_point():
        raise TypeError(f"values must be floating point; got {x.dtype}")
    if not x.numel():
        raise ValueError("cannot quantize an empty tensor: it has no range")


def check_finite(low: torch.Tensor, high: torch.Tensor) -> None:
    """Raise ValueError if the smallest or the largest of all values is NaN or infinite, as it is where any value is."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("values must be finite; got NaN or infinity (did training diverge?)")
