"""Two repairs that need no training: equal ranges for the channels, and means that come out right.

A channel that is made large and read with small weights can be made smaller and read with larger ones: with ReLU
between, nothing changes in float, and one scale then fits all channels. And where rounding shifts the mean of a
layer's output, the bias takes the shift back. Book: chapter 3, "Better rounding".
"""
import copy

import torch
from torch import nn

from ..training import evaluating
from .stored import StoredLayer, quantizable

__all__ = ["correct_bias", "equalize_channels", "neighbours"]

# What lets a positive factor through, channel by channel: f(s·x) = s·f(x).
_LETS_THROUGH = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity, nn.Dropout)


def neighbours(model: nn.Sequential) -> list[tuple[str, str]]:
    """Names of each two linear layers or convolutions with nothing between them but what lets a factor through.

    Raises: ValueError if `model` is not a plain nn.Sequential, or has no such neighbours.
    """
    if type(model) is not nn.Sequential:
        raise ValueError(f"equalisation follows the layers of an nn.Sequential; got {type(model).__name__}")
    quantizable(model)          # raises where a weight is shared
    pairs, maker = [], None
    for name, layer in model._modules.items():          # as named_children, which leaves out a module's second place
        if type(layer) in (nn.Linear, nn.Conv2d):
            plain = getattr(layer, "groups", 1) == 1
            if maker is not None and plain:
                pairs.append((maker, name))
            maker = name
        elif not isinstance(layer, _LETS_THROUGH):
            maker = None
    if not pairs:
        raise ValueError("no two linear layers or convolutions are neighbours with only ReLU, pooling or flattening between "
                         "them; is there batch normalisation to be folded first?")
    return pairs


def equalize_channels(model: nn.Sequential, *, rounds: int = 20) -> nn.Sequential:
    """Return a copy of `model` that computes the same, with the ranges of its channels made equal.

    Channel i has the range r₁ = max|w| where it is made and r₂ = max|w| where it is read. Divided by
    s = √(r₁·r₂) / r₂ where it is made and multiplied by it where it is read, both become √(r₁·r₂).

    Args:   rounds: over all neighbours; a middle layer is a reader and a maker, so one round is not enough for three.
    Raises: ValueError as `neighbours`.
    Source: Nagel et al. 2019, sec. 4.1, eq. 11.
    """
    equal = copy.deepcopy(model)
    pairs = [(getattr(equal, maker), getattr(equal, reader)) for maker, reader in neighbours(equal)]
    with torch.no_grad():
        for _ in range(rounds):
            for maker, reader in pairs:
                r_1, r_2 = maker.weight.abs().flatten(1).amax(dim=1), _by_channel(reader, maker).abs().amax(dim=(0, 2))
                s = torch.where((r_1 > 0) & (r_2 > 0), (r_1 * r_2).sqrt() / r_2, 1.0)       # a dead channel stays
                maker.weight /= s.reshape(-1, *[1] * (maker.weight.dim() - 1))
                if maker.bias is not None:
                    maker.bias /= s
                reader.weight.copy_((_by_channel(reader, maker) * s[:, None]).reshape(reader.weight.shape))
    return equal


def _by_channel(reader: nn.Module, maker: nn.Module) -> torch.Tensor:
    """The reader's weight as (outputs, channels of the maker, weights for each): flattening gives a channel many inputs."""
    return reader.weight.reshape(len(reader.weight), len(maker.weight), -1)


def correct_bias(quantized: nn.Module, model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a copy of `quantized` in which every layer's mean output is that of `model`, channel by channel.

    1. Note the mean output of each layer of `model`, E[W·x + b].
    2. From the first layer to the last: run the quantized model, whose earlier layers are corrected already, and
       add what is missing in the mean to the layer's bias.

    Args:   quantized: from `model`, with stored weights; images: for calibration, from the validation part.
    Raises: ValueError if there are no images, or if a quantized layer has no bias.
    Source: Nagel et al. 2019, sec. 4.2 (the empirical variant).
    """
    corrected = copy.deepcopy(quantized)
    layers = {name: layer for name, layer in corrected.named_modules() if isinstance(layer, StoredLayer)}
    if not layers or not len(images):
        raise ValueError(f"need a model with stored weights and images for calibration; got {len(layers)} stored layers "
                         f"and {len(images)} images")
    if without := [name for name, layer in layers.items() if layer.bias is None]:
        raise ValueError(f"no bias to correct in {', '.join(without)}; fold the batch normalisation behind it first")
    wanted = _mean_outputs(model, list(layers), images)
    for name in wanted:             # in the order in which they ran
        with torch.no_grad():
            layers[name].bias += wanted[name] - _mean_outputs(corrected, [name], images)[name]
    return corrected


def _mean_outputs(model: nn.Module, names: list[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mean output of each channel of the named layers, over images and places, in the order in which they run."""
    means, layers = {}, dict(model.named_modules())

    def note(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        convolution = isinstance(layer, nn.Conv2d) or getattr(layer, "kind", "") == "Conv2d"
        means[name] = output.movedim(1 if convolution else -1, 0).flatten(1).mean(dim=1)

    hooks = [layers[name].register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, output)) for name in names]
    try:
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return means
