"""The package is light to import, its floors stay apart, its modules are small and documented."""
import ast
import graphlib
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

import course_lib
from helpers import run_python

ROOT = Path(course_lib.__file__).parent
# Every module by its name inside course_lib; one that outgrew a file is a package of small modules.
SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}

# Who may import whom. Imports go down the floors only; techniques do not know each other or the ruler.
ALLOWED = {
    # the ground
    "vision": set(), "intervals": set(), "declared": set(), "models": set(), "data": {"vision"}, "files": {"models"},
    "training": {"data", "intervals"}, "results": {"intervals"}, "language": {"data", "intervals", "models", "training"},
    "watch": {"training"},
    # techniques
    "pruning.weights": set(), "pruning.scores": {"pruning.weights"}, "pruning.masks": {"pruning.scores", "pruning.weights"},
    "pruning.sensitivity": {"pruning.masks", "pruning.weights"},
    "pruning.schedule": {"pruning.masks", "pruning.scores", "pruning.weights"},
    "pruning.patterns": {"pruning.masks", "pruning.scores", "pruning.weights"},
    "pruning.sparse": {"declared", "files", "models", "pruning.weights"},
    "pruning.groups": {"training"}, "pruning.unit_scores": {"pruning.groups"},
    "pruning.structured": {"models", "pruning.groups", "pruning.weights"},
    "quantization.blocks": set(), "quantization.qdq": set(), "quantization.affine": {"quantization.blocks"},
    "quantization.packing": {"quantization.blocks"},
    "quantization.stored": {"declared", "models", "quantization.affine", "quantization.blocks", "quantization.packing"},
    "quantization.calibration": {"training", "quantization.affine", "quantization.blocks", "quantization.stored"}, "quantization.folding": {"models"},
    "quantization.integer": {"declared", "quantization.affine", "quantization.qdq"},
    "quantization.static": {"declared", "models", "quantization.affine", "quantization.integer", "quantization.qdq", "quantization.stored"},
    "quantization.codebook": {"quantization.blocks", "quantization.packing", "quantization.stored"},
    "quantization.binary": {"quantization.blocks", "quantization.packing", "quantization.stored"},
    "quantization.mixed": {"quantization.affine", "quantization.stored"},
    "quantization.equalize": {"training", "quantization.stored"},
    "quantization.gptq": {"training", "quantization.affine", "quantization.stored"},
    "quantization.ste": {"quantization.affine", "quantization.binary", "quantization.stored"},
    "quantization.learned_step": {"quantization.affine", "quantization.binary", "quantization.stored", "quantization.ste"},
    "quantization.qat": {"declared", "models", "quantization.affine", "quantization.learned_step", "quantization.stored",
                         "quantization.ste"},
    "quantization.ready_made": {"quantization.stored"},
    "low_rank.svd": set(), "low_rank.kernels": {"low_rank.svd"},
    "low_rank.layers": {"models", "watch", "low_rank.kernels", "low_rank.svd"},
    "low_rank.ranks": {"low_rank.kernels", "low_rank.layers", "low_rank.svd"},
    "early_exit": {"models"},
    "distillation.losses": set(), "distillation.hints": {"distillation.losses"},
    "distillation.transfer": {"data", "training", "watch", "distillation.losses"},
    # the ruler and deployment
    "cost": {"declared", "training"}, "timing": {"intervals"}, "deploy": {"training"},
    "energy.quantity": {"intervals"}, "energy.tables": set(), "energy.declared_power": {"intervals", "energy.quantity", "energy.tables"},
    "energy.modelling": {"cost", "declared", "energy.quantity", "energy.tables"},
    "energy.measured": {"intervals", "energy.quantity"}, "energy.rapl": {"energy.measured"}, "energy.nvml": {"energy.measured"},
    "energy.adapters": {"energy.measured"},
    "energy.available": {"energy.adapters", "energy.measured", "energy.nvml", "energy.quantity", "energy.rapl"},
    "energy.paired": {"intervals", "timing", "energy.declared_power", "energy.measured", "energy.quantity", "energy.tables"},
    "energy.payback": {"intervals", "energy.quantity"},
    "mobile": set(), "memory": {"intervals"},
    # at work
    "devices": {"energy", "intervals", "training"},
    "edge.camera": {"data"}, "edge.stream": set(), "edge.neighbours": set(),
    "serving.predictor": set(), "serving.messages": {"serving.predictor"}, "serving.client": {"serving.messages"},
    "serving.guard": set(), "serving.process": {"serving.guard"},
    "serving.litserve_api": {"serving.messages", "serving.predictor"},
    "serving.litserve_app": {"serving.litserve_api", "serving.messages", "serving.predictor", "serving.process"},
    "serving.careless": {"serving.litserve_app"}, "serving.ray_app": {"serving.messages", "serving.predictor", "serving.process"},
    "serving.anatomy": {"timing", "serving.client", "serving.messages"},
    "serving.load": {"intervals"}, "serving.open_loop": {"serving.load"}, "serving.capacity": {"energy", "intervals"},
    # the story
    "carbon": {"energy"}, "joules": {"declared", "energy", "intervals", "timing"},
    "tables": set(), "choosing": {"intervals", "tables"},
    "report": {"choosing", "cost", "data", "deploy", "energy", "files", "intervals", "joules", "predictors", "tables", "timing", "training"},
    "plots": {"joules", "report"}, "predictors": {"intervals"}, "checks": set(), "syllabus": set(),
}
GROUND = ("vision", "intervals", "declared", "models", "data", "files", "training", "results", "language", "watch")
TECHNIQUES = ("pruning", "quantization", "low_rank", "distillation", "early_exit")
PACKAGES = [name for name, path in SOURCES.items() if path.name == "__init__.py"]
for package in PACKAGES:                # opens all of its own modules, and nothing else
    ALLOWED[package] = {name for name in SOURCES if name.startswith(f"{package}.")}


