"""Soft targets: what a teacher thinks of all classes, not only of the right one.

A trained network that sees a 7 says "7", and a little "1" and "9". Divided by a temperature T > 1, the logits give
probabilities in which these second choices can be seen. The student learns to give the same.
Book: chapter 4, "The loss".
"""
import dataclasses
from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["UNLABELLED", "Targets", "distillation_loss", "divergence", "soften"]

UNLABELLED = -100       # the label that F.cross_entropy ignores


@dataclasses.dataclass(frozen=True)
class Targets:
    """What a student may learn from for each image; indexed, it gives those of some of the images.

    labels: int64 (n,), UNLABELLED where there is none; logits: the teacher's, (n, classes);
    features: what a layer of the teacher gave, (n, …), or None.
    Raises: ValueError for other shapes or lengths, or for something of the teacher's that carries gradients.
    """
    labels: torch.Tensor
    logits: torch.Tensor
    features: torch.Tensor | None = None

    def __post_init__(self):
        parts = [part for part in (self.labels, self.logits, self.features) if part is not None]
        if self.logits.dim() != 2 or any(part.shape[:1] != self.labels.shape for part in parts):
            raise ValueError("targets need labels (n,), logits (n, classes) and features (n, …) of one length; got "
                             + ", ".join(str(tuple(part.shape)) for part in parts))
        if any(part.requires_grad for part in parts):
            raise ValueError("what the teacher said must not carry gradients; `transfer_set` writes it down without")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which) -> "Targets":
        return Targets(*(None if part is None else part[which] for part in (self.labels, self.logits, self.features)))


def soften(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / T), shape (n, classes): the higher T, the more alike the probabilities.

    Raises: ValueError unless T > 0.
    """
    _check_temperature(temperature)
    return F.softmax(logits / temperature, dim=1)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of the softened probabilities, mean over images.

    KL = Σ_k p_k (log p_k − log q_k), summed over classes and averaged over images ("batchmean": the plain "mean"
    would divide by the number of classes too). Gradients of softened logits are smaller by 1/T²; T² makes up for that.

    Args:   logits (n, classes) of both; no gradient reaches the teacher's.
    Raises: ValueError for other shapes, or unless T > 0.
    Source: Hinton et al. 2015, sec. 2.
    """
    _check_temperature(temperature)
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(f"both logits must have one shape (n, classes); got {tuple(student.shape)} and {tuple(teacher.shape)}")
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def distillation_loss(*, temperature: float = 4.0, alpha: float = 1.0) -> Callable[[torch.Tensor, Targets], torch.Tensor]:
    """A loss for `training.fit`: α · T² · KL(teacher ‖ student) + (1 − α) · cross-entropy with the labels.

    α = 0 does not look at the teacher: the control. α = 1 does not look at the labels. The first part is a mean over all
    images of the batch, the second a mean over those that have a label, and 0 if none has one.

    Args:   alpha: from 0 to 1.
    Raises: ValueError for alpha or temperature out of range.
    Source: Hinton et al. 2015, sec. 2.
    """
    _check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a fraction from 0 to 1; got {alpha!r}")

    def loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        if isinstance(logits, tuple):
            raise ValueError("the student gives features besides its logits: train it with `feature_loss`")
        soft = alpha * divergence(logits, targets.logits, temperature) if alpha > 0 else 0
        hard = (1 - alpha) * _cross_entropy(logits, targets.labels) if alpha < 1 else 0
        return soft + hard
    return loss


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the images that have a label; 0 where `F.cross_entropy` alone would give 0 / 0."""
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"the temperature must be a number above 0, e.g. 4.0; got {temperature!r}")
