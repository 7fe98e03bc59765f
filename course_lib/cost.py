"""What a model costs whatever the machine: parameters, non-zeros, multiply-accumulates.

One multiply-accumulate (MAC) is one `a * b + c`. MACs are counted while the model runs, operation by
operation: one that the table below does not know is an error, never a silent zero. Additions of
biases, activations, pooling and batch normalisation count as free, as is usual; so does a product
element by element, unless it broadcasts into an outer product, which is an error.
Book: chapter 1, "Column 3: multiply-accumulates".
"""
import dataclasses
import math

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .declared import DeclaresCost, LayerCost
from .training import evaluating

__all__ = ["layer_costs", "macs", "nonzeros", "parameters"]


def parameters(model: nn.Module) -> int:
    """How many numbers the model's parameters hold, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def nonzeros(model: nn.Module) -> int:
    """Number of parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def macs(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates executed per example; see `layer_costs`."""
    return sum(row.macs for row in layer_costs(model, example))


def layer_costs(model: nn.Module, example: torch.Tensor) -> list[LayerCost]:
    """Run `model` once and count the multiply-accumulates of each layer, per example.

    Args:   example: input of shape (n, …); the counts are those of one of the n examples.
    Raises: ValueError for an operation that cannot be counted; the message names it and the layer.
    Equals: half the figure of torch.utils.flop_counter (which counts × and + apart), where that counts.
    """
    counter = _Counter(len(example))
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, inputs, name=name: counter.enter(m, name, inputs)))
        hooks.append(module.register_forward_hook(lambda m, inputs, output: counter.leave(m, inputs, output), always_call=True))
    try:
        with evaluating(model), counter:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(counter.rows.values())


# Elementwise work, data movement, lookups, pooling and normalisation: no multiply-accumulates by convention.
_FREE = set("""relu relu_ threshold hardtanh gelu silu sigmoid tanh softmax log_softmax _softmax _log_softmax add add_ sub
    mul mul_ div neg exp clamp max_pool2d max_pool2d_with_indices avg_pool2d mean sum amax native_batch_norm
    _native_batch_norm_legit_no_training cudnn_batch_norm native_layer_norm view _unsafe_view reshape flatten t transpose
    permute expand squeeze unsqueeze slice select split cat stack clone copy_ detach contiguous _to_copy alias empty
    zeros_like ones_like native_dropout constant_pad_nd embedding unbind""".split())


def _matmul_macs(left: torch.Tensor, right: torch.Tensor) -> int:
    return left.numel() * right.shape[-1]       # (…, m, k) times (…, k, n): m·k·n each


def _linear(args, output):
    left, right = args
    return _matmul_macs(left, right), left, right


def _convolution(args, output):
    inputs, weight, transposed = args[0], args[1], args[6]
    places = inputs if transposed else output     # every place uses every weight once, times the batch
    return places.shape[0] * math.prod(places.shape[2:]) * weight.numel(), inputs, weight


_COUNTED = {"mm": _linear, "bmm": _linear, "addmm": lambda args, output: _linear(args[1:3], output),
            "baddbmm": lambda args, output: _linear(args[1:3], output), "convolution": _convolution}


def _bytes(*tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


class _Counter(TorchDispatchMode):
    """Sees every operation that PyTorch executes, and knows in which layer it happens."""

    def __init__(self, n_examples: int):
        super().__init__()
        if n_examples < 1:
            raise ValueError("need at least one example to run the model on")
        self.n, self.stack, self.rows, self.declared_by = n_examples, [], {}, None

    def enter(self, module: nn.Module, name: str, inputs: tuple) -> None:
        self.stack.append(name)
        if self.declared_by is None and isinstance(module, DeclaresCost):
            self.declared_by = module
            self._add(dataclasses.replace(module.cost_per_example(*inputs), layer=name or "(model)", activation_bytes=0))

    def leave(self, module: nn.Module, inputs: tuple, output) -> None:
        name = self.stack.pop()
        if self.declared_by is module:
            self.declared_by = None
            if row := self.rows.get(name or "(model)"):         # none where the layer raised an error
                moved = _bytes(*inputs, output) // self.n
                self.rows[row.layer] = dataclasses.replace(row, activation_bytes=row.activation_bytes + moved)

    def _add(self, row: LayerCost) -> None:
        old = self.rows.get(row.layer)          # a layer that runs twice, or two products in one layer
        if old is not None:
            row = LayerCost(row.layer, old.macs + row.macs, old.ideal_macs + row.ideal_macs, row.operands,
                            old.weight_bytes + row.weight_bytes, old.activation_bytes + row.activation_bytes)
        self.rows[row.layer] = row

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket).removeprefix("aten.")       # another library's "mul" may be anything
        outer = name == "mul" and output.numel() > max(x.numel() for x in args if isinstance(x, torch.Tensor))
        if self.declared_by is not None or (name in _FREE and not outer):
            return output
        layer = (self.stack[-1] if self.stack else "") or "(model)"
        if name not in _COUNTED:
            raise ValueError(f"cannot count the operation {name!r} in layer {layer!r}; a layer with arithmetic "
                             "of its own must declare it (see course_lib.declared)")
        executed, inputs, weight = _COUNTED[name](args, output)
        ideal = executed * int(weight.count_nonzero()) // max(1, weight.numel())
        weights, moved = _bytes(weight), _bytes(inputs, output)
        if "bmm" in name:               # a factor for each example of the batch: no weight, it came in as well
            weights, moved = 0, moved + weights
        self._add(LayerCost(layer, executed // self.n, ideal // self.n, str(weight.dtype).removeprefix("torch."),
                            weights, moved // self.n))
        return output
