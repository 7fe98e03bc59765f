"""Integer layers: products of 8-bit codes, summed in 32 bits, and rounded once at the end.

    x ≈ s_x·(q_x − z_x)      unsigned codes from 0 to 255, which a code z_x for zero shifts
    w ≈ s_w·q_w              signed codes, no shift; one scale for all weights or for each output
    b ≈ s_x·s_w·q_b          32 bits, on the grid of the products, so that it can be added to them

    acc = Σ (q_x − z_x)·q_w + q_b          whole numbers only; y ≈ s_x·s_w·acc
    q_y = clamp(round(acc · s_x·s_w / s_y) + z_y, 0, 255)

The sum is exact: integers add up to the same in any order. The last line is "requantization". Its factor is a real
number; here and in ONNX Runtime it is a float32. A chip without floating point stores M = s_x·s_w/s_y as M₀·2^−(31+n)
with a 32-bit integer M₀ from 2^30 to 2^31, so that a 64-bit product and a rounding shift do (Jacob et al. 2018, eq. 6).
A ReLU costs nothing: clamp at z_y, the code of zero, instead of 0. Book: chapter 3, "Arithmetic with integers".
"""
import torch
from torch import nn
from torch.nn import functional as F

from ..declared import LayerCost
from .affine import Grid, grid_for, quantize
from .qdq import dequantize_node, quantize_node

__all__ = ["Int8Conv2d", "Int8Linear", "accumulate", "accumulate_expanded", "check_accumulator", "requantize"]


