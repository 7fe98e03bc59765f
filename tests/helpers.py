"""Small things that several test modules need."""
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from course_lib import data, files, models

# Every builder with arguments that make it tiny, and images that are just large enough for all.
IMAGE_SIZE = 16
TINY = {"mlp": {"hidden": (5,)}, "lenet_300_100": {}, "lenet5": {}, "cnn": {"widths": (2, 3)},
        "student": {"widths": (2, 3)}, "resnet": {"width": 2}}


def tiny(name: str, *, channels: int = 1, seed: int = 0) -> nn.Module:
    """A small model of the given builder, with batch statistics that are not the initial ones."""
    torch.manual_seed(seed)
    model = models.BUILDERS[name](channels, IMAGE_SIZE, **TINY[name])
    with torch.no_grad():
        model.train()(torch.rand(8, channels, IMAGE_SIZE, IMAGE_SIZE))
    return model.eval()


class HalfUsed(nn.Module):
    """A model with a layer, `unused`, that never runs; inputs (n, 4)."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def random_split(n: int = 40, *, channels: int = 1, image_size: int = IMAGE_SIZE, seed: int = 0) -> data.Split:
    """Noise with labels 0 to 9 in turn: enough to run a loop on, nothing to learn."""
    generator = torch.Generator().manual_seed(seed)
    return data.Split(torch.rand(n, channels, image_size, image_size, generator=generator), torch.arange(n) % 10)


def full_disk(monkeypatch) -> None:
    """From now on `Path.write_bytes` writes half of the content and then finds the disk full."""
    def fail(path, content):
        with open(path, "wb") as file:
            file.write(content[:len(content) // 2])
        raise OSError("No space left on device")
    monkeypatch.setattr(Path, "write_bytes", fail)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that the model stores."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states hold the same names with equal tensors."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def saved_and_loaded(model: nn.Module, folder: Path) -> nn.Module:
    """The model as it comes back from a file; it must predict the same, to the last bit."""
    files.save(model, folder / "model")
    again, images = files.load(folder / "model"), random_split(5).images
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    return again


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints; its traceback fails the test."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return result.stdout
