"""What a weight is worth: four answers, each a tensor of scores in the shape of the weights.

    magnitude   |w|                       the weight's own size
    taylor      (w · ∂L/∂w)²              how much the loss would change if w became 0, to first order
    activation  |w| · rms(input)          how much the weight adds to its neuron's sum, on real images
    at_random   uniform                   the control that every criterion must beat

Book: chapter 2, "Which weights, how many, when".
"""
import copy

import torch
from torch import nn
from torch.nn import functional as F

from .weights import prunable

__all__ = ["activation", "at_random", "magnitude", "taylor"]


def magnitude(model: nn.Module) -> dict[str, torch.Tensor]:
    """|w| of every prunable weight, by name.

    Raises: ValueError for NaN or infinite weights.
    """
    weights = {name: w.detach() for name, w in prunable(model).items()}
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise ValueError("weights must be finite; got NaN or infinity (did training diverge?)")
    return {name: w.abs() for name, w in weights.items()}


def at_random(model: nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """Scores that know nothing: uniform between 0 and 1, in the shape of each weight."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) for name, w in prunable(model).items()}


@torch.enable_grad()                    # also where the caller switched gradients off, as `Gradual` does
def taylor(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 128) -> dict[str, torch.Tensor]:
    """(w · g)², where g is the gradient of the mean loss over all the images.

    To first order the loss changes by w · g if w becomes zero, whichever way; hence the square.
    Args:   images, labels: as in training, shapes (n, …) and (n,).
    Raises: ValueError unless there are images, and one label for each.
    Source: Molchanov et al. 2019, eq. 8.
    """
    prunable(model)                     # raises for shared weights, or none at all
    if not 0 < len(images) == len(labels):
        raise ValueError(f"need images, and one label for each; got {len(images)} and {len(labels)}")
    model = copy.deepcopy(model).eval().requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)        # stays zero where the loss does not depend on it
    for batch in torch.arange(len(images)).split(batch_size):
        loss = F.cross_entropy(model(images[batch]), labels[batch], reduction="sum") / len(images)
        loss.backward()                 # gradients of the batches add up
    return {name: (w.detach() * w.grad) ** 2 for name, w in prunable(model).items()}


@torch.no_grad()
def activation(model: nn.Module, images: torch.Tensor, *, batch_size: int = 500) -> dict[str, torch.Tensor]:
    """|w| times the root mean square of the input that the weight multiplies.

    In a convolution a weight sees one channel of the input, at every place: the mean is over all places.
    Raises: ValueError for a layer that is not linear or a two-dimensional convolution, or that runs twice;
            or without images.
    Source: Sun et al. 2024 (Wanda), eq. 1; the norm there differs from the mean by a factor common to a layer.
    """
    weights, squares, places = prunable(model), {}, {}
    if not len(images):
        raise ValueError("need at least one image")

    def record(name):
        def hook(module, inputs):
            if not isinstance(module, (nn.Linear, nn.Conv2d)) or getattr(module, "groups", 1) != 1:
                raise ValueError(f"{name}: activation scores need a linear layer or an ungrouped 2-d convolution")
            dims = [d for d in range(inputs[0].dim()) if d != (1 if isinstance(module, nn.Conv2d) else inputs[0].dim() - 1)]
            squares.setdefault(name, []).append(inputs[0].double().square().sum(dims))
            places[name] = places.get(name, 0) + inputs[0].numel() // squares[name][-1].numel()
        return hook

    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        if f"{name}.weight".lstrip(".") in weights:
            module.register_forward_pre_hook(record(f"{name}.weight".lstrip(".")))
    batches = images.split(batch_size)
    for batch in batches:
        model(batch)
    scores = {}
    for name, weight in weights.items():
        if len(squares.get(name, [])) != len(batches):
            raise ValueError(f"the layer of {name} must run exactly once for each batch")
        rms = (sum(squares[name]) / places[name]).sqrt().to(weight.dtype)
        scores[name] = weight.detach().abs() * rms.view(1, -1, *[1] * (weight.dim() - 2))
    return scores
