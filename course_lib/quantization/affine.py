"""Linear quantization: real numbers become whole numbers on an even grid, x ≈ (q − z)·s.

The scale s is the distance of two neighbours of the grid, the zero point z the whole number that stands for 0. A
grid belongs to a whole tensor, to each slice along an axis (a channel), or to each group of values in a row.
Book: chapter 3, "From the formula to a grid".
"""
import dataclasses

import torch

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
    _check_bits(bits)
    _check_values(x)
    x_min, x_max = float(x.min()), float(x.max())
    if x_min == x_max:
        raise ValueError(f"all values are {x_min:g}: the formula divides by x_max − x_min, which is 0")
    return torch.round((x.double() - x_min) / (x_max - x_min) * (2**bits - 1)).int(), x_min, x_max


def formula_back(codes: torch.Tensor, x_min: float, x_max: float, bits: int) -> torch.Tensor:
    """The real numbers that the codes of `formula` stand for, float32."""
    return (x_min + codes.double() * (x_max - x_min) / (2**bits - 1)).float()


def integer_range(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest whole number of `bits` bits; narrow leaves one out, so that −q exists for every q."""
    _check_bits(bits)
    half = 2 ** (bits - 1)
    return (-half + narrow, half - 1) if signed else (0, 2**bits - 1)


def ranges(x: torch.Tensor, *, axis: int | None = None, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of the tensor, of each channel or of each group, in the shapes of `Grid.scale`."""
    _check_values(x)
    low, high = _blocks(x, axis, group).aminmax(dim=1)
    shape = _shape(x, axis, group)
    return low.reshape(shape), high.reshape(shape)


def grid_for(x: torch.Tensor, bits: int, *, symmetric: bool = False, signed: bool | None = None, axis: int | None = None,
             group: int | None = None, convention: str = "torch") -> Grid:
    """The grid from the smallest to the largest value of `x`; see `grid_from_range`."""
    return grid_from_range(*ranges(x.detach(), axis=axis, group=group), bits, symmetric=symmetric, signed=signed,
                           axis=0 if group else axis, group=group, convention=convention)


def grid_from_range(low: torch.Tensor, high: torch.Tensor, bits: int, *, symmetric: bool = False, signed: bool | None = None,
                    axis: int | None = None, group: int | None = None, convention: str = "torch") -> Grid:
    """The grid for values from `low` to `high`, always stretched so that 0 lies on it.

    Args:   low, high: of shape (), (channels,) or (rows, groups).
            symmetric: the grid's middle is 0; signed: whole numbers from −2^(b−1) instead of 0; None: if symmetric.
            convention: whose parameters, exactly: "torch" (observers), "torchao", or "onnxruntime".
    Raises: ValueError for bits outside 1…16, ranges that are not finite or upside down, an unknown convention.
    Equals: torch.ao.quantization.MinMaxObserver, torchao's choose_qparams_affine, ONNX Runtime's compute_scale_zp.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")
    low, high = (torch.as_tensor(end, dtype=torch.float32) for end in (low, high))
    if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"a range needs finite ends, low <= high; got {low} to {high}")
    signed = symmetric if signed is None else signed
    onnx = convention == "onnxruntime"
    quant_min, quant_max = integer_range(bits, signed=signed, narrow=onnx and symmetric and signed)
    low, high = low.clamp(max=0), high.clamp(min=0)         # 0 must be on the grid
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if onnx:
        low, high = low.double(), high.double()
    scale = (high - low) / (quant_max - quant_min)
    if onnx:
        tiny = scale < torch.finfo(torch.float32).tiny
        scale = torch.where(tiny, 1.0, scale)
    else:
        scale = scale.clamp(min=torch.finfo(torch.float32).eps if convention == "torch" else torch.finfo(torch.float32).tiny)
    if symmetric:
        zero_point = torch.full_like(scale, 0 if signed else (quant_min + quant_max + 1) // 2)
    else:
        zero_point = quant_min - torch.round(low / scale)
    zero_point = zero_point.clamp(quant_min, quant_max).int()
    return Grid(scale.float(), zero_point, quant_min, quant_max, axis, group)


def quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """q = clamp(round(x / s) + z, quant_min, quant_max), in the smallest whole type that holds it, of the shape of `x`."""
    _check_values(x)
    blocks = _blocks(x, grid.axis, grid.group).float()
    q = torch.round(blocks * (1 / _column(grid.scale))) + _column(grid.zero_point)
    return _unblock(q.clamp_(grid.quant_min, grid.quant_max).to(_dtype(grid)), x, grid)


def dequantize(q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """x̂ = (q − z)·s, float32, of the shape of `q`."""
    blocks = _blocks(q, grid.axis, grid.group)
    return _unblock((blocks.float() - _column(grid.zero_point)) * _column(grid.scale), q, grid)


def fake_quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`dequantize(quantize(x))` without the detour through whole numbers: what rounding does to `x`.

    Equals: torch.fake_quantize_per_tensor_affine and …_per_channel_affine, to the last bit, ties included.
    """
    _check_values(x)
    blocks, zero_point, scale = _blocks(x, grid.axis, grid.group).float(), _column(grid.zero_point), _column(grid.scale)
    y = (blocks * (1 / scale)).round_().add_(zero_point).clamp_(grid.quant_min, grid.quant_max)
    return _unblock(y.sub_(zero_point).mul_(scale), x, grid)


def _dtype(grid: Grid) -> torch.dtype:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= grid.quant_min and grid.quant_max <= limits.max:
            return dtype
    raise ValueError(f"no whole type holds {grid.quant_min} to {grid.quant_max}")


def _column(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.reshape(-1, 1)


def _blocks(x: torch.Tensor, axis: int | None, group: int | None) -> torch.Tensor:
    """One row for each scale: the whole tensor, the channels, or the groups."""
    if group is not None:
        rows, columns = (x.shape[0], x[0].numel()) if x.dim() > 1 else (1, x.numel())
        if type(group) is not int or group < 1 or columns % group:
            raise ValueError(f"group must divide the {columns} values of a row; got {group!r}")
        return x.reshape(-1, group)
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x.reshape(-1, 1)


def _unblock(blocks: torch.Tensor, like: torch.Tensor, grid: Grid) -> torch.Tensor:
    if grid.axis is None or grid.group is not None or like.dim() < 2:
        return blocks.reshape(like.shape)
    return blocks.reshape(like.movedim(grid.axis, 0).shape).movedim(0, grid.axis)


def _shape(x: torch.Tensor, axis: int | None, group: int | None) -> tuple[int, ...]:
    if group is not None:
        rows = x.shape[0] if x.dim() > 1 else 1
        return rows, x.numel() // rows // group
    return () if axis is None else (x.shape[axis],)


def _check_bits(bits: int) -> None:
    if type(bits) is not int or not 1 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 1 to 16; got {bits!r}")


def _check_values(x: torch.Tensor) -> None:
    if not x.numel():
        raise ValueError("cannot quantize an empty tensor: it has no range")
    if not torch.isfinite(x).all():
        raise ValueError("values must be finite; got NaN or infinity (did training diverge?)")
