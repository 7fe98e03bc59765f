"""Sparse storage: write down the weights that are left, and where they are.

    CSR     values row by row, their columns, and where each row starts
            8 · left + 4 · (rows + 1) bytes
    bitmap  one bit a weight, left or not, and the values that are left
            weights / 8 + 4 · left bytes

(for float32 values, and indices of 4 bytes). A product can be computed from CSR as it is, touching only what
is left; the bitmap must be unpacked first: it saves bytes in the file and nothing else.
Book: chapter 2, "From a mask to a smaller model".
"""
import copy
import functools
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import files
from ..declared import LayerCost
from ..models import note_change
from .weights import prunable

__all__ = ["SparseLinear", "bitmap_bytes", "csr_bytes", "empty_csr", "load_bitmap", "save_bitmap", "to_csr"]


def csr_bytes(left: int, rows: int, *, index_bytes: int = 4) -> int:
    """Bytes of a float32 matrix in CSR: 4 and `index_bytes` for each weight that is left, 4 for each start."""
    return (4 + index_bytes) * left + 4 * (rows + 1)


def bitmap_bytes(left: int, weights: int) -> int:
    """Bytes of a float32 array as a bitmap: a bit for each weight, in whole bytes, and 4 for each that is left."""
    return (weights + 7) // 8 + 4 * left


def to_csr(model: nn.Module, *, index_bytes: int = 4) -> nn.Module:
    """Return a copy of `model` whose linear layers store and multiply only the weights that are not zero.

    It is for use, not for training. Convolutions stay dense: PyTorch has no sparse one.
    Args:   index_bytes: of a column index in the file; 2 is enough for up to 65,536 inputs. In memory it takes
            4, since the product needs that.
    Raises: ValueError for a model without linear layers, weights that are not finite or neither float32 nor
            float64, a layer that is shared or has hooks, and more inputs than the indices can count.
    Equals: the arrays of scipy.sparse.csr_matrix(weight).
    """
    prunable(model)             # raises for shared weights
    nonzeros = {}
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and layer.weight.numel():
            if layer._forward_hooks or layer._forward_pre_hooks:
                raise ValueError(f"layer {name or 'Linear'} has hooks, which may change what it computes; remove them first "
                                 "(after torch.nn.utils.prune: prune.remove)")
            if layer.weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"PyTorch multiplies CSR in float32 and float64 only; {name or 'the layer'} is "
                                 f"{layer.weight.dtype}")
            if not torch.isfinite(layer.weight).all():
                raise ValueError("weights must be finite; got NaN or infinity (did training diverge?)")
            nonzeros[name] = int(layer.weight.count_nonzero())
    sparse = empty_csr(model, nonzeros=nonzeros, index_bytes=index_bytes)
    for name in nonzeros:
        sparse.get_submodule(name).fill(model.get_submodule(name))
    return sparse


def empty_csr(model: nn.Module, *, nonzeros: dict[str, int], index_bytes: int = 4) -> nn.Module:
    """Return a copy of `model` with CSR layers that have room for so many weights. To load saved models.

    Args:   nonzeros: by name of the linear layer.
    Raises: ValueError for a name that is no linear layer, or for none at all.
    """
    if not nonzeros:
        raise ValueError("the model has no linear layer, and PyTorch has no sparse convolution: nothing to store as CSR")
    layers = dict(model.named_modules())
    copies = {}                 # deepcopy takes what it finds here: the dense weights are not copied
    for name, left in nonzeros.items():
        if type(layers.get(name)) is not nn.Linear:
            raise ValueError(f"the model has no linear layer named {name!r}")
        copies[id(layers[name])] = SparseLinear(layers[name], left, index_bytes)
    sparse = copy.deepcopy(model, copies)
    note_change(sparse, "pruning", "csr", nonzeros=nonzeros, index_bytes=index_bytes)
    return sparse


