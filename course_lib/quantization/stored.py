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
from .blocks import scale_shape
from .packing import pack, packed_bytes, unpack

__all__ = ["FORMS", "AffineForm", "StoredLayer", "empty_stored", "quantizable", "quantize_weights", "store"]


class AffineForm(nn.Module):
    """A weight as packed whole numbers on a `Grid`: scales float32, zero points packed too where they are not all 0.

    Args: shape: of the weight; centred: all zero points are 0, so none is stored; the others as in `Grid`.
    """

    def __init__(self, shape: list[int], *, quant_min: int, quant_max: int, axis: int | None = None, group: int | None = None,
                 centred: bool):
        super().__init__()
        self.options = {"shape": list(shape), "quant_min": quant_min, "quant_max": quant_max, "axis": axis, "group": group,
                        "centred": centred}
        self.count, scales = math.prod(shape), scale_shape(shape, axis, group)
        self.register_buffer("packed", torch.zeros(packed_bytes(self.count, self.bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(scales))
        if not centred:
            self.register_buffer("zero_points", torch.zeros(packed_bytes(math.prod(scales), self.bits), dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_check_loaded)

    @classmethod
    def of(cls, weight: torch.Tensor, grid: Grid) -> "AffineForm":
        """The weight, rounded to the grid."""
        form = cls(list(weight.shape), quant_min=grid.quant_min, quant_max=grid.quant_max, axis=grid.axis, group=grid.group,
                   centred=not grid.zero_point.any())
        form.packed, form.scale = pack(quantize(weight, grid).int() - grid.quant_min, grid.bits), grid.scale.detach().clone()
        if not form.options["centred"]:
            form.zero_points = pack(grid.zero_point - grid.quant_min, grid.bits)
        return form

    @property
    def bits(self) -> int:
        """Bits of one whole number."""
        return (self.options["quant_max"] - self.options["quant_min"]).bit_length()

    @property
    def grid(self) -> Grid:
        """The grid, read back from the stored numbers."""
        quant_min, quant_max, axis, group = (self.options[name] for name in ("quant_min", "quant_max", "axis", "group"))
        zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        if not self.options["centred"]:
            zero_point = unpack(self.zero_points, self.bits, self.scale.numel()).reshape(self.scale.shape) + quant_min
        return Grid(self.scale, zero_point, quant_min, quant_max, axis, group)

    @property
    def codes(self) -> torch.Tensor:
        """The whole numbers, int32, in the shape of the weight."""
        return unpack(self.packed, self.bits, self.count).reshape(self.options["shape"]) + self.options["quant_min"]

    def decode(self) -> torch.Tensor:
        """The weight, float32."""
        return dequantize(self.codes, self.grid)

    def stored_bytes(self) -> int:
        """Bytes of all that is needed to decode."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())


def _check_loaded(form: AffineForm, incompatible_keys) -> None:
    """Raise ValueError for numbers from a file that `AffineForm.of` cannot have made."""
    if form.scale.dtype != torch.float32 or not (torch.isfinite(form.scale).all() and (form.scale > 0).all()):
        raise ValueError("scales must be finite float32 numbers above 0")
    if max(form.codes.max(), form.grid.zero_point.max()) > form.options["quant_max"]:
        raise ValueError(f"whole numbers must not be above {form.options['quant_max']}")


# Which class a form's name in a saved model stands for; other modules add theirs.
FORMS = {"affine": AffineForm}


class StoredLayer(nn.Module):
    """A linear layer or a convolution whose weight is kept in `form`; bias as it was. Made by `store`."""

    def __init__(self, like: nn.Linear | nn.Conv2d, form: nn.Module):
        super().__init__()
        self.form, self.bias = copy.deepcopy(form), copy.deepcopy(like.bias)
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


def quantizable(model: nn.Module, *, skip: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a model, by name, without those named in `skip`.

    Raises: ValueError if there is none, if one is shared or has hooks, if its weights are not finite float32, for a
            layer of another kind that multiplies by a weight and is not in `skip`, or for a name in `skip` that is
            none of the model's.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {name: layer for name, layer in modules.items() if type(layer) in (nn.Linear, nn.Conv2d)}
    if unknown := set(skip) - set(modules):
        raise ValueError(f"no layer named {sorted(unknown)}; the model has {', '.join(layers)}")
    if foreign := [f"{name or 'the model'} ({type(m).__name__})" for name, m in modules.items()
                   if name not in skip and name not in layers and _multiplies(m)]:
        raise ValueError(f"only Linear and Conv2d can be quantized, not {', '.join(foreign)}; name it in `skip` to leave it "
                         "as it is")
    if not layers:
        raise ValueError("the model has no linear layer or convolution that could be quantized "
                         f"({', '.join(sorted({type(m).__name__ for m in modules.values()}))})")
    weights = [id(p) for m in modules.values() for _, p in m.named_parameters(recurse=False, remove_duplicate=False)]
    layers = {name: layer for name, layer in layers.items() if name not in skip}
    for name, layer in layers.items():
        if weights.count(id(layer.weight)) > 1:
            raise ValueError(f"the weight of {name or 'the layer'} is shared between layers; quantize it once and tie it again")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise ValueError(f"layer {name or type(layer).__name__} has hooks, which may change what it computes; remove them")
        # no numbers yet (meta) while a saved model is being built
        if any(p.dtype != torch.float32 or not p.is_meta and not torch.isfinite(p).all() for p in layer.parameters()):
            raise ValueError(f"weights must be finite float32; those of {name or 'the layer'} are not (did training diverge?)")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(f"{name or 'the layer'} pads with {layer.padding_mode!r}; only zeros can be quantized")
    return layers


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has a weight matrix of its own that it multiplies by; an embedding only looks rows up."""
    matrices = [name for name, p in module.named_parameters(recurse=False) if "weight" in name and p.dim() > 1]
    return isinstance(module, (nn.Linear, nn.Conv2d)) or bool(matrices) and not isinstance(module, nn.Embedding)


def quantize_weights(model: nn.Module, bits: int, *, axis: int | None = 0, group: int | None = None, symmetric: bool = True,
                     convention: str = "torch", skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` that stores the weights of its linear layers and convolutions in `bits` bits each.

    Args:   axis: 0 for a scale for each output channel, None for one for the whole weight; group: values that share one.
            skip: names of layers that stay float32.
    Raises: ValueError as `quantizable` and `grid_from_range`.
    """
    return store(model, {name: AffineForm.of(layer.weight, grid_for(
        layer.weight, bits, axis=axis, group=group, symmetric=symmetric, convention=convention))
        for name, layer in quantizable(model, skip=skip).items()})


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
    if unknown := {kind for kind, _ in forms.values()} - set(FORMS):
        raise ValueError(f"unknown forms {sorted(unknown)}; this version of course_lib has {', '.join(FORMS)}")
    return store(model, {name: FORMS[kind](**options) for name, (kind, options) in forms.items()})
