"""Layers really replaced: one thick layer goes, two or three thin ones come in its place.

A linear layer y = W x + b becomes y = B (A x) + b, two linear layers with nothing between them. The bias goes to the
last one. What comes out is an ordinary model of ordinary layers: it can be fine-tuned, counted, saved, exported, and
factorised layers can be pruned or quantized afterwards. Book: chapter 4, "Really replaced".
"""
import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from ..models import note_change
from ..watch import watch
from .kernels import METHODS, join_kernels, split_kernel
from .svd import check_matrix, check_rank, split_matrix

__all__ = ["empty_factorized", "factorizable", "factorize", "factorize_layer", "input_moments", "joined_weight"]

Rank = int | tuple[int, int]


def factorizable(model: nn.Module, *, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a model that can be factorised, by name.

    Left out are layers with hooks or a weight that is shared, and convolutions with groups, padding by word or with
    anything but zeros.
    Args:   skip: names of layers that stay whole.
    Raises: ValueError for a name in `skip` that is none of the model's.
    """
    modules, skip = dict(model.named_modules(remove_duplicate=False)), set(skip)
    if unknown := sorted(skip - set(modules)):
        raise ValueError(f"skip names layers that the model does not have: {', '.join(unknown)}")
    uses = [id(p) for m in modules.values() for _, p in m.named_parameters(recurse=False, remove_duplicate=False)]
    return {name: layer for name, layer in modules.items() if name not in skip and not _refusal(layer)
            and uses.count(id(layer.weight)) == 1}


def _refusal(layer: nn.Module) -> str:
    """Why a layer cannot be factorised; empty if it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"only Linear and Conv2d can be factorised, not {type(layer).__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks, which may change what it computes"
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        return (f"a convolution must be without groups and padded with zeros by a number; it has groups={layer.groups}, "
                f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}")
    return ""


def factorize(model: nn.Module, ranks: dict[str, Rank], *, method: str | dict[str, str] = "channel",
              moments: dict[str, torch.Tensor] | None = None, allow_larger: bool = False) -> nn.Module:
    """Return a copy of `model` whose named layers are replaced by factors, nn.Sequential of two or three layers.

    Args:   ranks: by name of the layer; a whole number, for "tucker" a pair (outputs, inputs).
            method: how convolutions are split, "channel", "spatial" or "tucker", for all or by name; see `kernels`.
            moments: X Xᵀ of what comes into layers, by name, from `input_moments`: then the outputs on such inputs
            are approximated best instead of the weights. For linear layers and "channel" only; what is known of
            layers that keep their weight is not used.
            allow_larger: also accept a rank at which the factors have as many weights as the layer, or more.
    Raises: ValueError for an unknown name, a layer that cannot be factorised, a bad rank, or a rank above break-even.
    """
    moments, possible, factors = moments or {}, factorizable(model), {}
    for name in [*ranks, *moments, *(method if isinstance(method, dict) else ())]:
        if name not in possible:
            layers = dict(model.named_modules(remove_duplicate=False))
            reason = (_refusal(layers[name]) or "its weight is shared between layers") if name in layers else "the model has no such layer"
            raise ValueError(f"cannot factorise {name!r}: {reason}; possible are {', '.join(possible) or 'none'}")
    for name, rank in ranks.items():
        try:
            factors[name] = factorize_layer(possible[name], rank, method=method_for(name, method), moment=moments.get(name),
                                            allow_larger=allow_larger)
        except ValueError as error:
            raise ValueError(f"layer {name or type(model).__name__}: {error}") from error
    return with_factors(model, factors, ranks, method)


def method_for(name: str, method: str | dict[str, str]) -> str:
    """The method for one layer, where it may be given for all or by name."""
    return method.get(name, "channel") if isinstance(method, dict) else method


def with_factors(model: nn.Module, factors: dict[str, nn.Sequential], ranks: dict[str, Rank], method: str | dict[str, str]) -> nn.Module:
    """A copy of the model in which copies of the factors stand in place of layers, and which notes how they were made."""
    if "" in factors:                   # the model is one layer
        return copy.deepcopy(factors[""])
    copied = copy.deepcopy(model)
    for name, thin in factors.items():
        copied.set_submodule(name, copy.deepcopy(thin))
    if factors:
        note_change(copied, "low_rank", "factorized", ranks=dict(ranks), method={name: method_for(name, method) for name in ranks})
    return copied


def factorize_layer(layer: nn.Module, rank: Rank, *, method: str = "channel", moment: torch.Tensor | None = None,
                    allow_larger: bool = False) -> nn.Sequential:
    """The thin layers in whose place `layer` can go: bias in the last one, stride and padding where they belong.

    Args, Raises: as `factorize`, for one layer.
    """
    if reason := _refusal(layer):
        raise ValueError(reason)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_matrix(layer.weight.flatten(1))
    if isinstance(layer, nn.Linear):
        check_rank(rank, min(layer.weight.shape))
        weights = [*split_matrix(layer.weight, rank, moment)][::-1]         # the right factor runs first
    else:
        weights = split_kernel(layer.weight, rank, method, moment)
    if not allow_larger and sum(w.numel() for w in weights) >= layer.weight.numel():
        raise ValueError(f"rank {rank} is above break-even: {sum(w.numel() for w in weights):,} weights in place of "
                         f"{layer.weight.numel():,}; choose a smaller rank, or pass allow_larger=True")
    thin = thin_layers(layer, rank, method, "meta")     # without numbers, so that no random ones are drawn
    for part, weight in zip(thin, weights):
        part.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), layer.weight.requires_grad)
    if layer.bias is not None:
        thin[-1].bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return thin.train(layer.training)


