"""A load test with an open loop: requests leave at times fixed beforehand, whatever the server does.

Users do not wait for each other, so neither do the requests here. The latency of a request counts from the moment at which
it was *due*: a client that waits for a slow answer before it asks again would leave out just the requests that suffer
(coordinated omission). The client itself is in `open_loop`. Book: "An open loop".
"""
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator

import numpy as np

from ..intervals import Estimate

__all__ = ["TIMED_OUT", "UNANSWERED", "Load", "arrival_times", "on_cores", "percentile", "separate_cores"]

TIMED_OUT, UNANSWERED = 0, -1           # in the place of a status of HTTP, which is 100 or more
STRETCHES = 20                          # a run is cut into so many to see how far it agrees with itself


def arrival_times(rate: float, seconds: float, *, poisson: bool = True, seed: int = 0) -> np.ndarray:
    """When requests are due, in seconds from the start, in order; all before `seconds`.

    Args:   rate: requests per second, on average; poisson: independent users; otherwise at equal distances.
    Raises: ValueError for a rate or a time that is not above 0, or with fewer than one request expected.
    """
    if not (0 < rate < math.inf and 0 < seconds < math.inf and rate * seconds >= 1):
        raise ValueError(f"need a rate and seconds above 0 and room for at least one request; got {rate!r} per second "
                         f"for {seconds!r} s")
    if not poisson:
        return np.arange(math.ceil(rate * seconds - 1e-9)) / rate
    rng, times = np.random.default_rng(seed), np.zeros(0)
    while not len(times) or times[-1] < seconds:
        gaps = rng.exponential(1 / rate, size=math.ceil(rate * seconds) + 10)
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + gaps.cumsum()])
    # An empty run tells nothing: the first is sent in any case.
    return np.concatenate([times[:1].clip(max=seconds), times[1:][times[1:] < seconds]])


def percentile(latencies, q: float, *, confidence: float = 0.95) -> Estimate:
    """The latency that a share `q` of the requests does not exceed, with its interval.

    Args:   latencies: in the order of arrival; infinite where no good answer came, since leaving those out would
            praise a server for losing requests. q: a fraction such as 0.99.
    The end of the interval is infinite where so few requests cannot tell. Requests that queue behind each other are
    not independent, so the spread is that between stretches of the run, if that is larger than chance alone.
    Raises: ValueError for no latency, one below 0 or not a number, or a q outside 0 to 1.
    Source: Woodruff 1952: the interval of a share, read off at the ordered values; batch means as in simulation.
    """
    from scipy.stats import t
    values = np.asarray(latencies, dtype=float)
    if values.ndim != 1 or not len(values) or not (values >= 0).all() or not 0 < q < 1:
        raise ValueError(f"need latencies of 0 or more in one dimension and 0 < q < 1, e.g. 0.99; got shape {values.shape}, {q=}")
    ordered, n = np.concatenate([np.sort(values), [math.inf]]), len(values)
    middle = ordered[math.ceil(q * n - 1e-9) - 1]
    spread, degrees = math.sqrt(q * (1 - q) / n), STRETCHES - 1
    if n >= 5 * STRETCHES:
        shares = [(part <= middle).mean() for part in np.array_split(values, STRETCHES)]
        spread = max(spread, float(np.std(shares, ddof=1)) / math.sqrt(STRETCHES))
    half = t.ppf((1 + confidence) / 2, degrees) * spread
    low, high = math.floor((q - half) * n), math.ceil((q + half) * n)
    return Estimate(float(middle), float(ordered[low - 1]) if low >= 1 else 0.0, float(ordered[min(high, n)]))


@dataclasses.dataclass(frozen=True)
class Load:
    """What became of every request of a load test; arrays of shape (requests,), in the order in which they were due.

    rate, seconds: what was offered. due: seconds from the start. finished: when its answer, error or timeout came.
    status: that of HTTP, or TIMED_OUT, or UNANSWERED (refused, cut off). late: how late the client itself was in sending.
    answers: of each field that was asked for, one value for each request (None where no good answer came).
    """
    rate: float
    seconds: float
    due: np.ndarray
    finished: np.ndarray
    status: np.ndarray
    late: np.ndarray
    answers: dict[str, list]

    @property
    def good(self) -> np.ndarray:
        """Which requests were answered with a status of 200 to 299."""
        return (self.status >= 200) & (self.status < 300)

    @property
    def latency(self) -> np.ndarray:
        """Seconds from when each was due to its answer; infinite where there was no good one."""
        return np.where(self.good, self.finished - self.due, math.inf)

    @property
    def throughput(self) -> float:
        """Good answers per second, of those that came while requests were arriving."""
        return float((self.good & (self.finished <= self.seconds)).sum() / self.seconds)

    @property
    def keeps_up(self) -> bool:
        """Whether at least 95 % of the requests had their good answer before arrivals ended: no queue was left to grow."""
        return bool((self.good & (self.finished <= self.seconds)).mean() >= 0.95)

    @property
    def failures(self) -> dict[str, int]:
        """How many went wrong, by what happened: {"timed out": 3, "status 500": 1}."""
        names = {TIMED_OUT: "timed out", UNANSWERED: "no answer"}
        bad, counts = np.unique(self.status[~self.good], return_counts=True)
        return {names.get(int(s), f"status {s}"): int(n) for s, n in zip(bad, counts)}

    def percentile(self, q: float) -> Estimate:
        """Latency in seconds that a share `q` of all requests does not exceed; see the function."""
        return percentile(self.latency, q)


def separate_cores() -> tuple[set[int] | None, set[int] | None]:
    """Cores for the server and for its client: the first, and all others. (None, None) where they cannot be had."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ({cores[0]}, set(cores[1:])) if len(cores) > 1 else (None, None)


@contextlib.contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """Run this thread on these cores only, and with it every process that it starts; None leaves all as it is."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