def imported(path: Path) -> set[str]:
    """The modules of course_lib that a module imports, anywhere in it."""
    found, folder = set(), list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) + 1 - node.level]
            found |= {".".join([*base, part]) for part in ([node.module] if node.module else [a.name for a in node.names])
                      if part != "__all__"}            # the package's list of names, which loads nothing
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(name.split(".")[0] == "course_lib" for name in names), f"{path.name}: import relatively"
    return found


def test_every_module_is_on_a_floor():
    assert set(SOURCES) == set(ALLOWED)
    assert {name for name in SOURCES if "." not in name} == set(course_lib.__all__)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_only_go_down_the_floors(name):
    assert imported(SOURCES[name]) <= ALLOWED[name]


def test_the_floors_themselves_go_down():
    """No circles; the ground knows only the ground; a technique only the ground and its own modules."""
    assert list(graphlib.TopologicalSorter(ALLOWED).static_order())
    for name, below in ALLOWED.items():
        top = name.split(".")[0]
        if top in GROUND or top in TECHNIQUES:
            assert all(other in GROUND or top in TECHNIQUES and other.startswith(f"{top}.") for other in below), name


@pytest.mark.parametrize("path, source, modules", [
    ("a.py", "from . import b, c\nfrom .d import e", {"b", "c", "d"}),
    ("a.py", "from .pruning.masks import prune", {"pruning.masks"}),
    ("p/a.py", "from . import b\nfrom .c import d\nfrom .. import e\nfrom ..f import g", {"p.b", "p.c", "e", "f"}),
    ("p/__init__.py", "from .a import *\ndef f():\n    from ..cost import macs", {"p.a", "cost"}),
    ("p/a.py", "import torch\nfrom torch import nn", set()), ("a.py", "from . import __all__", set())])
def test_relative_imports_are_found_in_packages_too(tmp_path, monkeypatch, path, source, modules):
    monkeypatch.setattr("test_package.ROOT", tmp_path)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source, encoding="utf-8")
    assert imported(tmp_path / path) == modules
    (tmp_path / path).write_text("import course_lib.cost", encoding="utf-8")
    with pytest.raises(AssertionError, match="import relatively"):
        imported(tmp_path / path)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "numpy", "scipy", "pandas", "matplotlib", "sklearn", "torchvision", "onnx", "onnxruntime")
    printed = run_python(f"import sys, course_lib; print([name for name in {heavy} if name in sys.modules])")
    assert printed.strip() == "[]"


def test_the_ground_floor_loads_no_library_that_it_may_not_need():
    heavy = ("scipy", "pandas", "matplotlib", "sklearn", "torchvision", "onnx", "onnxruntime", "mlxtend")
    printed = run_python(f"import sys; from course_lib import {', '.join(GROUND)}; "
                         f"print([name for name in {heavy} if name in sys.modules])")
    assert printed.strip() == "[]"


def test_modules_are_found_by_name_and_others_are_not():
    assert course_lib.pruning is importlib.import_module("course_lib.pruning")
    with pytest.raises(AttributeError, match="module 'course_lib' has no attribute 'quantisation'"):
        course_lib.quantisation


@pytest.mark.parametrize("name", SOURCES)
def test_every_public_name_exists_and_is_documented(name):
    module = importlib.import_module(f"course_lib.{name}")
    assert len(module.__doc__) > 60 and len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert thing.__doc__, public
            assert thing.__module__.startswith(f"course_lib.{name}.") if name in PACKAGES else \
                thing.__module__ == module.__name__, public
            # dataclasses write a docstring of their own, which only repeats the signature
            assert not thing.__doc__.startswith(f"{public}("), public
            methods = [m for m in vars(thing).values() if inspect.isfunction(m) and not m.__name__.startswith("_")] \
                if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False) else []
            assert [m.__qualname__ for m in methods if not m.__doc__] == []


@pytest.mark.parametrize("name", SOURCES)
def test_every_public_function_is_listed(name):
    module = importlib.import_module(f"course_lib.{name}")
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"}
    inside = {"ResidualBlock",                                      # a part of a model, not a door
              "check_fits", "check_fraction", "exact_magnitudes",   # what the modules of pruning share
              "check_matrix", "check_rank", "method_for", "thin_layers", "with_factors",     # those of low_rank
              "boundary_name", "check_window", "from_windows", "nets_of", "window_name"}    # and of energy
    assert public - set(module.__all__) <= inside


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_offers_what_its_modules_offer(name):
    package = importlib.import_module(f"course_lib.{name}")
    modules = [importlib.import_module(f"course_lib.{part}") for part in ALLOWED[name]]
    assert sorted(package.__all__) == sorted(public for module in modules for public in module.__all__)
    assert all(getattr(package, public) is getattr(module, public) for module in modules for public in module.__all__)


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_can_be_read_in_one_sitting(name):
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= 200


def test_the_sections_of_the_book_that_docstrings_name_exist():
    headings = set()
    for path in (ROOT.parent / "book").iterdir():
        text = path.read_text(encoding="utf-8") if path.suffix in (".md", ".ipynb") else ""
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        headings |= set(re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    for name in SOURCES:
        _, _, where = (importlib.import_module(f"course_lib.{name}").__doc__ or "").partition("Book: ")
        unknown = set(re.findall(r'"([^"]+)"', " ".join(where.split()))) - headings
        assert not unknown, f"{name} names sections that are not in the book: {unknown}"
