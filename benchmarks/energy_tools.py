"""Several tools judge the same work side by side: whose ratio is steady, and what does a neighbour do to the joules?

    pip install -e '.[energy-tools]'
    python benchmarks/energy_tools.py [--runs 5] [--seconds 3]      # two minutes a run with windows of 3 s
    python benchmarks/energy_tools.py --stored                      # the same tables from the stored study

Each run is a fresh process of `studies/energy_repeatability.py`. "spread" is the coefficient of variation of the ratio over
the runs, small network to dense; "again" is that of the dense network against itself; "growth" is the estimate for the
dense network over the one without a neighbour, for the same number of inferences.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from course_lib import results

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "studies"))
import energy_repeatability as study  # noqa: E402

TOOLS = ("CPU time", "wall time", "codecarbon, machine", "codecarbon, process", "CPU time, same windows", "wall time, same windows")


def spread(values: list[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return float(np.std(values, ddof=1) / np.mean(values))


def comparison(found: results.Results) -> list[str]:
    """Lines for people, one for each neighbour and tool."""
    lines = [f"{'neighbour':18} {'tool':24} {'ratio':>6} {'spread':>7} {'to ours':>7} {'again':>7} {'growth':>7} {'RAM':>5}"]
    for place in (study.NONE, study.OTHER, study.EVERY):
        ours = spread(list(found.by_seed("ratio", tool="CPU time", neighbour=place).values()))
        for tool in TOOLS:
            where, unit = {"tool": tool, "neighbour": place}, "joules" if tool.startswith("codecarbon") else "seconds"
            ratios, again = (list(found.by_seed(value, **where).values()) for value in ("ratio", "control"))
            quiet = found.by_seed(unit, tool=tool, neighbour=study.NONE)
            growth = np.median([value / quiet[seed] for seed, value in found.by_seed(unit, **where).items()])
            ram = f"{np.median(list(found.by_seed('ram_share', **where).values())):5.0%}" if unit == "joules" else ""
            lines.append(f"{place:18} {tool:24} {np.median(ratios):6.3f} {spread(ratios):7.1%} {spread(ratios) / ours:6.1f}× "
                         f"{spread(again):7.1%} {growth:6.2f}× {ram}")
    return lines


def counters(found: results.Results) -> list[str]:
    """Lines for people: what zeus says of each window, beside our reader of the same files."""
    rows = [row for row in found.rows if row.get("tool") == "zeus"]
    nothing = [row for row in rows if row["window"] == "without a counter"]
    silent = sum(row["says_none"] and row["total"] == 0 for row in nothing)
    lines = [f"zeus without a counter: cpu_energy is None and total_energy is 0, without a word, in {silent} of {len(nothing)} runs",
             f"{'joules in a window':26} {'truth':>6} {'ours':>6} {'zeus, package':>14} {'zeus, psys (counted as a CPU)':>30}"]
    for window in dict.fromkeys(row["window"] for row in rows if "truth" in row):
        truth, ours, package, psys = (np.median([row[key] for row in rows if row["window"] == window])
                                      for key in ("truth", "ours", "package", "psys"))
        lines.append(f"{window:26} {truth:6.0f} {ours:6.0f} {package:14,.0f} {psys:30.0f}")
    return lines


def measure(runs: int, seconds: float) -> results.Results:
    """Rows of so many process runs, made now."""
    rows = [{"seed": seed, **row} for seed in tqdm(range(runs), desc="process runs", disable=None)
            for configuration in (study.RATIOS, study.COUNTERS)
            for row in study.unit(configuration, seed, **{"window_seconds": seconds} if configuration == study.RATIOS else {})]
    return results.Results("energy_repeatability", rows, {})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Spread of the ratio of two energies by several tools, with and without neighbours.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one window of codecarbon")
    parser.add_argument("--stored", action="store_true", help="show the stored study instead of running")
    options = parser.parse_args(arguments)
    if options.runs < 2:
        raise SystemExit("a spread needs at least two runs")
    found = results.load("energy_repeatability") if options.stored else measure(options.runs, options.seconds)
    print("\n".join(comparison(found) + [""] + counters(found)))


if __name__ == "__main__":
    main()
