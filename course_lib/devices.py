"""Devices with their budgets: which model fits, how much memory it needs while it runs, how far a battery goes.

A file must fit into the storage. The images and activations that exist at one moment must fit into the memory. The battery
is shared with screen, radio and motors. The tables `book/data/devices.csv` and `device_loads.csv` say for every figure where it was
seen. Book: "Which model fits which device".
"""
import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .energy import Energy
from .intervals import Estimate
from .training import evaluating

__all__ = ["Device", "Fit", "activation_peak", "fits", "inferences_per_charge", "load", "share_of_power"]

FOLDER = Path(__file__).parent.parent / "book" / "data"

# Operations that give the same numbers another shape, and those that may write each result over the number that it came from.
_VIEWS = {"flatten", "view", "reshape", "unsqueeze", "squeeze", "alias", "detach", "detach_", "dropout", "contiguous"}
_IN_PLACE = {"relu", "relu_", "batch_norm", "hardtanh", "clamp", "sigmoid", "tanh", "gelu", "silu", "add", "add_", "mul"}


@dataclasses.dataclass(frozen=True)
class Device:
    """One row of the table.

    name: its class; example: the product whose figures these are.
    ram_bytes: working memory; piece_bytes: the largest part of it in one piece; storage_bytes: flash or the like.
    joules: the energy of a full battery. loads: the watts of other consumers, by name. seen: where the figures were seen.
    """
    name: str
    example: str
    ram_bytes: int
    piece_bytes: int
    storage_bytes: int
    joules: float
    loads: dict[str, float]
    seen: str

    def __post_init__(self):
        if not 0 < self.piece_bytes <= self.ram_bytes or not 0 < self.storage_bytes or not 0 < self.joules < math.inf:
            raise ValueError("a device has bytes and joules above 0, and no piece of its memory is larger than the whole; "
                             f"got {self}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """How much of what a device grants is used: 1 is all of it. True in a condition if both parts fit."""
    storage: float
    memory: float

    def __bool__(self) -> bool:
        return bool(self.storage <= 1 and self.memory <= 1)

    def __str__(self) -> str:
        over = [f"{part} {100 * used:.3g} %" for part, used in (("storage", self.storage), ("memory", self.memory)) if used > 1]
        return "no: " + ", ".join(over) if over else "yes"


def load(folder: Path = FOLDER) -> dict[str, Device]:
    """The devices of the two tables, by name.

    A load is given in milliamperes at the device's voltage, or by the hours that a full battery lasts under it.
    Raises: FileNotFoundError where the tables are missing: they belong to the book, so run from a checkout of it.
    """
    if missing := [name for name in ("devices.csv", "device_loads.csv") if not Path(folder, name).is_file()]:
        raise FileNotFoundError(f"no {missing[0]} in the book's folder of data: use a checkout of the course")
    rows, loads = (_table(Path(folder, name)) for name in ("devices.csv", "device_loads.csv"))
    devices = {}
    for row in rows:
        volts = float(row["volts"])
        joules = 3.6 * float(row["milliamp_hours"]) * volts         # 1 mAh = 3.6 coulombs
        watts = {each["load"]: float(each["milliamps"] or 0) / 1000 * volts or joules / 3600 / float(each["hours"])
                 for each in loads if each["device"] == row["device"]}
        devices[row["device"]] = Device(row["device"], row["example"], int(row["ram_bytes"]), int(row["piece_bytes"]),
                                        int(row["storage_bytes"]), joules, watts, row["seen"])
    return devices


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fits(file_bytes: float, activation_bytes: float, device: Device, *, share: float = 1.0) -> Fit:
    """Whether a model file fits into the storage, and its activations into the memory in one piece.

    Args:   share: how much of both the model may take; program, stack and buffers need the rest. 0 < share <= 1.
    Raises: ValueError for bytes that are not finite and above 0, or another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be a fraction above 0 and at most 1, such as 0.5; got {share!r}")
    for name, size in (("file_bytes", file_bytes), ("activation_bytes", activation_bytes)):
        if not 0 < size < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {size!r}")
    return Fit(file_bytes / (share * device.storage_bytes), activation_bytes / (share * device.piece_bytes))


def activation_peak(model: nn.Module, example: torch.Tensor, *, bytes_per_value: float = 4) -> int:
    """The least memory for images and activations that computing layer by layer allows.

    A tensor lives from the operation that makes it to the last one that reads it. An operation needs its inputs and its
    output at once, except that one which works number by number, such as ReLU, may overwrite its input. The peak is the
    largest sum of living tensors. Weights do not count: they are read where they are stored.

    Args:   example: images of shape (n, channels, height, width), computed n at a time; bytes_per_value: 4 for float32, 1
            for int8.
    Returns: bytes, rounded up. A real runtime needs this or more; only one that computes a layer in parts can do with less.
    Raises: ValueError for bytes_per_value that is not above 0, no image, or a model that torch.export cannot record.
    Source: Liberis & Lane 2019, section 3.
    """
    if not 0 < bytes_per_value < math.inf or len(example) < 1:
        raise ValueError(f"need at least one image and bytes_per_value above 0, such as 4; got {len(example)}, {bytes_per_value!r}")
    try:
        with evaluating(model), torch.no_grad():
            program = torch.export.export(model, (example,))
    except Exception as error:                  # torch.export raises classes of its own
        raise ValueError(f"torch.export cannot record this model: {type(error).__name__}") from error
    given = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op != "placeholder" or n.name in given]
    return math.ceil(bytes_per_value * _peak_values(nodes))