def thin_layers(layer: nn.Module, rank: Rank, method: str, device: torch.device | str) -> nn.Sequential:
    """The layers with the right sizes, and numbers that do not matter."""
    bias, options = layer.bias is not None, {"device": device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(layer.in_features, rank, bias=False, **options),
                             nn.Linear(rank, layer.out_features, bias=bias, **options))
    (h, w), places = layer.kernel_size, {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    if method == "channel":
        return nn.Sequential(nn.Conv2d(layer.in_channels, rank, (h, w), bias=False, **places, **options),
                             nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **options))
    if method == "spatial":             # rows are the column's business, columns the row's
        first = {key: (value[0], 1 - (key == "padding")) for key, value in places.items()}
        second = {key: (1 - (key == "padding"), value[1]) for key, value in places.items()}
        return nn.Sequential(nn.Conv2d(layer.in_channels, rank, (h, 1), bias=False, **first, **options),
                             nn.Conv2d(rank, layer.out_channels, (1, w), bias=bias, **second, **options))
    outputs, inputs = rank
    return nn.Sequential(nn.Conv2d(layer.in_channels, inputs, 1, bias=False, **options),
                         nn.Conv2d(inputs, outputs, (h, w), bias=False, **places, **options),
                         nn.Conv2d(outputs, layer.out_channels, 1, bias=bias, **options))


def joined_weight(factors: nn.Sequential) -> torch.Tensor:
    """The weight of the one layer that the factors stand for: their product."""
    weights = [layer.weight.detach() for layer in factors]
    return weights[1] @ weights[0] if isinstance(factors[0], nn.Linear) else join_kernels(weights)


def empty_factorized(model: nn.Module, *, ranks: dict[str, Rank], method: dict[str, str]) -> nn.Module:
    """`factorize` without numbers: to load saved models.

    Raises: ValueError for a layer that is not there or cannot be factorised, or an unknown method.
    """
    layers = factorizable(model)
    for name, rank in ranks.items():
        if name not in layers or method.get(name) not in METHODS:
            raise ValueError(f"cannot build factors for {name!r} by the method {method.get(name)!r}")
        model.set_submodule(name, thin_layers(layers[name], rank, method[name], layers[name].weight.device))
    note_change(model, "low_rank", "factorized", ranks=ranks, method=method)
    return model.eval()


def input_moments(model: nn.Module, images: torch.Tensor, layers: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Σ x xᵀ over all inputs x of a layer, float64 (inputs, inputs): which inputs occur, and which occur together.

    Args:   images: for calibration, from the training or validation part; layers: names; all factorisable ones by default.
            The inputs of a convolution are the patches that it reads.
    Raises: ValueError as `watch`, or for a layer that cannot be factorised.
    """
    moments, possible = {}, factorizable(model)
    layers = list(possible if layers is None else layers)
    if impossible := [name for name in layers if name not in possible]:
        raise ValueError(f"{', '.join(impossible)} cannot be factorised; possible are {', '.join(possible) or 'none'}")

    def see(name: str, layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        x = x.reshape(-1, x.shape[-1])
        moments[name] = moments.get(name, 0) + (x.T @ x).double()
    watch(model, layers, images, see, batch_size=100)
    return moments
