"""Static quantization: a whole network in integers, with activation grids that were fixed beforehand.

float32 → codes at the entry, codes from layer to layer, float32 logits at the exit. What stands between two layers
works on codes as they are: max-pooling picks the largest code, flattening moves codes, and a ReLU has become a clamp
in the layer before it. So the grid on which a layer leaves its result is the one on which the next expects its input.
Book: chapter 3, "A whole network in integers".
"""
import copy

import torch
from torch import nn

from ..declared import LayerCost
from ..models import note_change
from .affine import Grid, quantize
from .integer import Int8Conv2d, Int8Linear
from .qdq import quantize_node
from .stored import quantizable

__all__ = ["QuantizeInput", "empty_static", "quantize_static"]

INTEGER = {nn.Linear: Int8Linear, nn.Conv2d: Int8Conv2d}
ON_CODES = (nn.Flatten, nn.MaxPool2d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)       # nothing, once training is over


class QuantizeInput(nn.Module):
    """The entry of an integer network: float32 to codes, uint8 of the same shape."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """q = clamp(round(x / s) + z, 0, 255)."""
        if torch.onnx.is_in_onnx_export():
            return quantize_node(x, self.scale, self.zero_point)
        return quantize(x, Grid(self.scale, self.zero_point.int(), 0, 255))

    def cost_per_example(self, x: torch.Tensor) -> LayerCost:
        """Multiplies nothing by weights."""
        return LayerCost("", 0, 0, "int8", 0)


def quantize_static(model: nn.Module, grids: dict[str, Grid], *, per_channel: bool = True, weight_bits: int = 8) -> nn.Module:
    """Return a copy of `model` that computes in integers up to its last linear layer or convolution; for use, not training.

    Args:   grids: by name of each such layer, the grid of its input, as `calibrate` finds them.
            per_channel: one weight scale for each output, or one for the layer; weight_bits: see `Int8Linear.of`.
    Raises: ValueError for a missing grid, for a module that cannot run on codes, and as `quantizable` and `Int8Linear.of`.
    """
    layers = quantizable(model)
    static = empty_static(model, per_channel=per_channel)
    if missing := set(layers) - set(grids):
        raise ValueError(f"no grid for the input of {', '.join(sorted(missing))}: calibrate this model")
    for (name, layer), following in zip(layers.items(), [*layers][1:] + [None]):
        static.get_submodule(name).fill(layer, grids[name], grids[following] if following else None, weight_bits=weight_bits)
    first = static.get_submodule([*layers][0])
    static.quantize.scale, static.quantize.zero_point = first.input_scale.clone(), first.input_zero_point.clone()
    return static


def empty_static(model: nn.Module, *, per_channel: bool) -> nn.Module:
    """`quantize_static` without the numbers: to load saved models."""
    relu = _relu_after(model)
    if "quantize" in model._modules:
        raise ValueError('a layer is named "quantize", which stands for the entry of the integer network; rename the layer')
    parts, last = {"quantize": QuantizeInput()}, [*relu][-1]
    for name, part in model._modules.items():           # as named_children, which leaves out a module's second place
        if name in relu:
            parts[name] = INTEGER[type(part)](part, per_channel=per_channel, relu=relu[name], last=name == last)
        elif last in parts or type(part) in ON_CODES:
            parts[name] = copy.deepcopy(part)
    static = nn.Sequential()
    for name, part in parts.items():
        static.add_module(name, part)
    if hasattr(model, "architecture"):
        static.architecture = model.architecture
    note_change(static, "quantization", "static", per_channel=per_channel)
    return static.eval()


def _relu_after(model: nn.Module) -> dict[str, bool]:
    """The layers by name, in their order, and whether a ReLU stands before the next one."""
    last = [*quantizable(model)][-1]
    if type(model) is not nn.Sequential:
        raise ValueError(f"only an nn.Sequential says in which order its layers run; got a {type(model).__name__}")
    relu = {}
    for name, part in model._modules.items():
        if last in relu:
            break                                       # what follows runs in float32
        if type(part) in INTEGER:
            relu[name] = False
        elif type(part) is nn.ReLU and relu:
            relu[[*relu][-1]] = True                    # it commutes with max-pooling and flattening
        elif type(part) not in ON_CODES + NOTHING:
            advice = "; fold it into its convolution first" if isinstance(part, nn.BatchNorm2d) else ""
            raise ValueError(f"module {name!r} is a {type(part).__name__}, which cannot run on integer codes here{advice}")
    return relu
