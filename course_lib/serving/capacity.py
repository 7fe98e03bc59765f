"""Arithmetic for a service: who pays for what, and how many machines a rate needs. All of it is computed, nothing measured.

What goes in was measured on the ruler or declared by somebody; what comes out is no surer than that, so intervals go in and
intervals come out. A request costs the same overhead whatever the model, so a faster model shows only where the model
outweighs it. Book: chapter 6, "When does compression show?".
"""
import dataclasses
import math

from ..intervals import Estimate

__all__ = ["VCPU_PRICES", "BatchPoint", "Cost", "Price", "Replicas", "batch_trade", "break_even", "cost_per_million",
           "energy_per_million", "gain", "images_to_show", "model_share", "replicas", "waiting"]

MILLION = 1_000_000


def _number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


@dataclasses.dataclass(frozen=True)
class Price:
    """What an hour of one processor core costs: an interval that somebody declares, with its currency and source.

    Raises: ValueError for prices that are not finite and above 0, upside down, or without currency or source.
    """
    low: float
    high: float
    currency: str
    source: str

    def __post_init__(self):
        if not all(_number(x) for x in (self.low, self.high)) or not 0 < self.low <= self.high:
            raise ValueError(f"a price per core-hour is above 0, low to high, e.g. 0.03 to 0.05; got {self.low!r} to {self.high!r}")
        if not self.currency.strip() or not self.source.strip():
            raise ValueError("name the currency and the source of the price: a list with its date, or whose guess it is")