def accumulate(codes: torch.Tensor, zero_point: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """acc = Σ (q_x − z_x)·q_w + q_b, int32.

    Args: codes: uint8 (…, k); zero_point: (); weight: int8 (n, k); bias: int32 (n,). Returns: shape (…, n).
    """
    return F.linear(codes.int() - zero_point.int(), weight.int()) + bias


def accumulate_expanded(codes: torch.Tensor, zero_point: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same number as runtimes compute it: acc = Σ q_x·q_w + (q_b − z_x·Σ q_w).

    The products take the codes as they are, in 8 bits; the bracket does not depend on the input and is computed once.
    """
    constant = bias - zero_point.int() * weight.int().sum(1, dtype=torch.int32)
    return F.linear(codes.int(), weight.int()) + constant


def requantize(acc: torch.Tensor, multiplier: torch.Tensor, zero_point: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
    """q_y = clamp(round(acc·multiplier) + z_y, 0, 255), uint8; ties go to the even number; relu clamps at z_y instead of 0.

    Args: acc: int32 (…, n); multiplier: s_x·s_w/s_y, float32 () or (n,). A sum beyond 2^24 is rounded to float32 first.
    """
    codes = torch.round(acc.float() * multiplier) + zero_point
    return codes.clamp(int(zero_point) if relu else 0, 255).to(torch.uint8)


def check_accumulator(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse weights and biases whose sum could leave int32 for some input: 255·Σ|q_w| + |q_b| must stay below 2^31.

    Args:   weight: (n, …), bias: (n,); whole numbers of any type.
    Raises: ValueError that names the first such output.
    """
    bound = 255 * weight.double().abs().flatten(1).sum(1) + bias.double().abs()         # exact: far below 2^53
    fits = bound < 2**31
    if not fits.all():
        first = int((~fits).nonzero()[0])
        raise ValueError(f"the sum of output {first} can reach {float(bound[first]):,.0f}, and int32 ends at {2**31 - 1:,}: its "
                         "bias is too large beside its weights (try per_channel=False), or it has too many inputs")


class _Int8(nn.Module):
    """What both layers share. `of` makes them from float layers; the constructor leaves room for the numbers."""

    def __init__(self, like: nn.Module, *, per_channel: bool, relu: bool, last: bool):
        super().__init__()
        if relu and last:
            raise ValueError("a ReLU is a clamp of the output's codes: it needs the grid of the outputs")
        self.per_channel, self.relu, self.last, self.where = per_channel, relu, last, {}
        outputs = like.weight.shape[0]
        self.weight = nn.Parameter(torch.zeros(like.weight.shape, dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.int32), requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(outputs if per_channel else ()))
        for end in ("input",) if last else ("input", "output"):
            self.register_buffer(f"{end}_scale", torch.ones(()))
            self.register_buffer(f"{end}_zero_point", torch.zeros((), dtype=torch.uint8))
        self.eval()

    @classmethod
    def of(cls, layer: nn.Module, inputs: Grid, outputs: Grid | None = None, *, per_channel: bool = True, relu: bool = False,
           weight_bits: int = 8) -> nn.Module:
        """A float layer in integers.

        Args:   inputs, outputs: grids of what goes in and comes out; without `outputs` float32 comes out: logits.
                weight_bits: fewer than 8 use only a part of the int8 range.
        Raises: ValueError for grids that are not unsigned 8-bit ones of a whole tensor, for a sum that int32 may not
                hold, for a ReLU without `outputs`, and for padding with anything but a given number of zeros.
        """
        empty = cls(layer, per_channel=per_channel, relu=relu, last=outputs is None)
        return empty.fill(layer, inputs, outputs, weight_bits=weight_bits)

    def fill(self, layer: nn.Module, inputs: Grid, outputs: Grid | None, *, weight_bits: int = 8) -> nn.Module:
        """Take over the numbers of a float layer; see `of`."""
        if weight_bits not in range(2, 9):
            raise ValueError(f"int8 holds weights of 2 to 8 bits; got {weight_bits!r}")
        for end, grid in (("input", inputs), *([("output", outputs)] if outputs else [])):
            _check_codes(grid)
            setattr(self, f"{end}_scale", grid.scale.clone())
            setattr(self, f"{end}_zero_point", grid.zero_point.to(torch.uint8))
        grid = grid_for(layer.weight, weight_bits, symmetric=True, axis=0 if self.per_channel else None, convention="onnxruntime")
        self.weight.data, self.weight_scale = quantize(layer.weight.detach(), grid), grid.scale
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        bias = torch.round(bias.double() / self.product_scale.double())
        check_accumulator(self.weight, bias)
        self.bias.data = bias.int()
        return self

    @property
    def product_scale(self) -> torch.Tensor:
        """s_x·s_w, float32: what one step of the accumulator stands for."""
        return self.input_scale * self.weight_scale

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes uint8 to codes uint8, or to float32 in the last layer."""
        if torch.onnx.is_in_onnx_export():
            return self._as_onnx(codes)
        acc = self.sums(codes)                                                  # (n, …, outputs)
        if self.last:
            return self._in_order(acc.float() * self.product_scale)
        return self._in_order(requantize(acc, self.product_scale / self.output_scale, self.output_zero_point, relu=self.relu))

    def train(self, mode: bool = True) -> nn.Module:
        """Refuses training: rounding has no gradient. Train the float model, then quantize again."""
        if mode:
            raise ValueError("integer layers cannot be trained; train the float model (see `fake_quantized`), then quantize it")
        return super().train(mode)

    def cost_per_example(self, codes: torch.Tensor) -> LayerCost:
        """Multiplies in int8."""
        places = self.sums(codes[:1])[..., 0].numel()
        read = self.weight.numel() + 4 * self.weight_scale.numel()
        return LayerCost("", places * self.weight.numel(), places * int(self.weight.count_nonzero()), "int8", read)

    def extra_repr(self) -> str:
        """What a printed model shows."""
        options = {"per_channel": self.per_channel, "relu": self.relu, "last": self.last} | self.where
        return ", ".join([str(tuple(self.weight.shape)), *(f"{name}={value}" for name, value in options.items())])

    def _in_order(self, y: torch.Tensor) -> torch.Tensor:
        """The dimensions of the result in PyTorch's order."""
        return y

    def _as_onnx(self, codes: torch.Tensor) -> torch.Tensor:
        """The float layer with codes around it, as `qdq` explains."""
        operation = F.conv2d if self.where else F.linear
        x = dequantize_node(codes, self.input_scale, self.input_zero_point)
        weight, bias = dequantize_node(self.weight, self.weight_scale), dequantize_node(self.bias, self.product_scale)
        y = operation(x, weight, bias, **self.where)
        return y if self.last else quantize_node(F.relu(y) if self.relu else y, self.output_scale, self.output_zero_point)


class Int8Linear(_Int8):
    """A linear layer in integers: uint8 codes (…, inputs) to codes, or float32, (…, outputs)."""

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """The accumulators, int32 (…, outputs)."""
        return accumulate(codes, self.input_zero_point, self.weight, self.bias)


class Int8Conv2d(_Int8):
    """A convolution in integers: a linear layer on every patch. Padding is z_x, the code of zero.

    uint8 codes (n, channels, height, width) to codes, or float32.
    """

    def __init__(self, like: nn.Conv2d, **options):
        super().__init__(like, **options)
        if like.padding_mode != "zeros" or like.padding == "same":
            raise ValueError(f"padding must be with zeros and given in pixels; got {like.padding!r}, {like.padding_mode!r}")
        self.where = {"stride": like.stride, "padding": (0, 0) if like.padding == "valid" else like.padding,
                      "dilation": like.dilation, "groups": like.groups}

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """The accumulators, int32 (n, height, width, outputs)."""
        weights, biases = self.weight.flatten(1).chunk(self.where["groups"]), self.bias.chunk(self.where["groups"])
        return torch.cat([accumulate(patches, self.input_zero_point, weight, bias)
                          for patches, weight, bias in zip(self._patches(codes), weights, biases)], -1)

    def _patches(self, codes: torch.Tensor) -> torch.Tensor:
        """What each output sees: (groups, n, height, width, channels of the group · kernel height · kernel width)."""
        (up, left), groups = self.where["padding"], self.where["groups"]
        codes = F.pad(codes, (left, left, up, up), value=int(self.input_zero_point))
        for axis, (size, stride, gap) in enumerate(zip(self.weight.shape[2:], self.where["stride"], self.where["dilation"]), 2):
            codes = codes.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
        return codes.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2, 5, 6).flatten(4)

    def _in_order(self, y: torch.Tensor) -> torch.Tensor:
        return y.movedim(-1, 1).contiguous()        # PyTorch cannot pool bytes that lie in memory in another order


def _check_codes(grid: Grid) -> None:
    if (grid.quant_min, grid.quant_max) != (0, 255) or grid.scale.dim() or not 0 < grid.scale < torch.inf:
        raise ValueError("activations need codes from 0 to 255 with one positive scale for the whole tensor; "
                         f"got {grid.quant_min} to {grid.quant_max} and the scale {grid.scale}")
