"""The modelled tier: count the operations and the bytes, and multiply by a published table.

    E = Σ over layers of  MACs · (e_multiply + e_add) + weight bytes / batch · e_weights + activation bytes · e_sram

Weights come from on-chip memory or from DRAM: the two brackets. As executed, a zero weight is multiplied and read
like any other; ideal hardware would skip it. Left out: control, instruction fetch, registers, leakage, layers
without multiplications (taken as fused). So this compares models, and is no forecast of any machine's joules.
Book: "The modelled joule".
"""
import torch
from torch import nn

from .. import cost
from ..declared import LayerCost
from .quantity import MODELLED, Energy
from .tables import HOROWITZ_45NM, Constants, Picojoules

__all__ = ["DRAM", "ON_CHIP", "UnpricedOperation", "mac_energy", "modelled", "modelled_from_costs"]

ON_CHIP, DRAM = "weights on chip", "weights in DRAM"

# What is multiplied, and in what the products are added up: wide, as hardware does.
_ACCUMULATED_IN = {"int8": "int32", "uint8": "int32", "int32": "int32", "float16": "float32", "bfloat16": "float32",
                   "float32": "float32"}


class UnpricedOperation(ValueError):
    """The table of constants has no energy for an operation of this data type."""


def modelled(model: nn.Module, example: torch.Tensor, *, batch: int = 1, weights: str = DRAM, ideal: bool = False,
             constants: Constants = HOROWITZ_45NM) -> Energy:
    """Energy of one inference from the operations and bytes that `cost.layer_costs` counts.

    Args:   example: input of shape (n, …); batch: how many inferences share one reading of the weights.
            weights: ON_CHIP or DRAM; ideal: hardware that skips zero weights, instead of as executed.
    Raises: ValueError for an operation that cannot be counted, a bad batch, or unknown brackets;
            UnpricedOperation (a ValueError) for a data type that the constants do not have.
    """
    return modelled_from_costs(cost.layer_costs(model, example), batch=batch, weights=weights, ideal=ideal,
                               constants=constants)


def modelled_from_costs(layers: list[LayerCost], *, batch: int = 1, weights: str = DRAM, ideal: bool = False,
                        constants: Constants = HOROWITZ_45NM) -> Energy:
    """The same from the costs of the layers, counted before."""
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be a whole number >= 1, such as 64; got {batch!r}")
    if weights not in (ON_CHIP, DRAM):
        raise ValueError(f"weights must be {ON_CHIP!r} or {DRAM!r}; got {weights!r}")
    if not layers:
        raise ValueError("the model has no layer that multiplies: there is nothing to model")
    level = constants.sram if weights == ON_CHIP else constants.dram
    ends = {}
    for end in ("low", "middle", "high"):
        ends[end] = 1e-12 * sum(_layer(row, end, batch, level, ideal, constants) for row in layers)
    return Energy(MODELLED, "ideal hardware, zeros skipped" if ideal else "as executed",
                  f"arithmetic and memory traffic, {weights}, batch {batch}", 0, constants.label,
                  ends["middle"], ends["low"], ends["high"])


def _layer(row: LayerCost, end: str, batch: int, level: Picojoules, ideal: bool, constants: Constants) -> float:
    """Picojoules of one layer for one inference, at one end of the constants."""
    kept = row.ideal_macs / row.macs if ideal and row.macs else 1       # a skipped zero is not read either
    arithmetic = row.macs * kept * getattr(mac_energy(row.operands, constants), end)
    reading = row.weight_bytes * kept / batch * getattr(level, end)
    return arithmetic + reading + row.activation_bytes * getattr(constants.sram, end)


def mac_energy(operands: str, constants: Constants = HOROWITZ_45NM) -> Picojoules:
    """Energy of one multiply-accumulate: the product in the operands' type, the sum in a wide one.

    Raises: UnpricedOperation for a data type that the table does not have; the message names those that it has.
    """
    wide = _ACCUMULATED_IN.get(operands)
    narrow = "int8" if operands == "uint8" else operands
    if wide is None or narrow not in constants.multiply or wide not in constants.add:
        known = [name for name, total in _ACCUMULATED_IN.items()
                 if ("int8" if name == "uint8" else name) in constants.multiply and total in constants.add]
        raise UnpricedOperation(f"{constants.name} has no energy for a multiply-accumulate of {operands!r}; "
                                f"it has {', '.join(known)}")
    product, total = constants.multiply[narrow], constants.add[wide]
    return Picojoules(product.low + total.low, product.high + total.high, f"{product.checked}; {total.checked}")
