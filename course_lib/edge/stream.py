"""Frames on a clock: each must be answered by its deadline, and a camera does not wait.

While the model works on a frame, the next ones arrive. A buffer keeps the newest only; an older one that was never begun
is dropped. So what the model begins is never older than a period, and what it cannot do is lost. Book: chapter 6, "The clock".
"""
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

__all__ = ["Log", "one_core", "play"]


@dataclasses.dataclass(frozen=True)
class Log:
    """What happened to each frame; arrays of shape (frames,), seconds after the first frame.

    arrived: when the camera gave it. began, ended: when the model took it and was done; nan if it was dropped.
    busy: CPU seconds that the model used for it; 0 if it was dropped.
    deadline: seconds after its arrival. answers: what the model gave for each frame; None if it was dropped.
    """
    arrived: np.ndarray
    began: np.ndarray
    ended: np.ndarray
    busy: np.ndarray
    deadline: float
    answers: list

    @property
    def dropped(self) -> np.ndarray:
        """True for frames that the model never saw."""
        return np.isnan(self.ended)

    @property
    def late(self) -> np.ndarray:
        """True for frames whose answer came after the deadline."""
        return self.response > self.deadline

    @property
    def missed(self) -> float:
        """Share of frames without an answer in time: dropped or late."""
        return float((self.dropped | self.late).mean())

    @property
    def response(self) -> np.ndarray:
        """Seconds from arrival to answer; nan if dropped."""
        return self.ended - self.arrived

    @property
    def jitter(self) -> float:
        """How unsteady the answers are: the 95th percentile of the response time minus its median, in seconds."""
        seen = self.response[~self.dropped]
        return float(np.quantile(seen, 0.95) - np.median(seen))

    @property
    def duty(self) -> float:
        """Duty cycle: the share of the time in which the processor worked for the model, until camera and model are done."""
        period = self.arrived[1] - self.arrived[0]
        return float(self.busy.sum() / max(len(self.arrived) * period, np.nanmax(self.ended)))

    def in_force(self, default) -> list:
        """For each frame, the newest answer at its deadline: its own if it came in time, else that of an earlier frame.

        Args: default: what is in force before the first answer.
        """
        order = [i for i in np.argsort(self.ended) if not self.dropped[i]]
        return [next((self.answers[i] for i in reversed(order) if self.ended[i] <= due), default)
                for due in self.arrived + self.deadline]


def play(frames: Sequence, model: Callable, *, period: float, deadline: float | None = None,
         clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
         cpu: Callable[[], float] = time.process_time) -> Log:
    """Play frames to a model on a clock, in this thread, and log what happens to each.

    Args:   frames: what the camera gives, at least two; model: a function of one frame.
            period: seconds between two frames; deadline: seconds that a frame may take, by default the period.
            clock, sleep, cpu: the time, waiting, and the CPU time used so far; other ones for tests.
    Raises: ValueError for fewer than two frames, or a period or deadline that is not above 0.
    """
    deadline = period if deadline is None else deadline
    if len(frames) < 2 or not period > 0 or not deadline > 0:
        raise ValueError(f"need at least two frames, and period and deadline > 0; got {len(frames)} frames, {period=}, {deadline=}")
    n = len(frames)
    began, ended, busy, answers = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n), [None] * n
    start, due = clock(), 0             # `due`: the first frame that has not been looked at
    while due < n:
        # 1. the newest frame that has arrived; those between it and the last one done are dropped
        newest = min(int((clock() - start) / period), n - 1)
        if newest < due:                # none is new: sleep until the next one comes
            sleep(max(0.0, due * period - (clock() - start)))
            continue
        # 2. the model works; meanwhile the camera goes on
        began[newest], used = clock() - start, cpu()
        answers[newest] = model(frames[newest])
        ended[newest], busy[newest] = clock() - start, cpu() - used
        due = newest + 1
    return Log(np.arange(n) * period, began, ended, busy, deadline, answers)


@contextlib.contextmanager
def one_core() -> Iterator[int | None]:
    """Keep this process on a single core; give its number, or None where the system has no such thing (not Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
