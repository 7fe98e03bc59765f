"""How a layer says what it costs: the one agreement between techniques and the ruler.

The ruler counts ordinary layers by itself. A technique's own layer (integers, sparse, codebook) computes
in a way that it cannot know, so such a layer declares its cost. Techniques and ruler both know this
module, and not each other. Book: "The companion package".
"""
import dataclasses
from typing import Protocol, runtime_checkable

import torch

__all__ = ["DeclaresCost", "LayerCost"]


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one layer executes for one example.

    macs: multiply-accumulates really executed; a zero weight is multiplied like any other.
    ideal_macs: what hardware that skips zero weights would execute.
    operands: data type of the weights that are multiplied, such as "float32".
    weight_bytes: bytes of the weights that are read for it.
    activation_bytes: bytes that go in and come out; where a layer declares its cost, the ruler fills this in.
    """
    layer: str
    macs: int
    ideal_macs: int
    operands: str
    weight_bytes: int
    activation_bytes: int = 0


@runtime_checkable
class DeclaresCost(Protocol):
    """A layer that knows its own cost, because its arithmetic is not PyTorch's usual one."""

    def cost_per_example(self, *inputs: torch.Tensor) -> LayerCost:
        """The cost for one of the examples in `inputs`; the ruler fills in `layer` and `activation_bytes`."""
