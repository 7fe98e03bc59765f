"""A model as a file: what must be stored so that it can be loaded again and predicts the same.

The format is safetensors: a header in JSON, then the raw numbers. It cannot run code when it is
loaded, as a pickled file can. The header also holds the few words from which `models.build` makes
the network. Book: chapter 1, "Column 2: bytes".
"""
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from . import models

__all__ = ["load", "load_form", "payload_bytes", "save", "save_form", "saved_bytes"]


def save(model: nn.Module, path: str | Path) -> int:
    """Write the whole model to one safetensors file and return the file's size in bytes.

    The file appears whole or not at all: it is written beside its place and then moved there.
    Raises: ValueError if the model does not say how it was built (see `models`), or is no longer built so.
    """
    return save_form(model, model.state_dict(), path)


def save_form(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path, *, form: str | None = None) -> int:
    """As `save`, with other tensors than the model's own: the same numbers in a form that takes less room.

    Args: form: its name, which `load_form` asks for.
    """
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        raise ValueError("the model has no `architecture`: only models made by course_lib.models can be saved whole")
    with torch.device("meta"):      # builds without numbers, so that no random ones are drawn
        if repr(models.build(architecture)) != repr(model):
            raise ValueError("the model has other layers than its `architecture` says: it could not be loaded again")
    path = Path(path)
    metadata = {"architecture": json.dumps(architecture)} | ({"form": form} if form else {})
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        partial.write_bytes(to_bytes(tensors, metadata=metadata))
        os.replace(partial, path)
    return path.stat().st_size


def load(path: str | Path) -> nn.Module:
    """Build the model described in the file and fill in its numbers; in evaluation mode.

    Raises: FileNotFoundError; ValueError if the file is damaged or was not written by `save`.
    """
    return load_form(path, lambda model, tensors: tensors)


def load_form(path: str | Path, unpack: Callable[[nn.Module, dict], dict], *, form: str | None = None) -> nn.Module:
    """As `load`, for a file that `save_form` wrote with this `form`.

    Args: unpack: from the model, with numbers that do not matter, and the tensors in the file to the model's
          own tensors; it raises ValueError for tensors that cannot be right.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no model file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}); save the model again") from error
    if "architecture" not in metadata:
        raise ValueError(f"{path} holds no architecture: it was not written by course_lib.files.save")
    if metadata.get("form") != form:
        raise ValueError(f"{path} holds a model in the form {metadata.get('form', 'plain')!r}, not {form or 'plain'!r}; "
                         "load it with the function that belongs to the one which saved it")
    try:
        model = models.build(json.loads(metadata["architecture"]))
        tensors = unpack(model, tensors)
        model.load_state_dict(tensors, assign=True)        # assign keeps the stored data type
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its architecture and its numbers do not belong together ({error})") from error
    return model.eval()


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the model's safetensors file, found by writing one.

    For a network of one's own, without an `architecture`, it is the file of the weights: to load it takes the code of the class, too.
    """
    if not hasattr(model, "architecture"):
        return len(to_bytes({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    with tempfile.TemporaryDirectory() as folder:
        return save(model, Path(folder, "model.safetensors"))


def payload_bytes(model: nn.Module) -> int:
    """Bytes of the numbers alone; the rest of the file is the container's own overhead."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
