"""More than logits: what happens inside the teacher, as a further target.

    hint        the features of a layer, through a small learned layer that fits their sizes (FitNets)
    attention   where in the image a layer is active, without regard to its channels
    relation    how alike the teacher finds two images, whatever its features are

The student is wrapped for training (`Watched`), so that the loss sees its features too; what is kept is the student:
`trained.student` of the `Watched` that `distill` returns.
Book: chapter 4, "More than logits".
"""
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .losses import Targets, distillation_loss

__all__ = ["Watched", "attention_map", "feature_loss", "relations"]


class Watched(nn.Module):
    """A student that gives (logits, features of one layer) while it trains, and logits otherwise.

    regressor: a layer that fits the features to the teacher's, such as a 1×1 convolution; it is trained too and thrown
    away afterwards. Masks that hold while it trains are `Masks(watched)`: its weights have longer names.
    Raises: ValueError for an unknown layer, or when it trains, for one that does not run exactly once.
    """

    def __init__(self, student: nn.Module, layer: str, regressor: nn.Module | None = None):
        super().__init__()
        names = [name for name, _ in student.named_modules() if name]
        if layer not in names:
            raise ValueError(f"the student has no layer named {layer!r}; it has {', '.join(names)}")
        self.student, self.layer, self.regressor = student, layer, nn.Identity() if regressor is None else regressor

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; in training mode also the features."""
        if not self.training:
            return self.student(x)
        seen = []       # of copies: a layer that comes next may overwrite what it is given
        hook = self.student.get_submodule(self.layer).register_forward_hook(
            lambda module, inputs, output: seen.append(output.clone()))
        try:
            logits = self.student(x)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise ValueError(f"layer {self.layer!r} of the student must run once for a batch; it ran {len(seen)} times")
        return logits, self.regressor(seen[0])


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Where a layer is active: Σ over channels of the squares, (n, height·width), each with norm 1.

    Source: Zagoruyko & Komodakis 2017, sec. 3.1 (F²_sum).
    """
    if features.dim() != 4:
        raise ValueError(f"an attention map needs features (n, channels, height, width); got {tuple(features.shape)}")
    return F.normalize((features**2).sum(1).flatten(1), dim=1)


def relations(features: torch.Tensor) -> torch.Tensor:
    """How alike any two images of the batch are, (n, n): Q Qᵀ for features Q (n, …) in rows, each row of it with norm 1.

    Row i says how alike image i is to each image of the batch, itself included; how large the features are does not count.
    Source: similarity-preserving distillation, Tung & Mori 2019, eq. 1–2.
    """
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def feature_loss(*, weight: float, of: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
                 of_teacher: Callable[[torch.Tensor], torch.Tensor] | None = None, temperature: float = 4.0,
                 alpha: float = 1.0) -> Callable[[tuple, Targets], torch.Tensor]:
    """`distillation_loss` plus `weight` times the mean squared difference of the features, for a student that is `Watched`.

    Args:   of: what is compared, such as `attention_map`, of the student's features and of the teacher's; of_teacher: for the
            teacher's, where they were reduced already in `transfer_set`.
    Raises: ValueError for a negative weight, features of different shapes, or none.
    Source: hints: Romero et al. 2015, eq. 3, up to a factor; attention: the authors' code of Zagoruyko & Komodakis 2017
            (their eq. 2 has the norm, not its square); relations: Tung & Mori 2019, eq. 3.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be a number >= 0; got {weight!r}")
    soft, of_teacher = distillation_loss(temperature=temperature, alpha=alpha), of if of_teacher is None else of_teacher

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: Targets) -> torch.Tensor:
        if not isinstance(outputs, tuple):
            raise ValueError("the student gives logits only: wrap it in `Watched`, so that it gives its features too")
        logits, features = outputs
        if targets.features is None:
            raise ValueError("the transfer set has no features; name a layer of the teacher in transfer_set")
        mine, theirs = of(features), of_teacher(targets.features)
        if mine.shape != theirs.shape:
            raise ValueError(f"features must have one shape; the student's are {tuple(mine.shape)}, the teacher's "
                             f"{tuple(theirs.shape)}: a regressor can fit them")
        return soft(logits, targets) + weight * F.mse_loss(mine, theirs)
    return loss
