"""RAPL: the energy counters of Intel and AMD processors, as Linux shows them in /sys/class/powercap.

Counted are the packages (whole processors) and their DRAM. Not counted, since that would count twice: `core` and
`uncore` (parts of a package), `psys` (the whole platform), the `mmio` copies, and dies that mirror one counter.
A counter starts over at its range: one wrap between two readings is put right, more cannot be seen and are refused.
Book: "What a counter is".
"""
import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

from .measured import CounterError

__all__ = ["POWERCAP", "Rapl", "Zone", "zones"]

POWERCAP = Path("/sys/class/powercap")
MAX_WATTS = 1000.0          # more than any package draws
_SLACK_SECONDS = 0.05       # readings are about a millisecond old, and not taken all at once

_PERMISSION = ("the kernel shows its energy counter to root only, since it can leak secrets (CVE-2020-8694). To grant "
               "reading until the next start: sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj "
               "/sys/class/powercap/intel-rapl*/*/energy_uj")


@dataclasses.dataclass(frozen=True)
class Zone:
    """One counter. name: such as "package-0" or "package-0 dram"; range_uj: microjoules until it starts over."""
    name: str
    folder: Path
    range_uj: int

    def read(self) -> int:
        """The counter in microjoules. Raises CounterError: no permission, vanished, or not a number."""
        return _number(self.folder / "energy_uj")


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The zones to add up: each package once, each package's DRAM once.

    Raises: CounterError if there is none, or they may not be read.
    """
    found, readings = [], []
    for name, folder in _candidates(Path(root)):
        zone = Zone(name, folder, _number(folder / "max_energy_range_uj"))
        if zone.range_uj <= 0:
            raise CounterError(f"{zone.name} says that its counter ends at {zone.range_uj} µJ: it cannot be used")
        reading = zone.read(), time.monotonic()
        if not any(_mirrors(zone, reading, other, seen) for other, seen in zip(found, readings)):
            found.append(zone)
            readings.append(reading)
    if not found:
        raise CounterError(f"there is no RAPL package counter in {root}: a virtual machine, a container, another "
                           "operating system, or a processor without one")
    return found


def _candidates(root: Path) -> list[tuple[str, Path]]:
    """Names and folders of packages and their DRAM, in order; the first of two with one name stays."""
    found = {}
    for folder in sorted(root.glob("intel-rapl:*"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]):
        name, parent = _text(folder / "name"), root / folder.name.rsplit(":", 1)[0]
        if folder.name.count(":") == 1 and name.startswith("package"):
            found.setdefault(name, folder)
        elif folder.name.count(":") == 2 and name == "dram" and _text(parent / "name").startswith("package"):
            found.setdefault(f"{_text(parent / 'name')} dram", folder)
    return list(found.items())


def _mirrors(zone: Zone, reading: tuple[int, float], other: Zone, seen: tuple[int, float]) -> bool:
    """Whether two dies of one package show one and the same counter: nearly equal, and not both unused."""
    socket, kind = re.fullmatch(r"(package-\d+)(?:-die-\d+)?( dram)?", zone.name) or ("", ""), zone.name.endswith("dram")
    same_package = bool(socket[0]) and re.match(rf"{socket[1]}(-die-|$| )", other.name) and kind == other.name.endswith("dram")
    (value, now), (before, then) = reading, seen
    step = (value - before) % zone.range_uj
    return bool(same_package) and value > 0 and zone.range_uj == other.range_uj \
        and step <= 1e6 * MAX_WATTS * (now - then + _SLACK_SECONDS)


class Rapl:
    """Joules of all packages and their DRAM since `start`; read it at least every `longest_gap` seconds.

    Args: root: where the counters are; max_watts: more than any zone can draw, on which two checks rest: a zone that
          would have drawn more was reset, and one that could have wrapped twice in the time is not believed.
    """

    def __init__(self, root: Path = POWERCAP, *, max_watts: float = MAX_WATTS, clock: Callable[[], float] = time.monotonic):
        if not max_watts > 0:
            raise ValueError(f"max_watts must be above 0, such as 1000; got {max_watts!r}")
        self.zones, self.max_watts, self._clock = zones(root), max_watts, clock
        self.longest_gap = min(zone.range_uj for zone in self.zones) * 1e-6 / max_watts
        names = [zone.name for zone in self.zones]
        memory = "and DRAM" if any(name.endswith("dram") for name in names) else "without DRAM, which has no counter here"
        packages = sum(not name.endswith("dram") for name in names)
        self.method = "RAPL counters"
        self.boundary = f"{packages} processor package{'s' * (packages > 1)} {memory}"
        self.start()

    def start(self) -> None:
        """Forget the past and count from zero."""
        self._total = dict.fromkeys((zone.name for zone in self.zones), 0.0)
        self._last = {zone.name: (zone.read(), self._clock()) for zone in self.zones}

    def joules(self) -> float:
        """Joules since `start`.

        Raises: CounterError if a zone vanished, may have wrapped more than once, or jumped.
        """
        return sum(self.by_zone().values())

    def by_zone(self) -> dict[str, float]:
        """Joules since `start` of each zone."""
        for zone in self.zones:
            (before, then), reading, now = self._last[zone.name], zone.read(), self._clock()
            self._total[zone.name] += self._step(zone, before, reading, now - then)
            self._last[zone.name] = reading, now
        return dict(self._total)

    def _step(self, zone: Zone, before: int, reading: int, seconds: float) -> float:
        """Joules between two readings of one zone: the difference modulo its range."""
        if not 0 <= reading <= zone.range_uj:
            raise CounterError(f"{zone.name} says {reading} µJ, outside its own range of {zone.range_uj} µJ")
        if seconds > self.longest_gap:
            raise CounterError(f"{zone.name} was not read for {seconds:.3g} s and may have started over more than once since: "
                               f"read it at least every {self.longest_gap:.3g} s (at {self.max_watts:g} W), or use shorter windows")
        joules = 1e-6 * ((reading - before) % zone.range_uj)
        if joules > self.max_watts * (seconds + _SLACK_SECONDS):
            what = "went backwards: it was reset" if reading < before else "jumped"
            raise CounterError(f"{zone.name} {what}, from {before} to {reading} µJ in {seconds:.3g} s; repeat the measurement")
        return joules


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise CounterError(f"{path} may not be read: {_PERMISSION}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CounterError(f"{path} cannot be read ({error}): the counter has vanished or is damaged") from error


def _number(path: Path) -> int:
    text = _text(path)
    if not re.fullmatch(r"-?\d+", text):
        raise CounterError(f"{path} holds {text!r} and not a whole number of microjoules")
    return int(text)