class SparseLinear(nn.Module):
    """A linear layer that stores its weight as CSR and multiplies only what is stored.

    Made by `to_csr`. starts: int32, shape (outputs + 1,), where each row begins in `columns` (int32) and in
    `values`, both of shape (left,); bias as in the linear layer.
    """

    def __init__(self, like: nn.Linear, left: int, index_bytes: int = 4):
        super().__init__()
        self.out_features, self.in_features = like.weight.shape
        if index_bytes not in (2, 4) or self.in_features > 256 ** index_bytes:
            raise ValueError(f"index_bytes must be 4, or 2 for at most 65,536 inputs; got {index_bytes!r} and "
                             f"{self.in_features:,} inputs")
        self.left, self.index_bytes = left, index_bytes
        self.register_buffer("starts", torch.zeros(self.out_features + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(left, dtype=torch.int32))
        self.values = nn.Parameter(torch.zeros(left, dtype=like.weight.dtype), requires_grad=False)
        self.bias = copy.deepcopy(like.bias)
        self.train(like.training)

    def fill(self, like: nn.Linear) -> None:
        """Take over the numbers of a linear layer with as many weights that are not zero."""
        weight = like.weight.detach()
        rows, columns = weight.nonzero(as_tuple=True)          # row by row, and in each from left to right
        self.starts[1:] = rows.bincount(minlength=self.out_features).cumsum(0)
        self.columns.copy_(columns)
        self.values.data.copy_(weight[rows, columns])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (…, inputs) to outputs (…, outputs)."""
        columns = x.reshape(-1, self.in_features).t()       # PyTorch is fast with the sparse matrix on the left
        if self.bias is None:
            product = self._matrix() @ columns
        else:
            product = torch.addmm(self.bias[:, None], self._matrix(), columns)
        return product.t().reshape(*x.shape[:-1], self.out_features)

    def cost_per_example(self, x: torch.Tensor) -> LayerCost:
        """Multiplies only what is stored."""
        places = x[0].numel() // self.in_features
        stored = [self.starts, self.columns, self.values]
        return LayerCost("", places * self.left, places * int(self.values.count_nonzero()),
                         str(self.values.dtype).removeprefix("torch."), sum(t.numel() * t.element_size() for t in stored))

    def extra_repr(self) -> str:
        """What a printed model shows."""
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"left={self.left}, index_bytes={self.index_bytes}")

    def _matrix(self, check: bool = False) -> torch.Tensor:
        _silence_beta_warning()
        return torch.sparse_csr_tensor(self.starts, self.columns, self.values, (self.out_features, self.in_features),
                                       check_invariants=check)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.index_bytes == 2:
            destination[prefix + "columns"] = self.columns.to(torch.uint16)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        if prefix + "columns" in state_dict:
            state_dict[prefix + "columns"] = state_dict[prefix + "columns"].to(torch.int32)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        try:
            self._matrix(check=True)        # an index outside the matrix would read foreign memory
        except RuntimeError as error:
            errors.append(f"{prefix}columns and starts are no CSR matrix: {error}")


@functools.cache
def _silence_beta_warning() -> None:
    """PyTorch says once in a process that its CSR is in beta: let it say so unheard."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1),
                                check_invariants=False)


def save_bitmap(model: nn.Module, path: str | Path) -> int:
    """Write the whole model to one file, its prunable weights as bitmaps; return the file's size in bytes.

    The first weight is the lowest bit of the first byte. A weight of −0.0 is zero, and comes back as 0.0.
    Raises: ValueError if the model does not say how it was built, is no longer built so, or has no weights.
    """
    tensors = dict(model.state_dict())
    for name in prunable(model):
        weight = tensors.pop(name).flatten()
        bits = np.packbits((weight != 0).numpy(), bitorder="little")
        tensors |= {f"{name}.bits": torch.from_numpy(bits), f"{name}.values": weight[weight != 0]}
    return files.save_form(model, tensors, path, form="bitmap")


def load_bitmap(path: str | Path) -> nn.Module:
    """Load a model that `save_bitmap` wrote; in evaluation mode.

    Raises: FileNotFoundError; ValueError if the file is damaged or was not written by `save_bitmap`.
    """
    return files.load_form(path, _unpacked, form="bitmap")


def _unpacked(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for name, like in prunable(model).items():
        if not {f"{name}.bits", f"{name}.values"} <= tensors.keys():
            raise ValueError(f"{name} is missing")
        bits, values = tensors.pop(f"{name}.bits"), tensors.pop(f"{name}.values")
        marks = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little")).bool()
        if len(bits) != (like.numel() + 7) // 8 or marks[like.numel():].any() or int(marks.sum()) != len(values):
            raise ValueError(f"the bitmap of {name} does not fit its {len(values)} values")
        weight = torch.zeros(like.numel(), dtype=values.dtype)
        weight[marks[:like.numel()]] = values
        tensors[name] = weight.view(like.shape)
    return tensors
