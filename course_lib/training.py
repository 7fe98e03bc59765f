"""Training and judging a classifier, with nothing hidden: one loop, one schedule, one interval.

`fit` returns a new model; the one it is given stays as it was. What must happen at certain moments
of training (masks that hold, averages that are kept) is an object with methods of those names.
Book: chapter 1, "The models".
"""
import contextlib
import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from . import intervals
from .data import Split

__all__ = ["Accuracy", "MOMENTS", "augment", "compare_predictions", "evaluate", "evaluating", "fit", "one_cycle",
           "predict", "set_seed"]

MOMENTS = ("before_training", "after_backward", "after_step", "after_epoch", "after_training")


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's random numbers, so that a rerun gives the same model."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def one_cycle(step: int, total: int, *, warm_up: float = 0.2, final: float = 0.01) -> float:
    """Learning rate as a fraction of its peak: a linear rise, then a cosine fall to `final`.

    Args: step: 0 for the first step; total: number of steps of the whole training.
    """
    rise = max(1, round(warm_up * total))
    if step < rise:
        return (step + 1) / rise
    return final + (1 - final) * (1 + math.cos(math.pi * (step - rise + 1) / max(1, total - rise))) / 2


def augment(images: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Turn, scale, shear and shift every image a little, each in its own random way.

    Up to ±10°, ±10 % in size, ±0.1 shear and ±7 % of the side. Shape and dtype stay.
    """
    def uniform(limit):
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(10)), 1 + uniform(0.1), uniform(0.1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = torch.stack([uniform(0.14), uniform(0.14)], 1)         # the image is 2 units wide
    matrix = torch.stack([cos, cos * shear - sin, sin, sin * shear + cos], 1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def fit(model: nn.Module, train: Split | Sequence[Split], validation: Split | None = None, *, epochs: int, lr: float, seed: int = 0,
        batch_size: int = 64, weight_decay: float = 0.0, augmented: bool = True, patience: int | None = None,
        keep: str = "last", loss: Callable = F.cross_entropy, callbacks: Iterable = ()) -> tuple[nn.Module, list[dict]]:
    """Train a copy of `model` with AdamW and the one-cycle schedule, stepped once per batch.

    Args:    train: or several splits of one size, of which each epoch takes the next, in turn;
             lr: peak learning rate; seed: order of the images and augmentation;
             augmented: each epoch sees a freshly deformed copy of the training images;
             keep: "last", or "best" for the epoch with the highest validation accuracy;
             patience: stop after that many epochs without a better validation accuracy;
             loss: from logits (n, classes) and labels (n,) to a scalar;
             callbacks: objects with methods named in `MOMENTS`, each called with the model.
    Returns: the trained copy, in evaluation mode, and a list with one record an epoch: mean loss,
             learning rate of its last step, and validation accuracy.
    Raises:  ValueError for bad arguments; TypeError for a callback without a known method;
             FloatingPointError as soon as the loss is not finite.
    """
    parts = (train,) if isinstance(train, Split) else tuple(train)
    if not all(isinstance(part, Split) for part in parts) or len({len(part) for part in parts}) != 1:
        raise ValueError("train must be a split, or several of one size; got "
                         f"{[part if isinstance(part, Split) else type(part).__name__ for part in parts]}")
    if not len(parts[0]) or min(epochs, batch_size) < 1 or not lr > 0 or keep not in ("last", "best"):
        raise ValueError("need training images, epochs >= 1, batch_size >= 1, lr > 0 and keep 'last' or 'best'; "
                         f"got {train}, {epochs=}, {batch_size=}, {lr=}, {keep=}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least one epoch; got {patience!r}")
    if validation is None and (keep == "best" or patience is not None):
        raise ValueError("keep='best' and patience choose by validation accuracy: pass the validation part")
    callbacks = tuple(callbacks)        # a generator would be used up by the next line
    for callback in callbacks:
        if not any(hasattr(callback, moment) for moment in MOMENTS):
            raise TypeError(f"{callback!r} has none of the methods {', '.join(MOMENTS)}")

    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    total = epochs * math.ceil(len(parts[0]) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(min(step, total - 1), total))
    history, best = [], None
    _call(callbacks, "before_training", model)
    for epoch in tqdm(range(epochs), desc="training", unit="epoch", disable=None, leave=False):
        part = parts[epoch % len(parts)]
        images = augment(part.images, generator=generator) if augmented else part.images
        losses = []
        for batch in torch.randperm(len(part), generator=generator).split(batch_size):
            optimizer.zero_grad()
            value = loss(model(images[batch]), part.labels[batch])
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss became {value.item()} in epoch {epoch + 1}; a smaller lr may help")
            value.backward()
            _call(callbacks, "after_backward", model)
            optimizer.step()
            last_lr = schedule.get_last_lr()[0]
            schedule.step()
            _call(callbacks, "after_step", model)
            losses.append(value.item())
        history.append({"epoch": epoch + 1, "loss": sum(losses) / len(losses), "lr": last_lr})
        _call(callbacks, "after_epoch", model)
        if validation is not None:
            history[-1]["accuracy"] = evaluate(model, validation).value
            if best is None or history[-1]["accuracy"] > best[0]["accuracy"]:
                best = history[-1], copy.deepcopy(model.state_dict())
            if patience is not None and epoch + 1 - best[0]["epoch"] >= patience:
                break
    if keep == "best":
        model.load_state_dict(best[1])
    _call(callbacks, "after_training", model)
    return model.eval(), history


def _call(callbacks: Iterable, moment: str, model: nn.Module) -> None:
    for callback in callbacks:
        if hasattr(callback, moment):
            getattr(callback, moment)(model)


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Borrow a model in evaluation mode without gradients; every layer's mode is restored after."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def predict(model: nn.Module, images: torch.Tensor, *, batch_size: int = 500) -> torch.Tensor:
    """The class with the largest logit for each image, int64 of shape (n,).

    Raises: ValueError if a logit is NaN or infinite.
    """
    with evaluating(model):
        logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    if not torch.isfinite(logits).all():
        raise ValueError("the model gives NaN or infinite logits (did training diverge?)")
    return logits.argmax(dim=1)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of images classified right, with Wilson's 95 % interval."""
    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> intervals.Estimate:
        return intervals.wilson(self.correct, self.n)

    def __repr__(self) -> str:
        e = self.interval
        return f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}] of {self.n:,} images"


def evaluate(model: nn.Module, split: Split) -> Accuracy:
    """Accuracy of `model` on one part of the data, with its interval."""
    if not len(split):
        raise ValueError("cannot evaluate on an empty split")
    return Accuracy(int((predict(model, split.images) == split.labels).sum()), len(split))


def compare_predictions(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> intervals.Estimate:
    """Accuracy of `second` minus accuracy of `first` on the same images, with its paired interval.

    Args: predicted classes and true labels, all int64 of shape (n,).
    """
    if not first.shape == second.shape == labels.shape:
        raise ValueError(f"predictions and labels must have one shape; got {tuple(first.shape)}, "
                         f"{tuple(second.shape)}, {tuple(labels.shape)}")
    was_right, is_right = first == labels, second == labels
    return intervals.paired_difference(int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum()), len(labels))
