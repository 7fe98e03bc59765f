"""Rounding that can be trained through: forwards it rounds, backwards it acts as if it did not.

The gradient of a staircase is zero almost everywhere, so nothing would be learned. The straight-through estimator
replaces it by 1 wherever the rounded whole number is in range, and by 0 where it was clamped. A layer in training keeps
its weight in float32, in a form that rounds it anew each time it is used. Book: chapter 3, "A gradient through a staircase".
"""
import torch
from torch import nn

from .affine import Grid, grid_for
from .binary import SignForm
from .stored import FORMS, AffineForm

__all__ = ["FakeForm", "FakeMinMax", "FakeSign", "along", "fake_quantize_through", "straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounded, inside):
        ctx.save_for_backward(inside)
        return rounded.clone()

    @staticmethod
    def backward(ctx, gradient):
        inside, = ctx.saved_tensors
        return gradient * inside, None, None


def straight_through(x: torch.Tensor, rounded: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `x` where `inside` is True and none elsewhere; all of one shape.

    Source: Bengio, Léonard and Courville 2013, sec. 4.
    """
    return _StraightThrough.apply(x, rounded.detach(), inside)


def fake_quantize_through(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """As `fake_quantize`, for a grid of a whole tensor or with axis 0, with the straight-through gradient.

    Equals: torch.fake_quantize_per_tensor_affine and …_per_channel_affine, forwards and backwards.
    """
    if grid.axis not in (None, 0) or grid.group is not None:
        raise ValueError(f"need a grid of a whole tensor or with axis 0; got axis={grid.axis}, group={grid.group}")
    scale, zero_point = along(grid.scale, x), along(grid.zero_point, x)
    q = torch.round(x.detach() * (1 / scale)) + zero_point
    clamped = q.clamp(grid.quant_min, grid.quant_max)
    return straight_through(x, (clamped - zero_point) * scale, q == clamped)


def along(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One number for all of `x`, or one for each channel, in a shape that broadcasts."""
    return parameter if parameter.dim() == 0 else parameter.reshape(-1, *[1] * (x.dim() - 1))


class FakeForm(nn.Module):
    """A weight in training: float32, and rounded whenever it is decoded. `rounded` gives the form to be stored.

    Args: shape: of the weight; axis: None for one scale, 0 for one for each output channel.
    """

    def __init__(self, shape: list[int], bits: int, axis: int | None = None):
        super().__init__()
        self.options = {"shape": list(shape), "bits": bits, "axis": axis}
        self.bits, self.axis = bits, axis
        self.weight = nn.Parameter(torch.zeros(shape))

    @classmethod
    def of(cls, weight: torch.Tensor, bits: int, axis: int | None = None) -> "FakeForm":
        """This weight, copied."""
        form = cls(list(weight.shape), bits, axis)
        form.weight = nn.Parameter(weight.detach().clone())
        return form

    def stored_bytes(self) -> int:
        """Bytes while in training: all of float32."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())


class FakeMinMax(FakeForm):
    """On the grid from the smallest to the largest weight, found anew each time."""

    @property
    def grid(self) -> Grid:
        """The grid of the weights as they are now."""
        return grid_for(self.weight, self.bits, axis=self.axis)

    def decode(self) -> torch.Tensor:
        """The rounded weight."""
        return fake_quantize_through(self.weight, self.grid)

    def rounded(self) -> AffineForm:
        """Packed whole numbers that decode to the same weight."""
        return AffineForm.of(self.weight, self.grid)


class FakeSign(FakeForm):
    """One bit: ŵ = ±mean |w|, with the sign of w. The gradient passes everywhere, since no sign is out of range.

    Source: Rastegari et al. 2016, sec. 3.1, binary weights.
    """

    def __init__(self, shape: list[int], bits: int = 1, axis: int | None = None):
        if bits != 1:
            raise ValueError(f"a sign is one bit; got {bits!r} (for more bits: 'min-max' or 'learned step')")
        super().__init__(shape, bits, axis)

    def decode(self) -> torch.Tensor:
        """The rounded weight."""
        return straight_through(self.weight, self.rounded().decode(), torch.ones_like(self.weight, dtype=torch.bool))

    def rounded(self) -> SignForm:
        """Packed signs that decode to the same weight."""
        return SignForm.of(self.weight, axis=self.axis)


FORMS |= {"min-max in training": FakeMinMax, "sign in training": FakeSign}
