"""What can this machine say about energy? Ask first, and be told why not more. Book: "The measured joule"."""
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from .adapters import system_on_chip
from .measured import Counter, CounterError
from .nvml import Nvml
from .quantity import DECLARED, MEASURED
from .rapl import POWERCAP, Rapl

__all__ = ["Available", "best_available"]


@dataclasses.dataclass(frozen=True)
class Available:
    """The best tier of this machine, the counter if there is one, and a sentence that says why not more."""
    tier: str
    counter: Counter | None
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def best_available(device: str = "cpu", *, root: Path = POWERCAP, nvml=None, soc: Callable[[], Counter] = system_on_chip,
                   platform: str = sys.platform) -> Available:
    """The best way to find the energy of work on `device`, "cpu" or "cuda".

    Args:   root, nvml, soc, platform: stand in for the machine, for tests.
    Raises: ValueError for another device.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {device!r}")
    if device == "cuda":
        ways, nothing = [lambda: Nvml(nvml=nvml)], "A graphics card has no declared tier: only modelled energy is left."
    elif platform == "linux":
        ways = [lambda: Rapl(root), soc]
    elif platform == "darwin":
        ways = [soc]
    else:
        ways = []
    if device == "cpu":
        nothing = "Energy is declared (CPU time × watts that you name) and modelled instead, and never zero."
    reasons = []
    for way in ways:
        try:
            counter = way()
        except CounterError as error:
            reasons.append(str(error))
        else:
            return Available(MEASURED, counter, f"Energy can be measured here: {counter.method}, which count "
                             f"{counter.boundary}. What else runs inside that boundary is counted too.")
    why = reasons[0] if reasons else f"this course reads no counter on {platform!r}"
    return Available(DECLARED if device == "cpu" else "modelled", None, f"Energy cannot be measured here: {why}. {nothing}")
