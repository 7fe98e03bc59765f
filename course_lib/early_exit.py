"""Early exit: a side door after the first block, through which easy images leave.

The door is a small classifier on the features that the first block (the stem) has computed anyway. Is it confident, its answer
counts, and the rest of the network is never run. How confident is enough, one threshold says, chosen on validation images.
Source: Teerapittayanon et al. 2016 (BranchyNet). Book: chapter 6, "A side door".
"""
import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .models import note_change

__all__ = ["Back", "EarlyExit", "Front", "add_exit", "both_losses", "cascade", "choose_threshold", "confidence"]


class EarlyExit(nn.Module):
    """A network in three parts: stem, door and rest.

    In training mode it gives the logits of both exits, shape (2, n, classes), the door's first. In evaluation mode it gives one
    row for each image: the door's where that is at least as confident as `threshold` (a buffer, so that it is saved), else the last exit's.
    """

    def __init__(self, stem: nn.Module, door: nn.Module, rest: nn.Module):
        super().__init__()
        self.stem, self.door, self.rest = stem, door, rest
        self.register_buffer("threshold", torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits: of both exits in training, else of each image's own exit."""
        features = self.stem(images)
        early = self.door(features)
        if self.training:
            return torch.stack([early, self.rest(features)])
        # 1. who leaves; 2. the others go on, and only they
        stay = confidence(early) < self.threshold
        logits = early.clone()
        if stay.any():
            logits[stay] = self.rest(features[stay])
        return logits

    def exits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of both exits for all images, each of shape (n, classes): what a threshold is chosen from."""
        features = self.stem(images)
        return self.door(features), self.rest(features)


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability of each row, shape (n,), between 1/classes and 1."""
    return logits.softmax(dim=1).amax(dim=1)


def add_exit(model: nn.Sequential, *, after: int, pool: int = 3) -> EarlyExit:
    """A copy of a trained network with a fresh, untrained door.

    Args:   model: an nn.Sequential made by `models`; after: how many of its layers form the stem, which must give maps;
            pool: the door averages the maps over squares of this side before its one linear layer.
    Raises: ValueError for another kind of model, or a place where no door fits.
    """
    known = getattr(model, "architecture", None)
    if not isinstance(model, nn.Sequential) or known is None or not 1 <= after < len(model):
        raise ValueError(f"need an nn.Sequential made by course_lib.models and 1 <= after < its {len(list(model.children()))} layers; "
                         f"got {type(model).__name__} and {after=}")
    layers = copy.deepcopy(model)
    stem, rest = layers[:after], layers[after:]
    device = next((p.device for p in model.parameters()), None)
    with torch.no_grad():
        maps = copy.deepcopy(stem).eval()(torch.zeros(1, known["channels"], known["image_size"], known["image_size"], device=device))
    if maps.ndim != 4 or type(pool) is not int or not 1 <= pool <= min(maps.shape[2:]):
        raise ValueError(f"the stem must give maps at least as large as the pool of the door; it gives {tuple(maps.shape[1:])}, {pool=}")
    sides = [side // pool for side in maps.shape[2:]]
    door = nn.Sequential(nn.AvgPool2d(pool), nn.Flatten(),
                         nn.Linear(maps.shape[1] * sides[0] * sides[1], known["classes"], device=device))
    network = EarlyExit(stem, door, rest)
    network.architecture = dict(known)
    note_change(network, "early_exit", "exit", after=after, pool=pool)
    return network.train(model.training)


def both_losses(weight: float = 0.5) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A loss for `training.fit`: `weight` times the door's cross-entropy plus 1 − `weight` times the last exit's.

    With weight 1 only the door and the stem learn. Source: Teerapittayanon et al. 2016, eq. 3, with two exits.
    Raises: ValueError for a weight that is not a fraction.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be a fraction between 0 and 1; got {weight!r}")

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        early, final = outputs
        return weight * F.cross_entropy(early, labels) + (1 - weight) * F.cross_entropy(final, labels)
    return loss


def choose_threshold(early: torch.Tensor, final: torch.Tensor, labels: torch.Tensor, *, lose: float = 0.0) -> float:
    """The threshold that lets most images leave early, such that at most `lose` accuracy is lost against the last exit alone.

    Args:   early, final: logits of both exits for validation images, shape (n, classes); labels: shape (n,).
            lose: a fraction; it may be negative, to ask for a gain.
    Returns: a confidence that occurs; or infinity, with which nobody leaves, if no other threshold is good enough.
    Raises: ValueError for shapes that do not belong together, or no image.
    """
    if early.shape != final.shape or early.ndim != 2 or labels.shape != early.shape[:1] or not len(labels):
        raise ValueError(f"need logits of one shape (n, classes) and n labels; got {tuple(early.shape)}, {tuple(final.shape)}, "
                         f"{tuple(labels.shape)}")
    # 1. sort by confidence: with the k-th as the threshold, the first k leave early
    sure, order = confidence(early).sort(descending=True)
    gained = (early.argmax(1) == labels).long()[order] - (final.argmax(1) == labels).long()[order]
    # 2. the accuracy gained (or lost) if the first k leave; equal confidences leave together
    gained, last_of_equals = gained.cumsum(0), torch.ones(len(sure), dtype=torch.bool)
    last_of_equals[:-1] = sure[1:] < sure[:-1]
    # 3. the largest k that is good enough
    good = (last_of_equals & (gained >= -lose * len(labels) - 1e-9)).nonzero()
    return float(sure[good[-1, 0]]) if len(good) else float("inf")


class Front(nn.Module):
    """Stem and door as one network, for a file of its own: confidence, logits and features in one row for each image."""

    def __init__(self, network: EarlyExit):
        super().__init__()
        self.stem, self.door = network.stem, network.door

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Rows of shape (n, 1 + classes + features)."""
        features = self.stem(images)
        early = self.door(features)
        return torch.cat([early.softmax(dim=1).amax(dim=1, keepdim=True), early, features.flatten(1)], dim=1)


class Back(nn.Module):
    """The rest of the network, for a file of its own: from the row of features that `Front` gives to logits."""

    def __init__(self, network: EarlyExit, maps: tuple[int, int, int]):
        super().__init__()
        self.maps, self.rest = tuple(maps), network.rest

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, classes), from features, shape (n, channels · height · width)."""
        return self.rest(features.reshape(-1, *self.maps))


def cascade(front: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray], *, classes: int,
            threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """Two deployed halves as one function from images to logits; the back is called only if somebody stays, and for those only.

    Args: front, back: what runs the files of `Front` and `Back`; classes: how many logits follow the confidence.
    """
    def run(images: np.ndarray) -> np.ndarray:
        out = front(images)
        stay = out[:, 0] < threshold
        if not stay.any():
            return out[:, 1:1 + classes]
        if stay.all():
            return back(out[:, 1 + classes:])
        logits = out[:, 1:1 + classes].copy()
        logits[stay] = back(out[stay, 1 + classes:])
        return logits
    return run


CHANGES = {"exit": add_exit}
