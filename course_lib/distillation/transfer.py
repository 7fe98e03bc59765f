"""The transfer set: images, and what the teacher says of them, written down once.

A teacher that is asked anew in every step costs as much as it did in training. Here it sees each image, and each of a few
deformed copies, one time; the student then learns from what was written down. Book: chapter 4, "The transfer set".
"""
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .. import training
from ..data import Split
from ..watch import watch
from .losses import UNLABELLED, Targets, distillation_loss

__all__ = ["distill", "transfer_set", "unlabelled_but"]


def transfer_set(teacher: nn.Module, images: Split, *, copies: int = 10, seed: int = 0,
                 layer: str | None = None, reduce: Callable = lambda features: features) -> list[Split]:
    """Let the teacher judge the images once, in `copies` deformed versions: a list of splits whose labels are `Targets`.

    All versions stay in memory: each takes as much as the images do, and what is noted of them.
    Args:   images: labels may be UNLABELLED; copies: 0 gives the images as they are, without deforming them.
            layer: also note what this layer of the teacher gives, passed through `reduce` to make it smaller.
    Raises: ValueError for no images, a negative number of copies, a layer that is unknown or runs more than once, or if
            the teacher's logits are not finite.
    """
    if not len(images) or type(copies) is not int or copies < 0:
        raise ValueError(f"need images, and a whole number of copies >= 0; got {images}, {copies=}")
    generator = torch.Generator().manual_seed(seed)
    versions = [images.images] if copies == 0 else (training.augment(images.images, generator=generator) for _ in range(copies))
    return [Split(version, Targets(images.labels, *_ask(teacher, version, layer, reduce))) for version in versions]


def _ask(teacher: nn.Module, images: torch.Tensor, layer: str | None, reduce: Callable):
    """The teacher's logits and, where a layer is named, its features."""
    seen = {name: [] for name in ("", layer) if name is not None}       # "" is the teacher as a whole
    # A copy of the features: a layer that comes next may overwrite what it is given.
    watch(teacher, seen, images,
          lambda name, module, x, output: seen[name].append(reduce(output).clone() if name else output))
    logits, features = (torch.cat(seen[name]) if name in seen else None for name in ("", layer))
    if not torch.isfinite(logits).all():
        raise ValueError("the teacher gives NaN or infinite logits (did its training diverge?)")
    return logits, features


def unlabelled_but(split: Split, n: int) -> Split:
    """The same images, of which only the first `n` keep their label.

    Raises: ValueError unless n is a whole number from 0 to len(split).
    """
    if type(n) is not int or not 0 <= n <= len(split):
        raise ValueError(f"n must be a whole number from 0 to {len(split)}; got {n!r}")
    labels = split.labels.clone()
    labels[n:] = UNLABELLED
    return Split(split.images, labels)


def distill(student: nn.Module, transfer: list[Split], validation: Split | None = None, *, epochs: int, lr: float,
            temperature: float = 4.0, alpha: float = 1.0, loss: Callable | None = None, seed: int = 0,
            callbacks: Iterable = (), **options) -> tuple[nn.Module, list[dict]]:
    """Train a copy of the student on a transfer set, one version of it an epoch, in turn.

    Two calls with the same seed, student and transfer set see the same images in the same order, whatever the loss is: with
    alpha=0 the control without a teacher.

    Args:    temperature, alpha: see `distillation_loss`; loss: another one instead, of the student's outputs and `Targets`.
             callbacks, options: as in `training.fit`; masks and fake quantizers work here as there.
    Returns: as `training.fit`.
    Raises:  ValueError for a transfer set that `transfer_set` did not make, a temperature or alpha beside another loss,
             images that are to be deformed again, or as `training.fit`.
    """
    versions = () if isinstance(transfer, Split) else tuple(transfer)
    if not versions or not all(isinstance(getattr(version, "labels", None), Targets) for version in versions):
        raise ValueError("the transfer set must be a list of splits with Targets, as transfer_set makes it")
    if "augmented" in options:
        raise ValueError("the images are deformed in transfer_set, where the teacher sees them; leave augmented out")
    if loss is None:
        loss = distillation_loss(temperature=temperature, alpha=alpha)
    elif (temperature, alpha) != (4.0, 1.0):
        raise ValueError("temperature and alpha belong to the loss: give them to the one that you pass")
    return training.fit(student, versions, validation, epochs=epochs, lr=lr, seed=seed, loss=loss, augmented=False,
                        callbacks=callbacks, **options)
