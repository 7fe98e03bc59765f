"""Layers that keep their weight in a smaller form, and bring it back to float32 when they run.

This saves bytes in the file and in memory traffic, not multiplications: those happen in float32 still ("weight
only"). A form knows its numbers and how to decode them; one layer serves every form. Book: chapter 3,
"A file that is really smaller".
"""
import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..declared import LayerCost
from ..models import note_change
from .affine import Grid, dequantize, grid_for, quantize
from .packing import pack, packed_bytes, unpack

__all__ = ["FORMS", "AffineForm", "StoredLayer", "empty_stored", "quantizable", "quantize_weights", "store"]


class AffineForm(nn.Module):
    """A weight as packed whole numbers on a `Grid`: scale float32, zero points packed too where they are not 0.

    Args: shape: of the weight; the others as in `Grid`.
    """

    def __init__(self, shape: list[int], bits: int, *, signed: bool, symmetric: bool, axis: int | None = None,
                 group: int | None = None, narrow: bool = False):
        super().__init__()
        self.options = {"shape": list(shape), "bits": bits, "signed": signed, "symmetric": symmetric, "axis": axis,
                        "group": group, "narrow": narrow}
        self.shape, self.bits = tuple(shape), bits
        rows = 1 if axis is None else shape[axis]
        self.parameters_shape = (rows, math.prod(shape) // rows // group) if group else () if axis is None else (rows,)
        self.count = math.prod(self.parameters_shape)
        self.register_buffer("packed", torch.zeros(packed_bytes(math.prod(shape), bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(self.parameters_shape))
        if not symmetric:
            self.register_buffer("zero_points", torch.zeros(packed_bytes(self.count, bits), dtype=torch.uint8))

    @classmethod
    def of(cls, weight: torch.Tensor, grid: Grid) -> "AffineForm":
        """The weight, rounded to the grid."""
        signed = grid.quant_min < 0
        form = cls(list(weight.shape), grid.bits, signed=signed, axis=grid.axis, group=grid.group,
                   symmetric=bool((grid.zero_point == (0 if signed else 2 ** (grid.bits - 1))).all()),
                   narrow=grid.quant_min == -grid.quant_max and signed)
        form.packed = pack(quantize(weight.detach(), grid).int() - form.lowest, grid.bits)
        form.scale = grid.scale.clone()
        if not form.options["symmetric"]:
            form.zero_points = pack(grid.zero_point - form.lowest, grid.bits)
        return form

    @property
    def lowest(self) -> int:
        """The whole number that is packed as 0."""
        return -(2 ** (self.bits - 1)) if self.options["signed"] else 0

    @property
    def grid(self) -> Grid:
        """The grid, read back from the stored numbers."""
        signed, bits = self.options["signed"], self.bits
        if self.options["symmetric"]:
            zero_point = torch.full(self.parameters_shape, 0 if signed else 2 ** (bits - 1), dtype=torch.int32)
        else:
            zero_point = unpack(self.zero_points, bits, self.count).reshape(self.parameters_shape) + self.lowest
        return Grid(self.scale, zero_point, self.lowest + self.options["narrow"], self.lowest + 2**bits - 1,
                    self.options["axis"], self.options["group"])

    @property
    def codes(self) -> torch.Tensor:
        """The whole numbers, int32, in the shape of the weight."""
        return unpack(self.packed, self.bits, math.prod(self.shape)).reshape(self.shape) + self.lowest

    def decode(self) -> torch.Tensor:
        """The weight, float32."""
        return dequantize(self.codes, self.grid)

    def stored_bytes(self) -> int:
        """Bytes of all that is needed to decode."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())


# Which class a form's name in a saved model stands for; other modules add theirs.
FORMS = {"affine": AffineForm}


class StoredLayer(nn.Module):
    """A linear layer or a convolution whose weight is kept in `form`; bias as it was. Made by `store`."""

    def __init__(self, like: nn.Linear | nn.Conv2d, form: nn.Module):
        super().__init__()
        self.form, self.bias = form, copy.deepcopy(like.bias)
        self.kind, self.where = type(like).__name__, {}
        if isinstance(like, nn.Conv2d):
            self.where = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation, "groups": like.groups}
        self.train(like.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer that it replaces, with the decoded weight."""
        operation = F.conv2d if self.where else F.linear
        return operation(x, self.form.decode(), self.bias, **self.where)

    def cost_per_example(self, x: torch.Tensor) -> LayerCost:
        """Multiplies in float32, reads the stored bytes."""
        weight = self.form.decode()
        with torch.no_grad():
            output = self.forward(x[:1])
        places = output[0].numel() // weight.shape[0]
        macs = places * weight.numel()
        ideal = places * int(weight.count_nonzero())
        return LayerCost("", macs, ideal, "float32", self.form.stored_bytes())

    def extra_repr(self) -> str:
        """What a printed model shows."""
        name = next(name for name, form in FORMS.items() if type(self.form) is form)
        return f"{self.kind}, {name}, " + ", ".join(f"{k}={v}" for k, v in (self.form.options | self.where).items())


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a model, by name.

    Raises: ValueError if there is none, if one is shared or has hooks, or if its weights are not finite float32.
    """
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if type(layer) in (nn.Linear, nn.Conv2d)}
    if not layers:
        raise ValueError("the model has no linear layer or convolution that could be quantized "
                         f"({', '.join(sorted({type(m).__name__ for m in model.modules()}))})")
    weights = [id(layer.weight) for layer in layers.values()]
    for name, layer in layers.items():
        if weights.count(id(layer.weight)) > 1:
            raise ValueError(f"the weight of {name or 'the layer'} is shared between layers; quantize it once and tie it again")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise ValueError(f"layer {name or type(layer).__name__} has hooks, which may change what it computes; remove them first")
        if layer.weight.dtype != torch.float32 or not torch.isfinite(layer.weight).all():
            raise ValueError(f"weights must be finite float32; those of {name or 'the layer'} are not (did training diverge?)")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(f"{name or 'the layer'} pads with {layer.padding_mode!r}; only zeros can be quantized")
    return layers


def quantize_weights(model: nn.Module, bits: int, *, axis: int | None = 0, group: int | None = None, symmetric: bool = True,
                     convention: str = "torch", skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` that stores the weights of its linear layers and convolutions in `bits` bits each.

    Args:   axis: 0 for a scale for each output channel, None for one for the whole weight; group: values that share one.
            skip: names of layers that stay float32.
    Raises: ValueError as `quantizable` and `grid_from_range`, and for a name in `skip` that is no such layer.
    """
    layers = quantizable(model)
    if unknown := set(skip) - set(layers):
        raise ValueError(f"no layer named {sorted(unknown)}; the model has {', '.join(layers)}")
    return store(model, {name: AffineForm.of(layer.weight, grid_for(
        layer.weight, bits, axis=axis, group=group, symmetric=symmetric, convention=convention))
        for name, layer in layers.items() if name not in skip})


def store(model: nn.Module, forms: dict[str, nn.Module]) -> nn.Module:
    """Return a copy of `model` whose named layers keep their weights in these forms; it can be saved and loaded."""
    layers, copies = dict(model.named_modules()), {}
    for name, form in forms.items():
        if type(layers.get(name)) not in (nn.Linear, nn.Conv2d):
            raise ValueError(f"the model has no linear layer or convolution named {name!r}")
        copies[id(layers[name])] = StoredLayer(layers[name], form)      # deepcopy takes what it finds here
    stored = copy.deepcopy(model, copies)
    names = {form: name for name, form in FORMS.items()}
    note_change(stored, "quantization", "stored", forms={name: [names[type(form)], form.options] for name, form in forms.items()})
    return stored


def empty_stored(model: nn.Module, *, forms: dict[str, list]) -> nn.Module:
    """`store` with forms that hold no numbers yet: to load saved models."""
    return store(model, {name: FORMS[kind](**options) for name, (kind, options) in forms.items()})