# Read in stored copies of pages that quote the lists; on demand, Linux, without discounts. A vCPU is half a core on most chips.
VCPU_PRICES = {
    "a large provider": Price(0.0408, 0.0432, "USD", "AWS us-east-1: m7g.large, June 2026 (FactualMinds 2026) to m6a.large"),
    "a small provider": Price(0.0027, 0.0040, "EUR", "Hetzner: cpx22 to cpx32 (CNAP 2026)")}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Money, from `low` to `high`, for `per`."""
    low: float
    high: float
    currency: str
    per: str
    source: str

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} {self.currency} per {self.per} (computed; price declared: {self.source})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Replicas:
    """How many copies of a server, from `low` to `high`, depending on where in its interval the throughput of one lies."""
    low: int
    high: int
    rate: float
    utilisation: float

    def __str__(self) -> str:
        count = f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"
        return f"{count} replicas for {self.rate:,g} requests/s, each {100 * self.utilisation:g} % busy (computed, not measured)"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class BatchPoint:
    """What a batch size does: seconds of a run, requests per second at most, and seconds until the first of a batch is answered."""
    batch: int
    seconds: float
    throughput: float
    first_waits: float


def _interval(x, what: str, *, zero: bool = False) -> Estimate:
    """A number, or an Estimate, as an Estimate that is above 0 (or, if allowed, 0)."""
    e = x if isinstance(x, Estimate) else Estimate(x, x, x)
    ends = (e.low, e.value, e.high)
    if not all(_number(float(end)) for end in ends) or not e.low <= e.value <= e.high or e.low < 0 or (e.low == 0 and not zero):
        raise ValueError(f"{what} must be {'0 or more' if zero else 'above 0'} and finite, a number or an Estimate; got {x!r}")
    return e


def _utilisation(u: float) -> float:
    if not _number(u) or not 0 < u <= 1:
        raise ValueError(f"utilisation must be a fraction above 0 and at most 1, e.g. 0.6; got {u!r}")
    return u


def cost_per_million(core_seconds, price: Price, *, utilisation: float = 1.0) -> Cost:
    """Money for a million requests that take `core_seconds` each, on cores that are paid for whether they work or wait.

    Args:   core_seconds: a number or an Estimate; price: per core-hour. utilisation: the share of the paid time in use.
    """
    if not isinstance(price, Price):
        raise TypeError(f"declare the price with its source, e.g. Price(0.03, 0.05, 'USD', 'my list'); got {price!r}")
    seconds, hours = _interval(core_seconds, "core seconds"), MILLION / 3600 / _utilisation(utilisation)
    return Cost(seconds.low * hours * price.low, seconds.high * hours * price.high, price.currency, "million requests",
                price.source)


def energy_per_million(core_seconds: Estimate, power=None, *, runs: int):
    """Declared energy for a million requests: core seconds times the watts of one busy core. Idle cores are not in it.

    Args:   core_seconds: CPU seconds of a request, with interval, resting on `runs` repetitions.
            power: an `energy.Power`; None for the widest of `energy.SERVER_WATTS`.
    Returns: an `energy.Energy` of the declared tier, per "million requests".
    """
    from .. import energy               # opens PyTorch, which no server and no client of a load test should
    power = energy.SERVER_WATTS["any of these chips"] if power is None else power
    return energy.declared(core_seconds, power, runs=runs, per="request").times(MILLION, per="million requests")


def replicas(rate: float, throughput, *, utilisation: float = 0.6) -> Replicas:
    """How many copies serve `rate` requests per second if each may be busy for a share `utilisation` of its time.

    Args: throughput: requests per second that one copy can at most, measured; a number or an Estimate.
    The copies are taken to be alike and not to disturb each other, with work shared out evenly. Hence "computed".
    """
    rate, each = _interval(rate, "the rate").value, _interval(throughput, "the throughput")
    low, high = (math.ceil(rate / (_utilisation(utilisation) * end) * (1 - 1e-12)) for end in (each.high, each.low))
    return Replicas(low, high, rate, utilisation)


def model_share(model_seconds, request_seconds) -> Estimate:
    """The share of a request that is the model. Both measured on their own, so the ends cross; at most 1."""
    model, request = _interval(model_seconds, "the model's seconds", zero=True), _interval(request_seconds, "the request's seconds")
    if model.value > request.value:
        raise ValueError(f"the model cannot take longer than its request; got {model} of {request}")
    return Estimate(model.value / request.value, model.low / request.high, min(1.0, model.high / request.low))


def gain(overhead: float, dense: float, compressed: float) -> float:
    """How many times cheaper a request becomes: (overhead + dense) / (overhead + compressed), in seconds.

    Source: Amdahl 1967: what is not made faster limits the gain.
    """
    overhead, dense, compressed = (_interval(x, "seconds", zero=True).value for x in (overhead, dense, compressed))
    if overhead + compressed == 0:
        raise ValueError("a request cannot take no time at all")
    return (overhead + dense) / (overhead + compressed)


def break_even(overhead: float, speedup: float, factor: float) -> float:
    """How many seconds the dense model must take for a request to gain `factor` from a model `speedup` times as fast.

    m = overhead · (factor − 1) / (1 − factor / speedup). Infinite if factor >= speedup: no request gains more than its model.
    """
    overhead = _interval(overhead, "the overhead", zero=True).value
    speedup, factor = _interval(speedup, "the speed-up").value, _interval(factor, "the factor").value
    if factor < 1:
        raise ValueError(f"ask for a gain of 1 or more; got {factor!r}")
    if factor == 1:
        return 0.0
    return math.inf if factor >= speedup else overhead * (factor - 1) / (1 - factor / speedup)


def images_to_show(overhead: float, dense: float, compressed: float, factor: float) -> float:
    """How many images a request must hold to gain `factor`, each taking `dense` or `compressed` seconds; infinite if none can."""
    dense, compressed = _interval(dense, "dense seconds").value, _interval(compressed, "compressed seconds").value
    needed = break_even(overhead, dense / compressed, factor)
    return needed if math.isinf(needed) else max(1, math.ceil(needed / dense * (1 - 1e-12)))


def batch_trade(fixed: float, each: float, batches, *, rate: float) -> list[BatchPoint]:
    """What the batch size trades at a steady rate: a run of b requests takes fixed + b · each seconds.

    The first of a batch waits for b − 1 others, (b − 1) / rate seconds, and then for the run. Throughput is b over the run.
    """
    fixed, each = _interval(fixed, "fixed seconds", zero=True).value, _interval(each, "seconds each").value
    rate, batches = _interval(rate, "the rate").value, list(batches)
    if not batches or not all(isinstance(b, int) and not isinstance(b, bool) and b >= 1 for b in batches):
        raise ValueError(f"need batch sizes that are whole numbers of 1 or more; got {batches!r}")
    runs = {b: fixed + b * each for b in batches}
    return [BatchPoint(b, run, b / run, (b - 1) / rate + run) for b, run in runs.items()]


def waiting(utilisation: float, service: float, *, variation: float = 0.0) -> float:
    """Mean seconds that a request waits for its turn, if requests come independently of each other to one server.

    Args: service: mean seconds of work; variation: its standard deviation over its mean. Infinite from a utilisation of 1.
    Source: Pollaczek and Khinchine, as in Harchol-Balter 2013: u / (1 − u) · service · (1 + variation²) / 2.
    """
    u = _interval(utilisation, "utilisation", zero=True).value
    service, variation = _interval(service, "service").value, _interval(variation, "variation", zero=True).value
    return math.inf if u >= 1 else u / (1 - u) * service * (1 + variation**2) / 2
