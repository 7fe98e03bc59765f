"""What goes into the layers of a model, and what comes out, while it looks at images.

A technique that chooses by what a layer really sees (the inputs that occur, the features of a teacher) looks here.
The model is not changed, and nothing stays attached to it. Book: chapter 4, "What the layer really sees".
"""
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .training import evaluating

__all__ = ["features", "watch"]


def watch(model: nn.Module, layers: Iterable[str], images: torch.Tensor,
          see: Callable[[str, nn.Module, torch.Tensor, torch.Tensor], None], *, batch_size: int = 500) -> None:
    """Show the images to the model, and call `see(name, layer, input, output)` whenever a named layer has run.

    The model is in evaluation mode meanwhile, and there are no gradients.
    Raises: ValueError if there are no images, for a name that is none of the model's, or for a layer that never runs.
    """
    modules, names, ran = dict(model.named_modules()), list(dict.fromkeys(layers)), set()
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"the model has no layer named {', '.join(map(repr, unknown))}; it has {', '.join(filter(None, modules))}")
    if not len(images):
        raise ValueError("need images to see what occurs in the model; got none")

    def note(name: str):
        def hook(layer, inputs, output):
            ran.add(name)
            see(name, layer, inputs[0], output)
        return hook

    hooks = [modules[name].register_forward_hook(note(name)) for name in names]
    try:
        with evaluating(model):
            for batch in images.split(batch_size):
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if idle := [name for name in names if name not in ran]:
        raise ValueError(f"the model never calls {', '.join(idle)}")


def features(model: nn.Module, layer: str, images: torch.Tensor, *, batch_size: int = 500) -> torch.Tensor:
    """The outputs of one layer for all images, shape (n, …).

    Raises: ValueError as `watch`, or for a layer that runs several times for each image.
    """
    seen = []           # copies: the layer behind may work in place
    watch(model, [layer], images, lambda name, module, x, output: seen.append(output.clone()), batch_size=batch_size)
    if sum(map(len, seen)) != len(images):
        raise ValueError(f"{layer} gives {sum(map(len, seen))} outputs for {len(images)} images; does it run more than once?")
    return torch.cat(seen)
