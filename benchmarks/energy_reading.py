"""What does it cost to read an energy counter? Two readings beside the 10 s window that they enclose.

    python benchmarks/energy_reading.py [--readings 2000]

On a machine without counters the reader works on files of the same layout, two packages with DRAM, and says so: its own
work is the same there, but the kernel answers from memory, and asks no processor. The aim is below 0.1 % of a window.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from course_lib import energy

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))
from fake_counters import powercap  # noqa: E402

SOCKETS = {"intel-rapl:0": ("package-0", 5_000_000), "intel-rapl:0:0": ("dram", 900_000),
           "intel-rapl:1": ("package-1", 7_000_000_000), "intel-rapl:1:0": ("dram", 800_000)}


def seconds_of(read, readings: int) -> np.ndarray:
    """Wall seconds of each of so many readings, shape (readings,)."""
    found = []
    for _ in range(readings):
        begin = time.perf_counter()
        read()
        found.append(time.perf_counter() - begin)
    return np.array(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost of reading an energy counter, as a share of a 10 s window.")
    parser.add_argument("--readings", type=int, default=2000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counter, what = energy.best_available().counter, "this machine's counter"
        if counter is None:
            powercap(Path(folder, "powercap"), SOCKETS)
            counter, what = energy.Rapl(Path(folder, "powercap")), "files that stand in for counters, since this machine has none"
        counter.start()
        seconds = seconds_of(counter.joules, options.readings)
    print(f"{counter.method}, {counter.boundary}; {what}")
    for name, one in (("median", np.median(seconds)), ("slowest of a hundred", np.quantile(seconds, 0.99))):
        share = 2 * one / energy.HEADLINE_SECONDS
        print(f"  {name:20} {1e6 * one:8.1f} µs a reading, two are {share:.5%} of {energy.HEADLINE_SECONDS} s: "
              f"{'below' if share < 0.001 else 'NOT below'} 0.1 %")


if __name__ == "__main__":
    main()
