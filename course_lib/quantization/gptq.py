"""Rounding with error compensation: what one weight loses in rounding, the weights behind it make good.

Not every weight should go to its nearest grid value. What counts is the output on real inputs, and inputs are
correlated: if one weight came out too large, its neighbours can be a little smaller. Book: chapter 3, "Better rounding".
"""
import copy

import torch
from torch import nn
from torch.nn import functional as F

from ..training import evaluating
from .affine import Grid, fake_quantize, grid_for
from .stored import AffineForm, quantizable, store

__all__ = ["compensated_rounding", "hessian_of", "quantize_gptq"]


def compensated_rounding(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, *, damping: float = 0.01) -> torch.Tensor:
    """Round a weight to a grid, column after column, and let the columns behind make good for the error.

    The squared error of the outputs is ½ tr(E H Eᵀ), with E the error of the weights and H = 2 X Xᵀ of the inputs.
    1. Add λ to the diagonal of H, a fraction of its mean, and factorize: H⁻¹ = Uᵀ U, U upper triangular.
    2. Round column j to the grid: q = round(w_j).
    3. Subtract (w_j − q) / U_jj · U_jk from every later column k: the best that they can do about it.
    4. Repeat from 2 for the next column.

    Args:    weight: (outputs, …), taken as (outputs, inputs); hessian: (inputs, inputs);
             grid: for the weight, for all of it, for each output (axis 0) or for groups of inputs;
             damping: λ as a fraction of the mean of the diagonal.
    Returns: float32 in the shape of `weight`, every value on the grid.
    Raises:  ValueError for a Hessian of another shape, not finite or all zero, damping <= 0, or a grid along another axis.
    Source:  Frantar et al. 2023 (GPTQ), algorithm 1; for one block of columns.
    Equals:  rounding to the nearest where H is diagonal.
    """
    w = weight.detach().double().flatten(1)
    if hessian.shape != (w.shape[1],) * 2 or not torch.isfinite(hessian).all() or not hessian.diagonal().sum() > 0:
        raise ValueError(f"the Hessian must be finite, not zero, and of shape {(w.shape[1],) * 2}; got {tuple(hessian.shape)}")
    if not damping > 0 or grid.axis not in (None, 0):
        raise ValueError(f"need damping > 0 and a grid for all, along axis 0 or in groups; got {damping=}, axis {grid.axis}")
    h = hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(w.shape[1], dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rounded = torch.empty_like(w, dtype=torch.float32)
    for j in range(w.shape[1]):
        rounded[:, j] = fake_quantize(w[:, j].float(), _grid_of_column(grid, j))
        error = (w[:, j] - rounded[:, j]) / upper[j, j]
        w[:, j + 1:] -= error[:, None] * upper[j, j + 1:]
    return rounded.reshape(weight.shape)


def _grid_of_column(grid: Grid, j: int) -> Grid:
    if grid.group is None:
        return grid
    return Grid(grid.scale[:, j // grid.group], grid.zero_point[:, j // grid.group], grid.quant_min, grid.quant_max, axis=0)


def hessian_of(layer: nn.Linear | nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """H = 2 X Xᵀ, float64 of shape (inputs, inputs): a convolution's inputs are the patches that it reads.

    Raises: ValueError for a convolution in groups.
    """
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or isinstance(layer.padding, str):
            raise ValueError("error compensation needs a convolution without groups and with padding in numbers; "
                             f"got groups={layer.groups}, padding={layer.padding!r}")
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs = patches.transpose(1, 2)
    x = inputs.reshape(-1, inputs.shape[-1])
    return 2 * (x.T @ x).double()


def quantize_gptq(model: nn.Module, images: torch.Tensor, bits: int, *, axis: int | None = 0, group: int | None = None,
                  symmetric: bool = True, damping: float = 0.01, skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` with weights of `bits` bits, rounded with error compensation, one layer after the other.

    Each layer sees the inputs that the rounded layers before it give.

    Args:   images: for calibration, from the validation part; the others as `quantize_weights` and `compensated_rounding`.
    Raises: ValueError as these two, and if there are no images.
    """
    if not len(images):
        raise ValueError("error compensation needs images to see which inputs occur; got none")
    rounded, forms = copy.deepcopy(model), {}
    for name, layer in quantizable(rounded, skip=skip).items():
        seen = _inputs_of(rounded, layer, images)
        if not seen:
            raise ValueError(f"the model never calls {name}: nothing is known of what would go in; name it in `skip`")
        hessian = sum(hessian_of(layer, inputs) for inputs in seen)
        grid = grid_for(layer.weight, bits, axis=axis, group=group, symmetric=symmetric)
        with torch.no_grad():
            layer.weight.copy_(compensated_rounding(layer.weight, hessian, grid, damping=damping))
        forms[name] = AffineForm.of(layer.weight, grid)
    return store(rounded, forms)


def _inputs_of(model: nn.Module, layer: nn.Module, images: torch.Tensor, *, batch_size: int = 100) -> list[torch.Tensor]:
    """What the layer is given, batch by batch, when the model looks at the images."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        with evaluating(model):
            for batch in images.split(batch_size):
                model(batch)
    finally:
        hook.remove()
    return seen
