"""Units that hang together: what else must go when one channel or one neuron goes.

A unit is a channel of a convolution or a neuron of a linear layer. Its number is built into every layer
that it passes: the batch normalisation behind it, and the layers that read it, where a channel becomes
height × width features if it is flattened. An addition ties the units of both sides together: channel 3 of
a shortcut can go only with channel 3 of what is added to it. So units are removed from a whole `Group`.
The groups are found by running the model once and following the units from layer to layer.
Book: chapter 2, "From a mask to a smaller model".
"""
import collections
import dataclasses

import torch
from torch import fx, nn

from ..training import evaluating

__all__ = ["Group", "unit_groups"]

# Each of these treats every channel by itself; a softmax does not, but is fine at a model's end.
_BY_CHANNEL = {nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardtanh,
               nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.Dropout, nn.Dropout2d,
               "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "tanh", "hardtanh", "hardswish", "sigmoid",
               "hardsigmoid", "softplus", "softmax", "log_softmax", "dropout", "dropout2d"}
_POOLS = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
          "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
_NORMS, _FLATTEN, _ADD = {nn.BatchNorm1d, nn.BatchNorm2d}, {nn.Flatten, "flatten"}, {"add", "iadd", "add_"}


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that can only be removed from all these layers together.

    name: that of the first layer that makes them; size: how many units there are;
    makers: layers with one output for each unit; norms, readers: batch normalisations and layers behind,
    each with the number of its channels or features that belong to one unit (1, or height × width).
    """
    name: str
    size: int
    makers: tuple[str, ...]
    norms: tuple[tuple[str, int], ...]
    readers: tuple[tuple[str, int], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers that change with this group."""
        return tuple(dict.fromkeys([*self.makers, *(name for name, _ in self.norms + self.readers)]))


def unit_groups(model: nn.Module, example: torch.Tensor) -> list[Group]:
    """Find the groups of units that can be removed, in the order in which the model makes them.

    The model's input and output keep their sizes, and so does everything that is added to them.
    Args:   example: images that the model takes, shape (n, channels, height, width) or (n, features).
    Raises: ValueError for a model that does not run on them, has nothing to remove, or does anything that
            this function cannot follow with certainty. The message names the layer or operation.
    Source: the dependency graph of Fang et al. 2023, for fewer kinds of layers.
    """
    _refuse_shared_and_hooked(model)
    with evaluating(model):
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:          # tracing runs the model's own code, which may raise anything
            raise ValueError("the flow of data cannot be followed, since the model decides by its input what to "
                             f"compute: {error}") from error
        flow = _Flow(model, graph)
        flow.run(example)
    for name, module in model.named_modules():
        if module._parameters and not flow.calls[name]:
            raise ValueError(f"layer {name or type(module).__name__} has parameters but is not called as a layer: "
                             "what depends on them is unknown")
    groups = flow.groups()
    if not groups:
        raise ValueError("nothing to remove: the model has no units but those tied to its input or output")
    return groups


