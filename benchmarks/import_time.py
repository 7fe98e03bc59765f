"""How much longer `import torch` takes when course_lib is imported with it.

    python benchmarks/import_time.py [PAIRS]

Each pair times two fresh processes one after the other, in random order: torch alone, and torch with
the course's package. Printed is the median of the pairs' ratios, with the range of the middle half.
Both processes run on the same machine at the same time of day, so only the ratio says anything.
"""
import random
import statistics
import subprocess
import sys
import time

PAIRS = 15
TORCH = "import torch"
CASES = {
    "import course_lib": "import torch; import course_lib",
    "its modules": "import torch; from course_lib import data, models, training, pruning, cost, timing",
}


def seconds(code: str) -> float:
    """Wall time of a fresh Python that runs the code."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def ratios(code: str, pairs: int) -> list[float]:
    """Time with the code over time with torch alone, one ratio a pair."""
    found = []
    for _ in range(pairs):
        order = [code, TORCH]
        random.shuffle(order)                   # so that neither always comes second
        times = {c: seconds(c) for c in order}
        found.append(times[code] / times[TORCH])
    return found


if __name__ == "__main__":
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    for code in (TORCH, *CASES.values()):       # once unmeasured: compiles, and fills the disk cache
        seconds(code)
    for name, code in CASES.items():
        low, middle, high = statistics.quantiles(ratios(code, pairs), n=4)
        print(f"{name:17}  {middle:.3f} of `import torch` alone (middle half {low:.3f} to {high:.3f}, {pairs} pairs)")
