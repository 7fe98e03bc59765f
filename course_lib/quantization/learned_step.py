"""Learned step size: the scale of the grid is a parameter, trained by its own gradient like the weights.

    ŵ = s · clamp(round(w / s), −Q_n, Q_p)         ∂ŵ/∂s = round(w / s) − w / s in range, −Q_n or Q_p where clamped

A larger step rounds more coarsely, a smaller one clamps more weights: the gradient weighs the two for the loss, where
min and max look at two weights only. Book: chapter 3, "A step that is learned".
"""
import torch
from torch import nn

from .affine import Grid, integer_range
from .binary import SignForm
from .stored import FORMS, AffineForm
from .ste import FakeForm, along, straight_through

__all__ = ["LearnedStep"]


class LearnedStep(FakeForm):
    """A weight in training on a signed grid with zero point 0, whose step is an `nn.Parameter`.

    With one bit the two values are ±s, not −s and 0: the nearest odd multiple of s, out of range beyond ±2s.
    Source: Esser et al. 2020, eqs. 1–3 and sec. 2.2; in range is decided by the rounded whole number, as in PyTorch.
    Equals: torch._fake_quantize_learnable_per_tensor_affine and …_per_channel_affine, from two bits on.
    """

    def __init__(self, shape: list[int], bits: int, axis: int | None = None):
        super().__init__(shape, bits, axis)
        self.quant_min, self.quant_max = integer_range(bits, signed=True) if bits > 1 else (-1, 1)
        self.step = nn.Parameter(torch.ones(() if axis is None else shape[axis]))

    @classmethod
    def of(cls, weight: torch.Tensor, bits: int, axis: int | None = None) -> "LearnedStep":
        """This weight, copied, with the first step 2·mean |w| / √Q_p."""
        form = super().of(weight, bits, axis)
        sizes = form.weight.detach().abs()
        mean = sizes.mean() if axis is None else sizes.flatten(1).mean(dim=1)
        form.step = nn.Parameter(2 * mean / form.quant_max**0.5)
        return form

    @property
    def positive_step(self) -> torch.Tensor:
        """The step as it is used: never zero or negative, wherever training takes the parameter."""
        return self.step.abs().clamp(min=torch.finfo(torch.float32).eps)

    def decode(self) -> torch.Tensor:
        """The rounded weight; its gradient reaches the weight and, times 1/√(N·Q_p), the step."""
        # 1. The step as it is, with a gradient that is smaller: a sum over N weights would drown their own.
        weights_per_step = self.weight.numel() / self.step.numel()
        factor = (weights_per_step * self.quant_max) ** -0.5
        step = self.positive_step
        step = along((step - step.detach()) * factor + step.detach(), self.weight)
        # 2. Divide, round and clamp; the gradient passes where clamping changed nothing.
        v = self.weight * (1 / step)
        q = torch.round(v.detach()) if self.bits > 1 else 2 * torch.floor(v.detach() / 2) + 1
        clamped = q.clamp(self.quant_min, self.quant_max)
        # 3. Multiply by the step again: autograd finds both gradients.
        return straight_through(v, clamped, q == clamped) * step

    def rounded(self) -> AffineForm | SignForm:
        """Packed whole numbers that decode to the same weight."""
        step = self.positive_step.detach()
        if self.bits == 1:
            form = SignForm.of(self.weight, axis=self.axis)
            form.scale = step
            return form
        zero = torch.zeros_like(step, dtype=torch.int32)
        return AffineForm.of(self.weight, Grid(step, zero, self.quant_min, self.quant_max, self.axis))


FORMS["learned step in training"] = LearnedStep
