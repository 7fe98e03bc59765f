"""Folding: a batch normalisation becomes part of the layer before it.

In evaluation mode a batch normalisation multiplies each channel by a constant and adds another one. The layer before
it is linear, so it can do both: γ/σ·(w·x + b − μ) + β = (γ/σ·w)·x + γ/σ·(b − μ) + β. One layer is left, with
the same outputs, and the integer form has one rounding step less. Book: chapter 3, "Folding batch normalisation".
"""
import collections
import copy

import torch
from torch import fx, nn

from ..models import note_change

__all__ = ["empty_folded", "fold_batch_norm"]

_NORM_BEHIND = {nn.Linear: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode whose batch normalisations are folded into the layers before them.

    In place of each stands nn.Identity. The copy can be saved and loaded.
    Raises: ValueError for a model whose flow of data depends on the data, or a batch normalisation that has no
            convolution or linear layer of its own directly before it, or is in training mode.
    Equals: torch.nn.utils.fusion.fuse_conv_bn_eval, for each pair, but for float rounding of the bias.
    """
    folded = copy.deepcopy(model)
    pairs = _pairs(folded)
    for before, behind in pairs.items():
        layer, norm = folded.get_submodule(before), folded.get_submodule(behind)
        folded.set_submodule(before, _fold(layer, norm))
        folded.set_submodule(behind, nn.Identity())
    if pairs:
        note_change(folded, "quantization", "folded")
    return folded.eval()


def empty_folded(model: nn.Module) -> nn.Module:
    """`fold_batch_norm` for a model that holds no numbers yet: to load saved models."""
    return fold_batch_norm(model.eval())


def _fold(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """One layer that gives what `layer` and then `norm` give."""
    # 1. the factor γ/σ of each channel; γ and β may be missing
    factor = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1)
    beta = norm.bias if norm.affine else 0
    bias = 0 if layer.bias is None else layer.bias
    # 2. all weights of an output channel take its factor, and the bias takes what was added
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter((layer.weight * factor.reshape(-1, *[1] * (layer.weight.dim() - 1))).detach())
    folded.bias = nn.Parameter(((bias - norm.running_mean) * factor + beta).detach())
    return folded


def _pairs(model: nn.Module) -> dict[str, str]:
    """Names of the layers with a batch normalisation directly behind them, and the names of these."""
    modules = dict(model.named_modules())
    norms = [name for name, module in modules.items() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return {}
    try:
        nodes = fx.Tracer().trace(model).nodes
    except Exception as error:          # tracing runs the model's own code, which may raise anything
        raise ValueError("the flow of data cannot be followed, since the model decides by its input what to "
                         f"compute: {error}") from error
    calls = collections.Counter(node.target for node in nodes if node.op == "call_module")
    weights = collections.Counter(id(m.weight) for m in modules.values() if type(m) in _NORM_BEHIND)
    reads = {node.target: node.args[0] for node in nodes if node.target in norms}
    pairs = {}
    for name in norms:
        norm = modules[name]
        if norm.training or norm.running_var is None:
            raise ValueError(f"{name} normalises with the statistics of the batch, which no constant can replace: train it "
                             "with running statistics, then call eval()")
        if calls[name] != 1:
            raise ValueError(f"{name} is called {calls[name]} times; only what is called once can be folded")
        before = reads[name]
        layer = modules.get(before.target) if before.op == "call_module" else None
        if _NORM_BEHIND.get(type(layer)) is not type(norm):
            what = type(layer).__name__ if layer else before.name
            raise ValueError(f"{name} must stand directly behind a linear layer or a convolution; it stands behind {what}")
        if calls[before.target] != 1 or len(before.users) != 1 or weights[id(layer.weight)] != 1:
            raise ValueError(f"{before.target} is used by more than {name}, so its weight cannot take in the normalisation")
        if layer._forward_hooks or layer._forward_pre_hooks or norm._forward_hooks or norm._forward_pre_hooks:
            raise ValueError(f"{before.target} or {name} has hooks, which may change what it computes; remove them first")
        pairs[before.target] = name
    return pairs