def _peak_values(nodes: list) -> int:
    """How many numbers live at the same moment, at most, if the operations run in this order."""
    root = {}                                   # the operation that made the numbers which a node shows
    for node in nodes:
        sources = [root[n] for n in node.all_input_nodes if n in root]
        root[node] = sources[0] if _name(node) in _VIEWS and sources else node
    last = {root[n]: i for i, node in enumerate(nodes) for n in [node, *node.all_input_nodes] if n in root}
    living, peak = {}, 0
    for i, node in enumerate(nodes):
        if root[node] is not node or node.op == "output":
            continue
        size = node.meta["val"].numel()
        over = [r for r in (root[n] for n in node.all_input_nodes if n in root) if last[r] == i and living[r] == size]
        if _name(node) in _IN_PLACE and over:
            del living[over[0]]
        living[node] = size
        peak = max(peak, sum(living.values()))
        living = {made: numbers for made, numbers in living.items() if last[made] > i}
    return peak


def _name(node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def inferences_per_charge(energies: Energy | Sequence[Energy], joules: float) -> Estimate:
    """How many inferences a battery of so many joules allows, if nothing else draws from it.

    Args:   energies: of one inference of one model. Several of the same tier, such as both brackets of the modelled one, span the
            interval from the smallest low end to the largest high end.
    Returns: low is for the largest energy. The value is the middle of the interval on a logarithmic axis: nothing says
            where inside it the truth lies.
    Raises: TypeError for bare numbers: they do not say where they come from; ValueError for energies of different tiers, not per
            inference or not above 0, and for joules that are not above 0.
    """
    least, most = _span(energies)
    if not 0 < joules < math.inf:
        raise ValueError(f"joules of the battery must be a finite number above 0, such as 2430; got {joules!r}")
    return Estimate(joules / math.sqrt(least * most), joules / most, joules / least)


def share_of_power(energies: Energy | Sequence[Energy], rate: float, other_watts: float) -> Estimate:
    """The model's share of all power: rate · E / (rate · E + other watts).

    Args:   energies: as `inferences_per_charge`; rate: inferences a second; other_watts: of everything else.
    Raises: as `inferences_per_charge`; ValueError for a rate that is not above 0 or other watts below 0.
    """
    least, most = _span(energies)
    if not 0 < rate < math.inf or not 0 <= other_watts < math.inf:
        raise ValueError(f"need a rate above 0 and other watts of at least 0; got {rate!r} and {other_watts!r}")
    low, value, high = (rate * e / (rate * e + other_watts) for e in (least, math.sqrt(least * most), most))
    return Estimate(value, low, high)


def _span(energies: Energy | Sequence[Energy]) -> tuple[float, float]:
    """The smallest and the largest joules that one inference may take."""
    several = [energies] if isinstance(energies, Energy) else energies
    if not isinstance(several, Sequence) or not several or not all(isinstance(e, Energy) for e in several):
        raise TypeError(f"need an Energy or a list of them, such as energy.modelled(model, image); got {energies!r}")
    if {e.per for e in several} != {"inference"} or len({e.tier for e in several}) > 1 or min(e.low for e in several) <= 0:
        raise ValueError(f"need energies of one tier, per inference and above 0; got {', '.join(map(str, several))}")
    return min(e.low for e in several), max(e.high for e in several)
