"""Quantization-aware training: the network feels the rounding while it learns, and learns to live with it.

`fake_quantized` gives a model that computes with rounded weights, and `training.fit` trains it as any other;
`to_stored` then keeps only the whole numbers. Book: chapter 3, "Training with quantization in the loop".
"""
import copy

import torch
from torch import nn

from ..declared import LayerCost
from ..models import note_change
from .affine import Grid, grid_from_range, integer_range
from .learned_step import LearnedStep
from .stored import FORMS, StoredLayer, quantizable, store
from .ste import FakeForm, FakeMinMax, FakeSign, fake_quantize_through

__all__ = ["TRAINED_METHODS", "FakeInput", "fake_inputs", "fake_quantized", "to_stored"]

TRAINED_METHODS = {"min-max": FakeMinMax, "sign": FakeSign, "learned step": LearnedStep}


def fake_quantized(model: nn.Module, bits: int, *, method: str = "min-max", axis: int | None = None,
                   activations: int | None = None, skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` that rounds the weights of its linear layers and convolutions whenever it runs.

    The weights stay float32, and gradients reach them straight through the rounding: train it with `training.fit`.
    Args:   bits: of a weight, 1 to 16; method: "min-max", "sign" (one bit), or "learned step".
            axis: 0 for a scale for each output channel, None for one for the whole weight.
            activations: bits of the inputs of these layers, None to leave them float32; see `FakeInput`.
            skip: names of layers that stay as they are.
    Raises: ValueError for bits, a method, an axis or a name that does not exist, and as `quantizable`.
    Equals: before any training, `quantize_weights(model, bits, axis=axis, symmetric=False)` with min-max.
    """
    if method not in TRAINED_METHODS or axis not in (None, 0):
        raise ValueError(f"method must be one of {', '.join(TRAINED_METHODS)} and axis None or 0; got {method!r}, {axis!r}")
    integer_range(bits, signed=True)        # raises for bits that do not exist
    forms = {name: TRAINED_METHODS[method].of(layer.weight, bits, axis) for name, layer in quantizable(model, skip=skip).items()}
    if activations is None:
        return store(model, forms)
    model = fake_inputs(model, names=list(forms), bits=activations)
    return store(model, {f"{name}.layer".lstrip("."): form for name, form in forms.items()})


def to_stored(model: nn.Module) -> nn.Module:
    """Return a copy of a trained `fake_quantized` model that keeps its weights packed: the same predictions, to the last bit.

    Raises: ValueError if no layer is in training with fake quantization.
    """
    layers = {name: layer for name, layer in model.named_modules()
              if isinstance(layer, StoredLayer) and isinstance(layer.form, FakeForm)}
    if not layers:
        raise ValueError("no layer of the model is fake-quantized: make one with fake_quantized, and train it")
    forms = {name: layer.form.rounded() for name, layer in layers.items()}
    stored = copy.deepcopy(model, {id(layers[name].form): form for name, form in forms.items()})    # it takes what it finds here
    if hasattr(model, "architecture"):
        names = {form: name for name, form in FORMS.items()}
        notes = {name: [names[type(form)], form.options] for name, form in forms.items()}
        stored.architecture = {**model.architecture, "changes": [
            [technique, change, {"forms": {name: notes.get(name, note) for name, note in options["forms"].items()}}
             if change == "stored" else options] for technique, change, options in model.architecture["changes"]]}
    return stored


class FakeInput(nn.Module):
    """A layer whose input is rounded to unsigned whole numbers, on the grid of a range that is averaged in training.

    Equals: torch.ao.quantization.FakeQuantize with a MovingAverageMinMaxObserver and its averaging constant 0.01.
    """

    def __init__(self, layer: nn.Module, bits: int):
        super().__init__()
        self.layer, self.bits = layer, bits
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))
        self.train(layer.training)

    @property
    def grid(self) -> Grid:
        """The grid of the range seen so far. Raises ValueError before the first batch of training."""
        if self.low > self.high:
            raise ValueError("the range of the activations is not known yet: train the model first")
        return grid_from_range(self.low, self.high, self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for the rounded input."""
        if self.training:
            low, high = x.detach().aminmax()
            first = self.low > self.high
            self.low = low if first else self.low + 0.01 * (low - self.low)
            self.high = high if first else self.high + 0.01 * (high - self.high)
        return self.layer(fake_quantize_through(x, self.grid))

    def cost_per_example(self, x: torch.Tensor) -> LayerCost:
        """That of the layer: rounding multiplies nothing."""
        return self.layer.cost_per_example(x)

    def extra_repr(self) -> str:
        """What a printed model shows."""
        return f"bits={self.bits}"


def fake_inputs(model: nn.Module, *, names: list[str], bits: int) -> nn.Module:
    """Return a copy of `model` whose named layers round their inputs to `bits` bits; it can be saved and loaded."""
    integer_range(bits, signed=False)
    layers = dict(model.named_modules())
    wrapped = {id(layers[name]): FakeInput(copy.deepcopy(layers[name]), bits) for name in names}
    fake = copy.deepcopy(model, wrapped)
    note_change(fake, "quantization", "fake_inputs", names=names, bits=bits)
    return fake
