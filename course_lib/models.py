"""The models of the course: small enough to train in seconds, old enough to be famous.

Each function builds a network with fresh random weights for images of any channel count and size,
and notes how it was built in `model.architecture`, from which `files.load` builds it again. A technique
that swaps layers adds its change to that note (`note_change`).
All give logits of shape (n, classes). Book: chapter 1, "The models".
"""
import functools
import importlib
import inspect

import torch
from torch import nn

__all__ = ["BUILDERS", "build", "cnn", "lenet5", "lenet_300_100", "mlp", "note_change",
           "remembers_its_architecture", "resnet", "student"]

BUILDERS = {}


def remembers_its_architecture(builder):
    """Check the arguments of a builder, and note its name and arguments on the model it returns.

    A builder in another module of course_lib goes into a dictionary BUILDERS there; its name holds the module's.
    """
    module = builder.__module__.removeprefix(f"{__package__}.")
    known_as = builder.__name__ if module == "models" else f"{module}.{builder.__name__}"

    @functools.wraps(builder)
    def build_and_note(*args, **kwargs):
        signature = inspect.signature(builder)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            example = signature.parameters[name].default
            sizes = value if isinstance(example, tuple) else [value]
            if not isinstance(sizes, (tuple, list)) or not sizes or not all(type(s) is int and s >= 1 for s in sizes):
                raise ValueError(f"{name} must hold whole numbers >= 1, such as {example!r}; got {value!r}")
        model = builder(*bound.args, **bound.kwargs)
        model.architecture = {"builder": known_as, **bound.arguments}
        return model

    builder.__globals__["BUILDERS"][builder.__name__] = build_and_note
    return build_and_note


def build(architecture: dict) -> nn.Module:
    """Build a model with fresh weights from the description in `model.architecture`.

    Changes that techniques noted are repeated in their order.
    Raises: ValueError for an unknown builder or change.
    """
    arguments = dict(architecture)
    name, changes = arguments.pop("builder", None), arguments.pop("changes", [])
    module, _, builder = str(name).rpartition(".")
    builders = getattr(_find_module(module), "BUILDERS", {}) if module else BUILDERS
    if builder not in builders:
        raise ValueError(f"unknown builder {name!r}; choose one of {', '.join(builders or BUILDERS)}")
    model = builders[builder](**arguments)
    for technique, change, options in changes:
        model = _find_change(technique, change)(model, **options)
    return model


def note_change(model: nn.Module, technique: str, change: str, **options) -> None:
    """Add to `model.architecture` that its layers were changed, so that `build` can do it again.

    Args: technique, change: a module of course_lib, and a key of the dictionary CHANGES in it. Its value is
          a function of a model and `options`; it gives the model with the changed layers, and notes this.
    """
    _find_change(technique, change)
    if hasattr(model, "architecture"):          # models made elsewhere can be changed too, but not saved whole
        old = model.architecture.get("changes", [])
        model.architecture = {**model.architecture, "changes": [*old, [technique, change, options]]}


def _find_change(technique: str, change: str):
    changes = getattr(_find_module(technique), "CHANGES", {})
    if change not in changes:
        raise ValueError(f"unknown change {change!r} of technique {technique!r}; this version of course_lib has none such")
    return changes[change]


def _find_module(name: str):
    """A module of course_lib, loaded only now; None if there is no such."""
    from . import __all__ as modules
    return importlib.import_module(f".{name}", __package__) if name in modules else None


def _after(size: int, *steps: int) -> int:
    """Side of an image after unpadded k×k convolutions, each followed by 2×2 pooling."""
    for k in steps:
        size = (size - k + 1) // 2
    if size < 1:
        raise ValueError("image_size is too small: nothing is left after the convolutions and pools")
    return size


def _dense(*widths: int) -> list[nn.Module]:
    """Fully connected layers with ReLU between them."""
    layers = [nn.Flatten()]
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])):
        layers += ([nn.ReLU()] if i else []) + [nn.Linear(n_in, n_out)]
    return layers


@remembers_its_architecture
def mlp(channels: int = 1, image_size: int = 28, classes: int = 10, hidden: tuple[int, ...] = (128,)) -> nn.Module:
    """Multi-layer perceptron; by default 784-128-10 with 101,770 parameters, the source article's."""
    return nn.Sequential(*_dense(channels * image_size**2, *hidden, classes))


@remembers_its_architecture
def lenet_300_100(channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Module:
    """LeNet-300-100, the fully connected yardstick of pruning papers: 266,610 parameters.

    Source: LeCun et al. 1998; as in Han et al. 2015.
    """
    return nn.Sequential(*_dense(channels * image_size**2, 300, 100, classes))


@remembers_its_architecture
def lenet5(channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Module:
    """LeNet-5 as distributed with Caffe (and used by Han et al. 2015): 431,080 parameters.

    As there, no ReLU follows the convolutions; the pooling is the non-linearity.
    """
    side = _after(image_size, 5, 5)
    return nn.Sequential(nn.Conv2d(channels, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
                         *_dense(50 * side**2, 500, classes))


@remembers_its_architecture
def cnn(channels: int = 1, image_size: int = 28, classes: int = 10, widths: tuple[int, int] = (32, 64)) -> nn.Module:
    """Two convolutions and a dense layer; by default the source article's, 34,826 parameters.

    `widths` are the channel counts of the convolutions: (8, 16) is a small dense baseline.
    """
    if len(widths) != 2:
        raise ValueError(f"widths must hold two numbers, one for each convolution; got {widths!r}")
    first, second = widths
    side = _after(image_size, 3, 3)
    return nn.Sequential(nn.Conv2d(channels, first, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(first, second, 3), nn.ReLU(), nn.MaxPool2d(2),
                         *_dense(second * side**2, classes))


def _conv_norm(n_in: int, n_out: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution that keeps the image size (but for its stride), then batch normalisation."""
    return [nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(n_out)]


@remembers_its_architecture
def student(channels: int = 1, image_size: int = 28, classes: int = 10,
            widths: tuple[int, ...] = (8, 12, 8)) -> nn.Module:
    """A tiny student: strided convolutions with batch normalisation; by default 3,146 parameters."""
    layers, n_in, side = [], channels, image_size
    for width in widths:
        layers += [*_conv_norm(n_in, width, stride=2), nn.ReLU()]
        n_in, side = width, (side + 1) // 2
    return nn.Sequential(*layers, *_dense(n_in * side**2, classes))


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input: relu(F(x) + shortcut(x)).

    Source: He et al. 2016, fig. 2; a 1×1 convolution fits the shortcut where the shape changes.
    """

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(n_in, n_out, stride=stride), nn.ReLU(), *_conv_norm(n_out, n_out))
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(n_in, n_out, size=1, stride=stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@remembers_its_architecture
def resnet(channels: int = 1, image_size: int = 28, classes: int = 10, width: int = 16) -> nn.Module:
    """A small residual network with batch normalisation: a stem, two blocks, global average pooling."""
    return nn.Sequential(*_conv_norm(channels, width, stride=2), nn.ReLU(),
                         ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2),
                         nn.AdaptiveAvgPool2d(1), *_dense(2 * width, classes))
