"""Any other counter, fitted to this package: a function that returns joules that only grow.

Apple processors and NVIDIA Jetson boards are read through the optional package zeus; there the figures are partly those
of a model inside the chip (Apple) or of sampled power (Jetson), and the method says so. Book: "The measured joule".
"""
import math
from collections.abc import Callable

from .measured import CounterError

__all__ = ["Adapter", "system_on_chip"]


class Adapter:
    """A counter made from a function.

    Args: read: total joules so far, of any starting point; method, boundary: how it is read and what is inside.
    """

    def __init__(self, read: Callable[[], float], *, method: str, boundary: str):
        if not callable(read) or not method or not boundary:
            raise ValueError("an adapter needs a function that returns joules, a method and a boundary; "
                             f"got {read!r}, {method!r} and {boundary!r}")
        self._read, self.method, self.boundary = read, method, boundary
        self.start()

    def start(self) -> None:
        """Forget the past and count from zero."""
        self._begin = self._last = self._checked()

    def joules(self) -> float:
        """Joules since `start`. Raises CounterError if the function goes backwards or gives no number."""
        now = self._checked()
        if now < self._last:
            raise CounterError(f"{self.method} went backwards, from {self._last:g} to {now:g} J")
        self._last = now
        return now - self._begin

    def _checked(self) -> float:
        value = self._read()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CounterError(f"{self.method} gave {value!r} and not a number of joules")
        return value


def system_on_chip(soc=None) -> Adapter:
    """The counter of an Apple processor or a Jetson board.

    Args:   soc: stands in for the object of zeus, for tests.
    Raises: CounterError without the package zeus, on another machine, or where a figure is missing.
    """
    if soc is None:
        try:
            from zeus.device.soc import get_soc
        except ImportError as error:
            raise CounterError("Apple and Jetson counters need the package zeus: pip install 'zeus[apple]' or zeus") from error
        try:
            soc = get_soc()
        except Exception as error:          # it raises a class of its own for each machine that it does not know
            raise CounterError(f"zeus finds no Apple or Jetson counter here ({error})") from error
    apple = hasattr(soc.get_total_energy_consumption(), "cpu_total_mj")
    fields = ("cpu_total_mj", "dram_mj") if apple else ("total_energy_mj",)

    def joules() -> float:
        found = soc.get_total_energy_consumption()
        parts = [getattr(found, field, None) for field in fields]
        if None in parts:
            raise CounterError(f"zeus gives no {fields[parts.index(None)]} on this machine")
        return sum(parts) / 1000

    if apple:
        return Adapter(joules, method="Apple's own estimate through zeus", boundary="processor cores and DRAM")
    return Adapter(joules, method="Jetson power sampled by zeus", boundary="whole Jetson board")
