"""Linear quantization: real numbers become whole numbers on an even grid, x ≈ (q − z)·s.

The scale s is the distance of two neighbours of the grid, the zero point z the whole number that stands for 0. A
grid belongs to a whole tensor, to each slice along an axis (a channel), or to each group of values in a row.
Book: chapter 3, "From the formula to a grid".
"""
import dataclasses

import torch

from .blocks import blocks_of, check_bits, check_finite, check_kind, scale_shape, unblock

__all__ = ["CONVENTIONS", "Grid", "dequantize", "fake_quantize", "formula", "formula_back", "grid_for", "grid_from_range",
           "integer_range", "quantize", "ranges"]

CONVENTIONS = ("torch", "torchao", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which real number each whole number stands for.

    scale: float32, and zero_point: int32, both of shape () for a whole tensor, (channels,) along `axis`, or (rows, groups).
    quant_min, quant_max: the smallest and the largest whole number, both included.
    axis: the dimension of the channels; group: how many neighbours in a row share a scale (then axis is 0).
    """
    scale: torch.Tensor
    zero_point: torch.Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None
    group: int | None = None

    @property
    def bits(self) -> int:
        """Bits that one whole number takes."""
        return (self.quant_max - self.quant_min).bit_length()


def formula(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, float, float]:
    """x_int = round((x − x_min) / (x_max − x_min) · (2^b − 1)), as it stands in the source article.

    Returns: the codes, int32 from 0 to 2^bits − 1, with x_min and x_max, without which they mean nothing.
    Raises:  ValueError if all values are equal (it would divide by zero), or if `x` is empty or not finite.
    """
    check_bits(bits)
    x_min, x_max = (float(end) for end in ranges(x))
    if x_min == x_max:
        raise ValueError(f"all values are {x_min:g}: the formula divides by x_max − x_min, which is 0")
    return torch.round((x.double() - x_min) / (x_max - x_min) * (2**bits - 1)).int(), x_min, x_max


def formula_back(codes: torch.Tensor, x_min: float, x_max: float, bits: int) -> torch.Tensor:
    """The real numbers that the codes of `formula` stand for, float32."""
    return (x_min + codes.double() * (x_max - x_min) / (2**bits - 1)).float()


def integer_range(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest whole number of `bits` bits; narrow leaves one out, so that −q exists for every q."""
    check_bits(bits)
    half = 2 ** (bits - 1)
    return (-half + narrow, half - 1) if signed else (0, 2**bits - 1)


def ranges(x: torch.Tensor, *, axis: int | None = None, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of the tensor, of each channel or of each group, in the shapes of `Grid.scale`.

    Args:   axis: a dimension of `x`; group: how many neighbours in a row (all that follows dimension 0) go together.
    Raises: TypeError if `x` is not floating point; ValueError if it is empty, holds NaN or infinity, or if it has no
            such axis or no whole number of groups in a row.
    """
    check_kind(x)
    blocks = blocks_of(x.detach(), axis, group)
    low, high = blocks.amin(dim=1), blocks.amax(dim=1)
    check_finite(low.amin(), high.amax())
    shape = scale_shape(x.shape, axis, group)
    return low.reshape(shape), high.reshape(shape)


def grid_for(x: torch.Tensor, bits: int, *, symmetric: bool = False, signed: bool | None = None, axis: int | None = None,
             group: int | None = None, convention: str = "torch") -> Grid:
    """The grid from the smallest to the largest value of `x`.

    Args, Raises: as `ranges` and `grid_from_range`.
    """
    return grid_from_range(*ranges(x, axis=axis, group=group), bits, symmetric=symmetric, signed=signed,
                           axis=axis if group is None else 0, group=group, convention=convention)


def grid_from_range(low: torch.Tensor, high: torch.Tensor, bits: int, *, symmetric: bool = False, signed: bool | None = None,
                    axis: int | None = None, group: int | None = None, convention: str = "torch") -> Grid:
    """The grid for values from `low` to `high`, always stretched so that 0 lies on it.

    Args:   low, high: of shape (), (channels,) or (rows, groups).
            symmetric: the grid's middle is 0; signed: whole numbers from −2^(b−1) instead of 0; None: if symmetric.
            convention: whose parameters, exactly: "torch" (observers), "torchao", or "onnxruntime".
    Raises: ValueError for bits outside 1…16, an unknown convention, or ranges that are not finite, upside down, or so
            wide that a number on the grid overflows float32.
    Equals: torch.ao.quantization.MinMaxObserver, torchao's choose_qparams_affine, ONNX Runtime's compute_scale_zp.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")
    low, high = (torch.as_tensor(end, dtype=torch.float32) for end in (low, high))
    if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"a range needs finite ends, low <= high; got {low.tolist()} to {high.tolist()}")
    signed = symmetric if signed is None else signed
    onnx, limits = convention == "onnxruntime", torch.finfo(torch.float32)
    # ONNX Runtime leaves −128 and −32768 out of its symmetric grids, but not the −8 of its 4 bits.
    quant_min, quant_max = integer_range(bits, signed=signed, narrow=onnx and symmetric and signed and bits in (8, 16))
    steps = quant_max - quant_min
    low, high = low.clamp(max=0), high.clamp(min=0)         # 0 must be on the grid
    if onnx:
        low, high = low.double(), high.double()
    scale = torch.maximum(-low, high) / (steps / 2) if symmetric else (high - low) / steps
    least, instead = {"torch": (limits.eps,) * 2, "torchao": (limits.tiny,) * 2, "onnxruntime": (limits.tiny, 1.0)}[convention]
    no_range = scale < least
    scale = scale.masked_fill(no_range, instead)
    zero_point = torch.full_like(scale, _middle(bits, signed, convention)) if symmetric else quant_min - torch.round(low / scale)
    if onnx:
        zero_point = zero_point.masked_fill(no_range, 0)
    zero_point, scale = zero_point.clamp(quant_min, quant_max).int(), scale.float()
    if not torch.isfinite(scale * torch.maximum(zero_point - quant_min, quant_max - zero_point)).all():
        raise ValueError(f"the range is too wide: numbers on a grid from {low.min():g} to {high.max():g} overflow float32")
    return Grid(scale, zero_point, quant_min, quant_max, axis, group)


def quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """q = clamp(round(x / s) + z, quant_min, quant_max), in the smallest whole type that holds it, of the shape of `x`.

    A half goes to the even neighbour. x / s is computed as x · (1 / s), as torch and torchao do.
    Raises: TypeError, ValueError as `ranges`, and for a grid that does not belong to this shape.
    Equals: torchao's quantize_affine; torch.quantize_per_tensor but for ties, where that depends on the processor.
    """
    return unblock(_codes(x, grid).to(_dtype(grid)), x, grid.axis, grid.group)


def dequantize(q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """x̂ = (q − z)·s, float32, of the shape of `q`."""
    x = (_blocks_on(q, grid).float() - _column(grid.zero_point)) * _column(grid.scale)
    return unblock(x, q, grid.axis, grid.group)


def fake_quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`dequantize(quantize(x))` without the detour through whole numbers: what rounding does to `x`, in its data type.

    It has no gradient (rounding's is 0 wherever it exists); training needs another one in its place.
    Raises: as `quantize`.
    Equals: torch.fake_quantize_per_tensor_affine and …_per_channel_affine, to the last bit, ties included.
    """
    y = _codes(x, grid).sub_(_column(grid.zero_point)).mul_(_column(grid.scale))
    return unblock(y.to(x.dtype), x, grid.axis, grid.group)


def _codes(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The whole numbers, still floating point, in a fresh tensor of blocks that may be overwritten."""
    check_kind(x)
    blocks = _blocks_on(x.detach(), grid)
    if not torch.compiler.is_compiling():       # a recorded graph cannot look at values
        check_finite(*blocks.aminmax())
    y = blocks * (1 / _column(grid.scale))
    return y.round_().add_(_column(grid.zero_point)).clamp_(grid.quant_min, grid.quant_max)


def _blocks_on(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The blocks of a grid, which must have a scale for each."""
    blocks = blocks_of(x, grid.axis, grid.group)
    if len(blocks) != grid.scale.numel():
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has {len(blocks)} blocks (axis={grid.axis}, group={grid.group}); "
                         f"the grid has {grid.scale.numel()} scales")
    return blocks


def _column(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().reshape(-1, 1)


def _middle(bits: int, signed: bool, convention: str) -> int:
    """The zero point of a symmetric grid. Torch's observers take the lower middle where no type has just these bits."""
    return 0 if signed else 2 ** (bits - 1) - (convention == "torch" and bits not in (8, 16))


def _dtype(grid: Grid) -> torch.dtype:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= grid.quant_min and grid.quant_max <= limits.max:
            return dtype
    raise ValueError(f"no whole type holds {grid.quant_min} to {grid.quant_max}")
