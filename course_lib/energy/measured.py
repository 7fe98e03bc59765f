"""The measured tier: what a counter in the machine advanced by, between two readings.

A counter is any object with `method`, `boundary`, `start()` and `joules()`: joules since the start, growing. It
counts everything that happens inside its boundary, so the idle power is measured too and reported apart: gross is what
the counter says, net is gross less the idle power over the same time. Book: "The measured joule".
"""
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from .. import intervals
from .quantity import MEASURED, Energy

__all__ = ["Counter", "CounterError", "HEADLINE_SECONDS", "Idle", "idle", "measure"]

HEADLINE_SECONDS = 10       # a figure that is to be quoted rests on windows at least this long


class CounterError(RuntimeError):
    """An energy counter is missing, may not be read, or has said something impossible."""


@runtime_checkable
class Counter(Protocol):
    """What reads energy: RAPL, NVML, an adapter, a test's fake."""
    method: str
    boundary: str

    def start(self) -> None:
        """Forget the past and count from zero."""

    def joules(self) -> float:
        """Joules since `start`; never less than before. Raises CounterError."""


@dataclasses.dataclass(frozen=True)
class Idle:
    """Power with nothing of ours running, in watts with interval; the boundary it was measured in."""
    watts: intervals.Estimate
    boundary: str
    seconds: float
    windows: int


def idle(counter: Counter, *, seconds: float = 2.0, windows: int = 5, sleep: Callable[[float], None] = time.sleep,
         clock: Callable[[], float] = time.perf_counter) -> Idle:
    """Measure the power of the machine while this process sleeps; what neighbours do is in it.

    Raises: ValueError for windows that are not longer than zero, or fewer than two; CounterError.
    """
    check_window(seconds, windows)
    counter.start()
    watts = []
    for _ in range(windows):
        begin, before = clock(), counter.joules()
        sleep(seconds)
        after, end = counter.joules(), clock()
        watts.append((after - before) / (end - begin))
    return Idle(intervals.bootstrap_median(watts), counter.boundary, seconds, windows)


def measure(function: Callable[[], object], counter: Counter, *, seconds: float = HEADLINE_SECONDS, windows: int = 5,
            idle: Idle | None = None, per: str = "inference", inferences: int = 1,
            clock: Callable[[], float] = time.perf_counter) -> Energy:
    """Joules of one call: repeat it for whole windows, read the counter at their ends.

    Args:   seconds: length of a window; inferences: how many one call makes, such as the batch size.
            idle: given, the result is net of this power, else gross.
    Raises: ValueError for windows that are not longer than zero, fewer than two, or an idle power of another boundary;
            CounterError if the counter did not move: no counter is never zero joules.
    """
    check_window(seconds, windows)
    if type(inferences) is not int or inferences < 1:
        raise ValueError(f"inferences must be a whole number >= 1, such as the batch size; got {inferences!r}")
    function()                              # the first call is often slow
    counter.start()
    found = [_window(function, counter, seconds, clock) for _ in range(windows)]
    joules, times, calls = np.array(found).T
    return from_windows(joules / calls / inferences, times / calls / inferences, counter, window_seconds=seconds,
                        idle=idle, per=per)


def _window(function: Callable, counter: Counter, seconds: float, clock: Callable) -> tuple[float, float, int]:
    """Joules, seconds and calls of one window."""
    begin, before, calls = clock(), counter.joules(), 0
    while clock() - begin < seconds:
        function()
        calls += 1
    after, end = counter.joules(), clock()
    return after - before, end - begin, calls


def from_windows(joules: np.ndarray, seconds: np.ndarray, counter: Counter, *, window_seconds: float,
                 idle: Idle | None = None, per: str = "inference") -> Energy:
    """The median of windows with its interval, as an Energy; joules and seconds: shape (windows,), per inference."""
    found = [intervals.bootstrap_median(net) for net in nets_of(joules, seconds, counter, idle)]
    return Energy(MEASURED, f"{counter.method}, {len(joules)} {window_name(window_seconds)}", boundary_name(counter, idle),
                  len(joules), "", found[0].value, min(e.low for e in found), max(e.high for e in found), per)


def nets_of(joules: np.ndarray, seconds: np.ndarray, counter: Counter, idle: Idle | None) -> list[np.ndarray]:
    """The joules less the idle power over the same seconds: at its value, and at both ends of its interval.

    Raises: CounterError where the counter did not move.
    """
    if not np.all(joules > 0):
        raise CounterError(f"{counter.method} did not move during a window: it is coarser than the window, or stuck. "
                           "Use longer windows; this is not zero joules")
    if idle is None:
        return [joules]
    if idle.boundary != counter.boundary:
        raise ValueError(f"the idle power is that of {idle.boundary!r}, and the counter's boundary is {counter.boundary!r}")
    return [joules - watts * seconds for watts in (idle.watts.value, idle.watts.low, idle.watts.high)]


def boundary_name(counter: Counter, idle: Idle | None) -> str:
    """Gross and net are two boundaries, so that they cannot be mixed."""
    return f"{counter.boundary}, {'gross' if idle is None else 'net of idle power'}"


def window_name(seconds: float) -> str:
    """Windows for people; short ones say so."""
    return f"windows of {seconds:g} s" if seconds >= HEADLINE_SECONDS else f"short windows of {seconds:g} s"


def check_window(seconds: float, windows: int) -> None:
    """Refuse windows that are negative, zero or endless, and fewer than two of them."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"a window must be longer than 0 seconds, such as 10; got {seconds!r}")
    if type(windows) is not int or windows < 2:
        raise ValueError(f"need at least two windows, since one tells nothing about its own spread; got {windows!r}")
