"""The package is light to import, its floors stay apart, its modules are small and documented."""
import ast
import importlib
import inspect
from pathlib import Path

import pytest

import course_lib
from helpers import run_python

SOURCES = {path.stem: path for path in sorted(Path(course_lib.__file__).parent.glob("*.py")) if path.stem != "__init__"}

# Who may import whom. Imports go down the floors only; techniques do not know each other or the ruler.
ALLOWED = {
    # the ground
    "vision": set(), "intervals": set(), "declared": set(), "models": set(), "data": {"vision"}, "files": {"models"},
    "training": {"data", "intervals"},
    # techniques
    "pruning": set(),
    # the ruler and deployment
    "cost": {"declared", "training"}, "timing": {"intervals"}, "deploy": {"training"},
    # the story
    "report": {"cost", "data", "deploy", "files", "intervals", "timing", "training"}, "plots": {"report"},
    "predictors": {"intervals"}, "checks": set(),
}
GROUND = ("vision", "intervals", "declared", "models", "data", "files", "training")


def imported(path: Path) -> set[str]:
    """The modules of course_lib that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(name.split(".")[0] == "course_lib" for name in names), f"{path.name}: import relatively"
    return found


def test_every_module_is_on_a_floor():
    assert set(SOURCES) == set(ALLOWED) == set(course_lib.__all__)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_only_go_down_the_floors(name):
    assert imported(SOURCES[name]) <= ALLOWED[name]


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
            assert thing.__module__ == module.__name__ and thing.__doc__, public
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
    assert public - set(module.__all__) <= {"ResidualBlock"}        # a part of a model, not a door


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_can_be_read_in_one_sitting(name):
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= 200
