"""torchvision is importable whether or not its compiled operators fit the torch that is installed."""
import re
import types
from pathlib import Path

import nbformat
import pytest
import torch

from course_lib import vision
from helpers import run_python

ROOT = Path(__file__).resolve().parent.parent

USE_TORCHVISION = """
import gzip, sys, tempfile, pathlib
import torch
from course_lib import vision
{before}
torchvision = vision.torchvision()
assert torchvision is sys.modules["torchvision"] and torchvision is vision.torchvision()

# a data set from a local folder
folder = pathlib.Path(tempfile.mkdtemp(), "MNIST", "raw")
folder.mkdir(parents=True)
for part, n in (("train", 3), ("t10k", 2)):
    numbers = lambda *values: b"".join(v.to_bytes(4, "big") for v in values)
    (folder / f"{{part}}-images-idx3-ubyte").write_bytes(numbers(2051, n, 28, 28) + bytes(784 * n))
    (folder / f"{{part}}-labels-idx1-ubyte").write_bytes(numbers(2049, n) + bytes(range(n)))
image, label = torchvision.datasets.MNIST(folder.parent.parent, train=True)[2]
assert label == 2 and image.size == (28, 28)

# transforms and a model
from torchvision.transforms import v2
assert v2.RandomAffine(10)(torch.rand(1, 28, 28)).shape == (1, 28, 28)
with torch.no_grad():
    assert torchvision.models.resnet18().eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
print("declared" if vision._declared else "loaded")
"""
DECLARE_FIRST = """
library = torch.library.Library("torchvision", "DEF")
for name in {names}:
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@pytest.fixture(scope="module")
def outcome():
    """How torchvision came in here: "declared" beside a torch that does not fit, else "loaded"."""
    return run_python(USE_TORCHVISION.format(before="")).strip()


def test_data_sets_transforms_and_models_work_in_this_environment(outcome):
    assert outcome in ("declared", "loaded")


def test_operators_that_exist_are_not_declared_again(outcome):
    """The ordinary case, rehearsed where it is not the case here by making the operators exist."""
    before = DECLARE_FIRST.format(names=("nms", "qnms")) if outcome == "declared" else ""
    assert run_python(USE_TORCHVISION.format(before=before)).strip() == "loaded"


def test_only_what_is_missing_is_declared(outcome):
    """One of the two operators exists already."""
    before = DECLARE_FIRST.format(names=("qnms",)) if outcome == "declared" else ""
    run_python(f"import torch\nfrom course_lib import vision\n{before}\nvision.torchvision()\n"
               "assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms")


def test_an_import_that_works_declares_nothing(monkeypatch):
    module = types.ModuleType("torchvision")
    monkeypatch.setattr(vision.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("declared an operator"))
    assert vision.torchvision() is module


@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), RuntimeError("out of memory"),
                                   OSError("libcudart.so.13: cannot open shared object file")])
def test_other_errors_pass_through_unchanged(monkeypatch, error):
    def fail(name):
        raise error
    monkeypatch.setattr(vision.importlib, "import_module", fail)
    with pytest.raises(type(error)) as caught:
        vision.torchvision()
    assert caught.value is error


def test_nothing_else_in_the_course_imports_torchvision():
    pattern = re.compile(r"^\s*(?:import|from)\s+torchvision\b", re.MULTILINE)
    sources = {path: path.read_text(encoding="utf-8") for folder in ("course_lib", "benchmarks", "tools")
               for path in sorted((ROOT / folder).rglob("*.py"))}
    for path in sorted((ROOT / "book").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert ROOT / "course_lib" / "vision.py" in sources
    assert [str(path) for path, text in sources.items() if pattern.search(text)] == []
