"""Which of two models needs less energy? Compared on the machinery of `timing`, side by side in one run.

Windows of all candidates are interleaved in random order; a ratio is formed inside each block; the reference runs twice
in every block (the A/A control). Without a counter the ratio is that of CPU times, and says so: it is also the steadier
one on a busy machine. Within one process an interval is too narrow for what changes from process to process, so a
figure to be quoted pools several. Book: "The declared joule".
"""
import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from .. import intervals, timing
from .declared_power import declared, declared_ratio
from .measured import Counter, Idle, boundary_name, check_window, from_windows, nets_of, window_name
from .quantity import MEASURED, Energy, EnergyMismatch, Ratio
from .tables import SERVER_WATTS, Power

__all__ = ["Paired", "compare", "pool"]

_JOULES = "joules"


@dataclasses.dataclass(frozen=True)
class Paired:
    """Candidates compared side by side. timings: the raw samples; counter: None where there is none."""
    timings: timing.Timings
    counter: Counter | None
    window_seconds: float
    inferences: int

    def energy(self, name: str, *, idle: Idle | None = None, power: Power = SERVER_WATTS["any of these chips"]) -> Energy:
        """Joules per inference: measured (net of `idle`, if given) where there is a counter, else declared."""
        t = self.timings
        if self.counter is None:
            return declared(intervals.bootstrap_median(t.cpu[name] / self.inferences, seed=t.seed), power, runs=len(t.cpu[name]))
        return from_windows(t.counted[_JOULES][name] / self.inferences, t.wall[name] / self.inferences, self.counter,
                            window_seconds=self.window_seconds, idle=idle)

    def ratio(self, name: str, *, idle: Idle | None = None) -> Ratio:
        """Energy of `name` over that of the reference: measured where there is a counter, else declared.

        Raises: ValueError if the idle power, its interval considered, may be all that was measured: no net energy is left.
        """
        if self.counter is None:
            return self.cpu_ratio(name)
        t = self.timings
        pairs = list(zip(*(nets_of(t.counted[_JOULES][n], t.wall[n], self.counter, idle) for n in (t.reference, name))))
        if min(net.min() for pair in pairs for net in pair) <= 0:
            raise ValueError("the idle power may be as large as the power of the run: no net energy is left to compare")
        # The idle power is the same for both, so its ends are taken together.
        found = [intervals.bootstrap_median(np.log(other / first), seed=t.seed) for first, other in pairs]
        ends = found[0].value, min(e.low for e in found), max(e.high for e in found)
        estimate = intervals.Estimate(*(float(np.exp(x)) for x in ends))
        runs = len(t.wall[name])
        method = f"{self.counter.method}, {runs} interleaved blocks, {window_name(self.window_seconds)}"
        return Ratio(MEASURED, method, boundary_name(self.counter, idle), runs, "", estimate)

    def cpu_ratio(self, name: str) -> Ratio:
        """The ratio of CPU times, as a declared ratio."""
        return declared_ratio(self.timings.ratio(name, clock="cpu"), runs=len(self.timings.cpu[name]))

    def control(self, *, idle: Idle | None = None) -> Ratio:
        """The reference against itself: what the machine can resolve at this moment."""
        return self.ratio(timing.AGAIN, idle=idle)


def compare(candidates: dict[str, Callable[[], object]], *, counter: Counter | None = None, window_seconds: float = 0.5,
            blocks: int = 10, inferences: int = 1, seed: int = 0) -> Paired:
    """Compare functions by the energy of a call, in interleaved blocks; the first is the reference.

    Args:   window_seconds: how long each function is repeated between two readings; inferences: made by one call.
    Raises: ValueError for windows that are not longer than zero, fewer than two blocks, or a function whose result
            changed during the comparison (a model that is still in training mode, or that learns).
    """
    check_window(window_seconds, blocks)
    if type(inferences) is not int or inferences < 1:
        raise ValueError(f"inferences must be a whole number >= 1, such as the batch size; got {inferences!r}")
    before = {name: _snapshot(function()) for name, function in candidates.items()}
    timings = timing.compare(candidates, blocks=blocks, sample_seconds=window_seconds, seed=seed, max_blocks=blocks,
                             counters={} if counter is None else {_JOULES: _from_first_reading(counter)})
    for name, function in candidates.items():
        if not _same(_snapshot(function()), before[name]):
            raise ValueError(f"{name!r} gave another result after the runs than before: a model that changes between runs "
                             "cannot be compared (is it in training mode?)")
    return Paired(timings, counter, window_seconds, inferences)


def _from_first_reading(counter: Counter) -> Callable[[], float]:
    """A counter that starts when it is first read: warming up may take longer than it can go unread."""
    started = []

    def joules() -> float:
        if not started:
            started.append(counter.start())
        return counter.joules()
    return joules


def pool(ratios: list[Ratio]) -> Ratio:
    """One ratio from several process runs: the geometric mean with Student's t interval over the runs.

    Raises: ValueError for fewer than three runs; EnergyMismatch if they were not found in the same way.
    """
    if len(ratios) < 3:
        raise ValueError(f"need the ratios of at least three process runs; got {len(ratios)}")
    first = ratios[0]
    for other in ratios[1:]:
        for field in ("tier", "boundary", "constants"):
            if getattr(first, field) != getattr(other, field):
                raise EnergyMismatch(f"cannot pool ratios of different {field}: {getattr(first, field)!r} and "
                                     f"{getattr(other, field)!r}")
    logs = intervals.mean_over_runs([np.log(ratio.estimate.value) for ratio in ratios])
    estimate = intervals.Estimate(*(float(np.exp(x)) for x in (logs.value, logs.low, logs.high)))
    return dataclasses.replace(first, method=f"{first.method}, {len(ratios)} process runs", runs=len(ratios), estimate=estimate)


def _snapshot(result):
    """A copy of a result, as tensors in double precision; None for what is not numbers."""
    if isinstance(result, (list, tuple)):
        return [_snapshot(part) for part in result]
    if isinstance(result, (torch.Tensor, np.ndarray, int, float)):
        return torch.as_tensor(result).detach().to("cpu", torch.double, copy=True)
    return None


def _same(a, b) -> bool:
    """Whether two snapshots agree up to rounding."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b is None
    scale = float(b.nan_to_num(posinf=0, neginf=0).abs().max()) if b.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