def _refuse_shared_and_hooked(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module._forward_pre_hooks or module._forward_hooks:
            raise ValueError(f"{name or 'the model'} has hooks, which may change what it computes; remove them first "
                             "(after torch.nn.utils.prune: prune.remove)")
    owners = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if owners.setdefault(id(parameter), name) != name:
            raise ValueError(f"{owners[id(parameter)]} and {name} are one and the same parameter; units of a shared layer "
                             "cannot be removed in one place only. Give each layer its own copy first")


class _Flow(fx.Interpreter):
    """Runs the steps of a model one by one, and notes for each value the number of its group and the features for each unit.

    Groups that turn out to be tied together point to the earlier one (`tied`), as in a union-find.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph):
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.units, self.shapes, self.sizes, self.tied = {}, {}, [], []     # by step, by step, by number of the group, too
        self.parts = []                     # (number of the group, role, layer, features for each unit)
        self.fixed, self.doubts = [], []    # numbers of groups; (number of a group, why it could not be thinned)
        self.calls = collections.Counter()

    def run_node(self, node: fx.Node):
        try:
            value = super().run_node(node)
        except Exception as error:
            raise ValueError(f"{self._called(node)} does not run on the example: {error}") from error
        if node.op == "output":
            self.fixed += [self.units[n][0] for n in node.all_input_nodes]
        elif not isinstance(value, torch.Tensor) or value.dim() < 2:
            raise ValueError(f"{self._called(node)} gives no tensor with channels: units cannot be followed through it")
        else:
            self.shapes[node] = value.shape
            self.units[node] = self._follow(node, value)
        return value

    def _follow(self, node: fx.Node, value: torch.Tensor) -> tuple[int, int]:
        """The units of `value`: a new group for a layer with weights, else those of the inputs."""
        if node.op == "placeholder":
            self.fixed.append(len(self.sizes))
            return self._new_group(value.shape[1])
        layer = self.module.get_submodule(node.target) if node.op == "call_module" else None
        kind = type(layer) if layer is not None else getattr(node.target, "__name__", node.target)
        self.calls[node.target] += bool(layer is not None and layer._parameters)
        if self.calls[node.target] > 1:
            raise ValueError(f"{self._called(node)} runs more than once; give each place a layer of its own")
        inputs = [n for n in node.args if isinstance(n, fx.Node)]
        before = self.shapes[inputs[0]] if inputs else ()
        if kind in _ADD and len(inputs) == 2 and before == self.shapes[inputs[1]]:
            return self._tie(node, *(self.units[n] for n in inputs))
        if len(node.all_input_nodes) == len(inputs) == 1:
            group, repeat = self.units[inputs[0]]
            if kind is nn.Linear and len(before) == 2 or kind is nn.Conv2d and len(before) == 4 and layer.groups == 1:
                self.parts.append((group, "readers", node.target, repeat))
                self.parts.append((len(self.sizes), "makers", node.target, 1))
                return self._new_group(value.shape[1])
            if kind is nn.Conv2d and layer.groups == layer.in_channels == layer.out_channels and len(before) == 4:
                self.parts.append((group, "makers", node.target, 1))        # depthwise: a channel stays itself
                return group, repeat
            if kind in _NORMS and layer.affine:
                self.parts.append((group, "norms", node.target, repeat))
                return group, repeat
            if kind in _FLATTEN and value.dim() == 2 and value.shape[0] == before[0]:
                return group, repeat * (value.shape[1] // before[1])
            if kind in _BY_CHANNEL or kind in _POOLS and len(before) == 4:
                if self._of_zeros(node).count_nonzero():
                    self.doubts.append((group, f"{self._called(node)} does not map 0 to 0: a zero unit would still count"))
                return group, repeat
        shapes = ", ".join(str(tuple(self.shapes[n])) for n in node.all_input_nodes) or "nothing"
        raise ValueError(f"{self._called(node)} on {shapes}: units cannot be followed through it. Known are Linear on "
                         "(n, features), Conv2d without groups or depthwise, affine batch normalisation, activations, dropout, "
                         "2-d pooling, flatten from dimension 1 on, and the sum of two tensors of one shape")

    def _new_group(self, size: int) -> tuple[int, int]:
        self.sizes.append(size)
        self.tied.append(len(self.tied))
        return len(self.tied) - 1, 1

    def _root(self, group: int) -> int:
        while self.tied[group] != group:
            group = self.tied[group]
        return group

    def _tie(self, node: fx.Node, first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
        if first[1] != second[1]:
            raise ValueError(f"{self._called(node)} adds features of which {first[1]} belong to one unit to others of which "
                             f"{second[1]} do: neither can be thinned")
        roots = sorted(self._root(group) for group, _ in (first, second))
        self.tied[roots[1]] = roots[0]
        return roots[0], first[1]

    def _of_zeros(self, node: fx.Node) -> torch.Tensor:
        """What the step makes of zeros, in the shape of its input."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return getattr(self, node.op)(node.target, (torch.zeros_like(args[0]), *args[1:]), kwargs)

    def groups(self) -> list[Group]:
        """All groups but those tied to the input or the output."""
        fixed = {self._root(group) for group in self.fixed}
        for group, doubt in self.doubts:
            if self._root(group) not in fixed:
                raise ValueError(doubt)
        members = collections.defaultdict(lambda: {"makers": [], "norms": [], "readers": []})
        for group, role, layer, repeat in self.parts:
            members[self._root(group)][role].append(layer if role == "makers" else (layer, repeat))
        free = [Group(roles["makers"][0], self.sizes[root], *map(tuple, roles.values()))
                for root, roles in sorted(members.items()) if root not in fixed]
        if unread := [group.name for group in free if not group.readers]:
            raise ValueError(f"nothing reads what layer {unread[0]} makes; remove it whole")
        return free

    def _called(self, node: fx.Node) -> str:
        """How a message names a step of the model."""
        if node.op == "get_attr":
            return f"parameter or buffer {node.target}, used outside a layer,"
        if node.op == "call_module":
            return f"layer {node.target} ({type(self.module.get_submodule(node.target)).__name__})"
        return f"operation {getattr(node.target, '__name__', node.target)}"
