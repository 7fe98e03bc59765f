"""Stand-ins for machines that have energy counters: trees like /sys/class/powercap, NVML, clocks, counters."""
from pathlib import Path

RANGE = 262_143_328_850         # microjoules, as many Intel processors say


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self, now: float = 0.0):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def zone(root: Path, folder: str, name: str, microjoules: int, *, range_uj: int = RANGE) -> Path:
    """Make one zone and return the file of its counter."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def powercap(root: Path, layout: dict[str, tuple[str, int]], **kwargs) -> dict[str, Path]:
    """A whole tree from {folder: (name, microjoules)}; returns the counters' files by folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "intel-rapl").mkdir()           # the control type, which is no zone
    return {folder: zone(root, folder, *content, **kwargs) for folder, content in layout.items()}


class SteadyCounter:
    """A counter on a clock: so many watts all the time."""
    method, boundary = "a fake counter", "a fake package"

    def __init__(self, clock, watts=10.0):
        self.clock, self.watts, self.starts, self.begin = clock, watts, 0, None

    def start(self):
        self.starts, self.begin = self.starts + 1, self.clock()

    def joules(self):
        assert self.begin is not None, "read before it was started"
        return self.watts * (self.clock() - self.begin)


class FakeNvml:
    """The functions of pynvml that are used, for cards whose counters the test sets (millijoules)."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules=(1000,), *, name="Fake V100", start_error=None):
        self.millijoules, self.name, self.start_error, self.reads = list(millijoules), name, start_error, 0

    def nvmlInit(self):
        if self.start_error:
            raise self.NVMLError(self.start_error)

    def nvmlDeviceGetCount(self):
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return self.name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.reads += 1
        value = self.millijoules[handle]
        if value is None:
            raise self.NVMLError("Not Supported")
        return value() if callable(value) else value
