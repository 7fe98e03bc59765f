"""The declared tier: CPU time of one thread times the watts that somebody declares for it.

    low watts · low seconds  <=  energy  <=  high watts · high seconds

For machines without a counter. The amount spans a factor of ten or more; the *ratio* of two such amounts at equal
power is the ratio of the CPU times and needs no watts at all. Book: "The declared joule".
"""
import math

from ..intervals import Estimate
from .quantity import DECLARED, Energy, Ratio
from .tables import SERVER_WATTS, Power

__all__ = ["declared", "declared_ratio"]

_BOUNDARY = "one processor core at work"


def declared(cpu_seconds: Estimate, power: Power = SERVER_WATTS["any of these chips"], *, runs: int,
             per: str = "inference") -> Energy:
    """Energy from CPU time: an interval, never a point.

    Args:   cpu_seconds: CPU seconds of one thread, with interval; runs: how many repetitions that rests on.
    Raises: ValueError for seconds that are not above 0; TypeError for watts that are not a `Power`.
    """
    if not isinstance(power, Power):
        raise TypeError(f"declare the watts as an interval with its source, e.g. Power(0.7, 2.3, 'my guess'); got {power!r}")
    if not 0 < cpu_seconds.low <= cpu_seconds.value <= cpu_seconds.high < math.inf:
        raise ValueError(f"need CPU seconds above 0, inside their interval; got {cpu_seconds}")
    return Energy(DECLARED, "one-thread CPU seconds × declared watts", _BOUNDARY, runs, power.name, None,
                  cpu_seconds.low * power.low, cpu_seconds.high * power.high, per, cpu_seconds)


def declared_ratio(cpu_ratio: Estimate, *, runs: int) -> Ratio:
    """The ratio of two declared energies at equal power: the ratio of the CPU times, and it says so.

    Where power differs (wide vector instructions, integers) so does the true ratio of the energies.
    """
    return Ratio(DECLARED, "ratio of CPU times, at equal power", _BOUNDARY, runs, "power cancels", cpu_ratio)
