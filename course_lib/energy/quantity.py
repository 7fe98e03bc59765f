"""An amount of energy that cannot forget where it came from.

A bare number of joules says nothing: which machine part, idle power included or not, read from a
counter or computed from a table? So an amount carries all of that; two amounts can be added, subtracted
or divided only if they were found in the same way and stand for the same thing. Book: "Never mixed".
"""
import dataclasses
import math
from collections.abc import Callable

from ..intervals import Estimate

__all__ = ["DECLARED", "MEASURED", "MODELLED", "Energy", "EnergyMismatch", "Ratio", "format_joules"]

MEASURED, DECLARED, MODELLED = "measured", "declared", "modelled"


class EnergyMismatch(ValueError):
    """Two amounts of energy that do not belong together were added, subtracted or divided."""


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a number comes from; what two amounts must share before they meet.

    tier: MEASURED, DECLARED or MODELLED; method: how it was found, in words; boundary: what is inside.
    runs: how many repetitions its interval rests on (0 for a model); constants: name of the constants, or "".
    """
    tier: str
    method: str
    boundary: str
    runs: int
    constants: str

    def _check_origin(self) -> None:
        if self.tier not in (MEASURED, DECLARED, MODELLED):
            raise ValueError(f"tier must be {MEASURED!r}, {DECLARED!r} or {MODELLED!r}; got {self.tier!r}")
        if not self.method or not self.boundary:
            raise ValueError(f"an energy needs a method and a boundary, such as 'RAPL' and 'processor package'; "
                             f"got {self.method!r} and {self.boundary!r}")
        if type(self.runs) is not int or self.runs < (self.tier == MEASURED):
            raise ValueError(f"runs must be a whole number, at least 1 where something was measured; got {self.runs!r}")
        if (self.tier == MEASURED) == bool(self.constants):
            raise ValueError(f"a declared or modelled energy names its constants, a measured one has none; "
                             f"got {self.constants!r} for {self.tier!r}")


@dataclasses.dataclass(frozen=True)
class Energy(_Origin):
    """An amount of energy in joules, from `low` to `high`; all that it takes to know what it means.

    value: the best single number; None for a declared energy, which is an interval and never a point.
    per: what was done for it. seconds: the CPU seconds behind a declared energy.
    """
    value: float | None
    low: float
    high: float
    per: str = "inference"
    seconds: Estimate | None = None

    def __post_init__(self):
        self._check_origin()
        if (self.tier == DECLARED) != (self.value is None) or (self.tier == DECLARED) != (self.seconds is not None):
            raise ValueError("a declared energy has CPU seconds and no single value; the other tiers have a value")
        inside = [self.low, self.high] if self.value is None else [self.low, self.value, self.high]
        if not all(math.isfinite(x) for x in inside) or inside != sorted(inside):
            raise ValueError(f"need finite joules with low <= value <= high; got {self.low}, {self.value}, {self.high}")
        if self.value is None and self.low == self.high:
            raise ValueError(f"a declared energy is an interval, never a point; got {self.low} J twice")

    def __truediv__(self, other: "Energy") -> "Ratio":
        """How many times the other energy: a Ratio. See `_ratio_ends` for its interval."""
        if not isinstance(other, Energy):
            return NotImplemented
        self._must_match(other, "divide")
        method = self.method
        if self.tier == DECLARED:
            method = "ratio of CPU times, at equal power"
        return Ratio(self.tier, method, self.boundary, min(self.runs, other.runs), self.constants,
                     _ratio_ends(self, other))

    def __add__(self, other: "Energy") -> "Energy":
        """Both together: the ends of the intervals add up."""
        return self._combine(other, "add", lambda a, b: a + b, crossed=False)

    def __sub__(self, other: "Energy") -> "Energy":
        """What is left: low end minus high end for independent amounts, matching ends for modelled ones."""
        return self._combine(other, "subtract", lambda a, b: a - b, crossed=self.tier != MODELLED)

    def times(self, count: float, *, per: str) -> "Energy":
        """The energy of `count` such tasks, such as a million inferences; `per` names them.

        Raises: ValueError unless count is a finite number above 0.
        """
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 < count < math.inf:
            raise ValueError(f"count must be a finite number above 0, such as 1_000_000; got {count!r}")
        seconds = self.seconds and Estimate(*(count * x for x in (self.seconds.value, self.seconds.low, self.seconds.high)))
        return dataclasses.replace(self, value=None if self.value is None else count * self.value, low=count * self.low,
                                   high=count * self.high, per=per, seconds=seconds)

    def _combine(self, other, verb: str, apply: Callable, *, crossed: bool) -> "Energy":
        if not isinstance(other, Energy):
            return NotImplemented
        self._must_match(other, verb)
        low, high = (other.high, other.low) if crossed else (other.low, other.high)
        value = None if self.value is None else apply(self.value, other.value)
        ends = sorted([apply(self.low, low), apply(self.high, high)])
        seconds = None
        if self.seconds is not None:
            a, b = self.seconds, other.seconds
            near, far = (b.high, b.low) if crossed else (b.low, b.high)
            seconds = Estimate(apply(a.value, b.value), apply(a.low, near), apply(a.high, far))
        return dataclasses.replace(self, value=value, low=ends[0], high=ends[1], seconds=seconds,
                                   runs=min(self.runs, other.runs))

    def _must_match(self, other: "Energy", verb: str) -> None:
        for field in ("tier", "boundary", "constants", "per"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise EnergyMismatch(f"cannot {verb} energies of different {field}: {mine!r} and {theirs!r}; "
                                     "find both in the same way first")

    def __str__(self) -> str:
        origin = f"{self.tier}: {self.method}; {self.boundary}" + (f"; {self.constants}" if self.constants else "")
        if self.value is None or self.tier == MODELLED and self.low < self.high:
            amount = f"{format_joules(self.low)} to {format_joules(self.high)}"
        elif self.low == self.high:
            amount = format_joules(self.value)
        else:
            amount = f"{format_joules(self.value)} [{format_joules(self.low)}, {format_joules(self.high)}]"
        return f"{amount} per {self.per} ({origin})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Ratio(_Origin):
    """One energy over another of the same origin, with its interval."""
    estimate: Estimate

    def __post_init__(self):
        self._check_origin()
        if not 0 < self.estimate.low <= self.estimate.value <= self.estimate.high < math.inf:
            raise ValueError(f"a ratio of energies is a finite number above 0 inside its interval; got {self.estimate}")

    def equivalent(self, margin: float = 0.05) -> bool:
        """Whether the whole interval lies within the margin: from 1 / (1 + margin) to 1 + margin.

        The limits are each other's inverse, so that the answer does not depend on which is divided by which.
        Raises: ValueError unless 0 < margin < 1.
        """
        if not 0 < margin < 1:
            raise ValueError(f"margin must be a fraction between 0 and 1, e.g. 0.05 for 5 %; got {margin!r}")
        return 1 / (1 + margin) <= self.estimate.low and self.estimate.high <= 1 + margin

    def __str__(self) -> str:
        e = self.estimate
        origin = f"{self.tier}: {self.method}; {self.boundary}" + (f"; {self.constants}" if self.constants else "")
        return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}] ({origin})"

    __repr__ = __str__


def format_joules(joules: float) -> str:
    """Joules for people: 12.3 pJ, 1.23 µJ, 45 J, 1.2 kJ; zero and below as they are."""
    size = abs(joules)
    for unit, scale in (("kJ", 1e3), ("J", 1), ("mJ", 1e-3), ("µJ", 1e-6), ("nJ", 1e-9)):
        if size >= 0.9995 * scale:          # 999.9 mJ rounds to 1 J
            return f"{joules / scale:.3g} {unit}"
    return f"{joules / 1e-12:.3g} pJ" if size else "0 J"


def _ratio_ends(a: Energy, b: Energy) -> Estimate:
    """The ratio and the ends of its interval.

    Declared: power cancels, the CPU seconds are left. Modelled: an uncertain constant is the same in both, so
    ends match (exact with one uncertain constant). Measured: nothing is known of a pairing, so ends cross.
    """
    if a.tier == DECLARED:
        a, b = a.seconds, b.seconds
    if min(a.low, b.low) <= 0:
        raise ValueError("cannot divide energies whose intervals reach zero or below: measure longer")
    if getattr(a, "tier", None) == MODELLED:
        ratios = sorted([a.low / b.low, a.value / b.value, a.high / b.high])
        return Estimate(a.value / b.value, ratios[0], ratios[-1])
    return Estimate(a.value / b.value, a.low / b.high, a.high / b.low)
