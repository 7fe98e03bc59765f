"""A camera above a conveyor belt, made from a data set: many small windows in each frame, with motion and noise.

In every window a digit lies for some frames, trembles, and makes way for the next. The frames are made beforehand, since a real
camera does not use the processor of the model. Book: chapter 6, "The camera".
"""
import dataclasses

import torch
from torch.nn import functional as F

from ..data import Split

__all__ = ["Film", "film"]


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames in a row, and what is in them.

    images: float32, shape (frames, windows, channels, height, width), from 0 to 1.
    labels: int64, shape (frames, windows).
    """
    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def film(split: Split, *, frames: int, windows: int, stays: int = 10, motion: float = 1.0, noise: float = 0.05,
         seed: int = 0) -> Film:
    """Make a film from the images of a split, the same one for the same seed.

    Args:   windows: how many images a frame shows side by side; the model gets them as one batch.
            stays: for how many frames an image stays in its window; the windows change at different times.
            motion: how far an image strays from its place, in pixels (standard deviation, each way, anew in each frame).
            noise: standard deviation of the noise on each pixel; what leaves 0 … 1 is cut off, as in a camera.
    Raises: ValueError for numbers below 1, or negative motion or noise.
    """
    if min(frames, windows, stays, len(split)) < 1 or motion < 0 or noise < 0:
        raise ValueError("need at least one frame, window, image and frame to stay, and motion and noise >= 0; "
                         f"got {frames=}, {windows=}, {stays=}, {len(split)} images, {motion=}, {noise=}")
    chance = torch.Generator().manual_seed(seed)
    # 1. which image is in which window: a queue of images for each, entered at a time of its own
    changes = (frames + 2 * stays - 2) // stays
    queue = torch.randint(len(split), (windows, changes), generator=chance)
    begins = torch.randint(stays, (windows,), generator=chance)
    place = (torch.arange(frames)[:, None] + begins) // stays               # (frames, windows)
    which = queue[torch.arange(windows), place]
    # 2. motion: each image is moved by a fraction of pixels, and what comes in from outside is empty
    images = _moved(split.images[which.flatten()], motion * torch.randn(frames * windows, 2, generator=chance))
    # 3. noise, frame by frame
    images = (images + noise * torch.randn(images.shape, generator=chance)).clamp(0, 1)
    return Film(images.reshape(frames, windows, *split.images.shape[1:]), split.labels[which])


def _moved(images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Each image moved by (down, right) pixels, shape (n, 2), with linear interpolation."""
    height, width = images.shape[-2:]
    down, right = pixels.unbind(dim=1)
    still = torch.eye(2, 3).repeat(len(images), 1, 1)
    still[:, 0, 2], still[:, 1, 2] = -2 * right / width, -2 * down / height     # where each pixel comes from; a side is 2 long
    grid = F.affine_grid(still, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
