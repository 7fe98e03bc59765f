"""Timing by comparison: never one time alone, always a ratio from runs side by side.

A busy neighbour slows everything down for a while. So the candidates take turns in short samples: a
block times each once, in random order, and the ratio is formed inside the block, where the machine was
the same for all. The reference runs twice in every block: its ratio to itself, the A/A control,
shows what the machine can resolve at this moment. Book: chapter 1, "Column 4: latency".
"""
import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable

import numpy as np
import torch

from . import intervals

__all__ = ["AGAIN", "Timings", "compare", "one_thread", "precise"]

AGAIN = "the reference again"


def _smallest_step(clock: Callable[[], float]) -> float:
    begin = clock()
    while (now := clock()) == begin:
        pass
    return now - begin


# Microseconds on Linux and macOS, about 15 ms on Windows: a sample must be much longer.
_CPU_STEP = _smallest_step(time.process_time)


@contextlib.contextmanager
def one_thread():
    """Borrow PyTorch with a single thread; the number of threads is restored after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Timings:
    """Raw times and what they were measured under; the first name is the reference.

    wall, cpu: seconds per call, one array of shape (blocks,) for each name. CPU time is what the
    process itself used; wall time also runs while a neighbour has the processor.
    counted: what further counters advanced by per call, for each counter as `wall` and `cpu`.
    """
    wall: dict[str, np.ndarray]
    cpu: dict[str, np.ndarray]
    calls: dict[str, int]
    seed: int
    counted: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def reference(self) -> str:
        return next(iter(self.wall))

    def seconds(self, name: str, *, clock: str = "wall") -> float:
        """Median seconds per call: true for this machine at this moment only."""
        return float(np.median(self.per_call(clock)[name]))

    def per_call(self, clock: str) -> dict[str, np.ndarray]:
        """All samples by one clock, "wall" or "cpu", or by a further counter, by its name."""
        return self.counted[clock] if clock in self.counted else getattr(self, clock)

    def ratio(self, name: str, *, to: str | None = None, clock: str = "wall") -> intervals.Estimate:
        """Time of `name` over the time of `to` (default: the reference), with its 95 % interval.

        The median over blocks of the ratio inside each block; bootstrap over the blocks.
        """
        times = self.per_call(clock)
        logs = np.log(times[name] / times[to or self.reference])
        e = intervals.bootstrap_median(logs, seed=self.seed)
        return intervals.Estimate(*(float(np.exp(x)) for x in (e.value, e.low, e.high)))

    def control(self, *, clock: str = "wall") -> intervals.Estimate:
        """The A/A control: the reference against itself. Its distance from 1 is noise."""
        return self.ratio(AGAIN, clock=clock)

    def differs(self, name: str, *, clock: str = "wall") -> bool:
        """Whether the ratio's interval lies outside both 1 and the A/A control's interval."""
        ratio, control = self.ratio(name, clock=clock), self.control(clock=clock)
        return ratio.low > max(1, control.high) or ratio.high < min(1, control.low)


def compare(candidates: dict[str, Callable[[], object]], *, blocks: int = 30, sample_seconds: float = 0.004, seed: int = 0,
            until: Callable[[Timings], bool] | None = None, max_blocks: int = 300,
            counters: dict[str, Callable[[], float]] | None = None) -> Timings:
    """Time functions against each other in randomised, interleaved blocks, with one thread.

    Args:   candidates: names and functions without arguments; the first is the reference.
            sample_seconds: a sample repeats its function until it lasts about this long.
            until: keep adding blocks until this says that the result decides, up to `max_blocks`.
            counters: more that only grows and is read around each sample, such as joules; by name.
    Raises: ValueError for no candidate, fewer than 2 blocks, or the reserved name.
    """
    if not candidates or AGAIN in candidates or blocks < 2 or max_blocks < blocks:
        raise ValueError(f"need at least one candidate, none named {AGAIN!r}, and 2 <= blocks <= max_blocks; "
                         f"got {list(candidates)}, {blocks=}, {max_blocks=}")
    sample_seconds = max(sample_seconds, 10 * _CPU_STEP)
    functions, counters = {**candidates, AGAIN: next(iter(candidates.values()))}, counters or {}
    rng = np.random.default_rng(seed)
    with one_thread(), _no_garbage_collection():
        calls = {name: _calls_for(function, sample_seconds) for name, function in candidates.items()}
        calls[AGAIN] = next(iter(calls.values()))
        samples = {name: [] for name in functions}
        while True:
            for name in rng.permutation(list(functions)):
                samples[name].append(_sample(functions[name], calls[name], *counters.values()))
            done = len(samples[AGAIN])
            if done < blocks:
                continue
            wall, cpu, *counted = ({name: np.array(s)[:, clock] for name, s in samples.items()}
                                   for clock in range(2 + len(counters)))
            result = Timings(wall, cpu, calls, seed, dict(zip(counters, counted)))
            # Asking for a verdict costs a bootstrap, so not after every block.
            if done >= max_blocks or until is None or ((done - blocks) % 10 == 0 and until(result)):
                return result


def precise(relative: float = 0.1) -> Callable[[Timings], bool]:
    """A rule for `until`: stop when every interval, the control's too, reaches at most this far from its ratio."""
    def every_interval_is_narrow(timings: Timings) -> bool:
        ratios = [timings.ratio(name) for name in timings.wall if name != timings.reference]
        return all(max(r.high / r.value, r.value / r.low) <= 1 + relative for r in ratios)
    return every_interval_is_narrow


def _sample(function: Callable, calls: int, *counters: Callable[[], float]) -> tuple[float, ...]:
    """Wall and CPU seconds per call, over `calls` calls in a row; then what the counters advanced by."""
    counted = [counter() for counter in counters]
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        function()
    times = time.perf_counter() - wall, time.process_time() - cpu
    counted = [counter() - before for counter, before in zip(counters, counted)]
    return tuple(total / calls for total in (*times, *counted))


def _calls_for(function: Callable, sample_seconds: float) -> int:
    """Warm up, and find how many calls fill one sample."""
    function()              # the first call is often slow, and tells nothing about the others
    calls = 1
    while True:
        wall, _ = _sample(function, calls)
        if wall * calls >= sample_seconds / 2:
            return max(1, round(sample_seconds / wall))
        calls *= 2


@contextlib.contextmanager
def _no_garbage_collection():
    """Python's collector would hit one sample and not its neighbour."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
