"""More than logits: what happens inside the teacher, as a further target.

    hint        the features of a layer, through a small learned layer that fits their sizes (FitNets)
    attention   where in the image a layer is active, without regard to its channels
    relation    how alike the teacher finds two images, whatever its features are

The student is wrapped for training (`Watched`), so that the loss sees its features too; what is kept is the student.
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
    away afterwards. Raises: ValueError for an unknown layer.
    """

    def __init__(self, student: nn.Module, layer: str, regressor: nn.Module | None = None):
        super().__init__()
        if layer not in dict(student.named_modules()):
            raise ValueError(f"the student has no layer named {layer!r}; it has {', '.join(n for n, _ in student.named_modules() if n)}")
        self.student, self.layer, self.regressor = student, layer, regressor or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; in training mode also the features."""
        if not self.training:
            return self.student(x)
        seen = []
        hook = self.student.get_submodule(self.layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            logits = self.student(x)
        finally:
            hook.remove()
        return logits, self.regressor(seen[-1])


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Where a layer is active: Σ over channels of the squares, (n, height·width), each with norm 1.

    Source: Zagoruyko & Komodakis 2017, sec. 3.1 (F²_sum).
    """
    if features.dim() != 4:
        raise ValueError(f"an attention map needs features (n, channels, height, width); got {tuple(features.shape)}")
    return F.normalize((features**2).sum(1).flatten(1), dim=1)


def relations(features: torch.Tensor) -> torch.Tensor:
    """How alike any two images of the batch are: cosines between their features, (n, n).

    Source: similarity-preserving distillation, Tung & Mori 2019, eq. 1–2 (there the rows are normalised instead).
    """
    rows = F.normalize(features.flatten(1), dim=1)
    return rows @ rows.T


def feature_loss(*, weight: float, of: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
                 of_teacher: Callable[[torch.Tensor], torch.Tensor] | None = None, temperature: float = 4.0,
                 alpha: float = 1.0) -> Callable[[tuple, Targets], torch.Tensor]:
    """`distillation_loss` plus `weight` times the mean squared difference of the features.

    Args:   of: what is compared, such as `attention_map`, of the student's features and of the teacher's; of_teacher: for the
            teacher's, where they were reduced already in `transfer_set`.
    Raises: ValueError for a negative weight, or features of different shapes.
    Source: hints: Romero et al. 2015, eq. 3.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be a number >= 0; got {weight!r}")
    soft, of_teacher = distillation_loss(temperature=temperature, alpha=alpha), of_teacher or of

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: Targets) -> torch.Tensor:
        logits, features = outputs
        if targets.features is None:
            raise ValueError("the transfer set has no features; name a layer of the teacher in transfer_set")
        mine, theirs = of(features), of_teacher(targets.features)
        if mine.shape != theirs.shape:
            raise ValueError(f"features must have one shape; the student's are {tuple(mine.shape)}, the teacher's "
                             f"{tuple(theirs.shape)}: a regressor can fit them")
        return soft(logits, targets) + weight * F.mse_loss(mine, theirs)
    return loss
