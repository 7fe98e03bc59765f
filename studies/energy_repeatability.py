"""How steady is a ratio of energies from one process run to the next? CPU time, wall time, codecarbon; and zeus.

    pip install -e '.[energy-tools]'
    python studies/energy_repeatability.py

One unit is one fresh process. It judges the same work, a network and the network with half its units gone, by the clocks
and by codecarbon: in turn with no neighbour, a busy one on the other core, and one on every core. The counters are files
that this script writes: zeus and `energy.Rapl` read the same ones. Units run one after the other, and want a quiet machine.
"""
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fresh import answered, fresh_process
from runner import Study, main

from course_lib import deploy, energy, models, timing

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))
from fake_counters import RANGE, powercap  # noqa: E402  (the tests' stand-ins for /sys/class/powercap)

SCRIPT = Path(__file__).resolve()
RATIOS, COUNTERS = "ratios", "counters"
DENSE, SMALL, AGAIN = "dense", "half the units gone", timing.AGAIN
NONE, OTHER, EVERY = "none", "on the other core", "on every core"
MODES = "machine", "process"        # what codecarbon attributes to the work: all that runs, or this process's share
BATCH = 64
SETTINGS = {"groups": 2, "blocks": 6, "block_seconds": 0.25, "window_seconds": 3.0}
SPIN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"


def unit(configuration: str, seed: int, **settings: float) -> list[dict]:
    """One process run: ratios, small to dense, by each tool and neighbour; or what zeus makes of counters."""
    needs("codecarbon", "zeus")
    if configuration == COUNTERS:
        return fresh_process(SCRIPT, "zeus_on_files")
    with neighbours() as pids:
        return fresh_process(SCRIPT, "process_run", seed=seed, pids=pids, **SETTINGS | settings)


def needs(*tools: str) -> None:
    """Raise ModuleNotFoundError for the first tool that is not installed."""
    for tool in tools:
        if importlib.util.find_spec(tool) is None:
            raise ModuleNotFoundError(f"{tool} is not installed; it is in an optional extra: pip install -e '.[energy-tools]'")


# --- neighbours ---

@contextlib.contextmanager
def neighbours():
    """Processes that only burn time, one pinned to each core: pairs of core and process, stopped for now.

    They are no children of the process that measures, since codecarbon would count those as its own.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    if len(cores) < 2:
        raise RuntimeError("this study needs two cores: one for the work, and another one for the neighbour")
    processes = [(core, subprocess.Popen([sys.executable, "-c", SPIN])) for core in cores]
    try:
        for core, process in processes:
            pin(process.pid, core)
            process.send_signal(signal.SIGSTOP)
        yield [(core, process.pid) for core, process in processes]
    finally:
        for _, process in processes:
            process.kill()
            process.wait()


def pin(process: int, core: int) -> None:
    """Keep a process (0: this one) on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, {core})


def let_run(pids: list, cores: list[int]) -> None:
    """Wake the neighbours on these cores, and stop the others."""
    for core, process in pids:
        os.kill(process, signal.SIGCONT if core in cores else signal.SIGSTOP)
    time.sleep(0.2)


# --- one process run ---

def process_run(seed: int, pids: list, groups: int, blocks: int, block_seconds: float, window_seconds: float) -> list[dict]:
    """Groups of blocks with and without neighbours, in random order; each group is judged by every tool."""
    load, cores = os.getloadavg()[0], [core for core, _ in pids]
    pin(0, cores[0])
    torch.manual_seed(seed)
    networks = {DENSE: models.lenet_300_100(), SMALL: models.mlp(hidden=(150, 50))}
    functions, rng = runners(networks), np.random.default_rng(seed)
    once = timing.compare(functions, blocks=3, max_blocks=3, sample_seconds=0.05)
    calls = {name: max(1, round(window_seconds / once.seconds(name))) for name in networks}
    calls[AGAIN], functions_and_again = calls[DENSE], {**functions, AGAIN: functions[DENSE]}
    window(functions[DENSE], 1)                 # codecarbon's first look at the machine takes seconds

    places = {NONE: [], OTHER: cores[1:2], EVERY: cores}
    ours, windows = {place: [] for place in places}, {place: [] for place in places}
    for _ in range(groups):
        for place in map(str, rng.permutation(list(places))):
            let_run(pids, places[place])
            ours[place].append(energy.compare(functions, blocks=blocks, window_seconds=block_seconds, inferences=BATCH,
                                              seed=int(rng.integers(2**31))))
            windows[place].append({name: window(functions_and_again[name], calls[name])
                                   for name in map(str, rng.permutation(list(calls)))})
    let_run(pids, [])
    rows = [{"neighbour": place, **row} for place in places
            for row in rows_of(joined(ours[place])) + rows_of_windows(windows[place], calls)]
    return [{"tool": "load average before", "load": load}, *modelled_rows(networks), *rows]


def runners(networks: dict) -> dict:
    """Each network in ONNX Runtime, one thread, as a function without arguments that infers one batch."""
    images = torch.rand(BATCH, 1, 28, 28)
    opened = {name: deploy.load_onnx(deploy.onnx_bytes(model, images)) for name, model in networks.items()}
    return {name: lambda run=run: run(images.numpy()) for name, run in opened.items()}


def window(function, calls: int) -> dict[str, float]:
    """Joules of so many calls as codecarbon estimates them in both modes at once, and the seconds of the clocks."""
    from codecarbon import OfflineEmissionsTracker
    trackers = {mode: OfflineEmissionsTracker(country_iso_code="FRA", tracking_mode=mode, output_methods=[], log_level="critical",
                                              allow_multiple_runs=True) for mode in MODES}
    for tracker in trackers.values():
        tracker.start()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        function()
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    for mode, tracker in trackers.items():
        tracker.stop()
        data = tracker.final_emissions_data
        found |= {mode: 3.6e6 * data.energy_consumed, f"{mode} RAM": 3.6e6 * data.ram_energy}      # from kWh
    return found


def joined(parts: list[energy.Paired]) -> energy.Paired:
    """The blocks of several groups as one comparison."""
    def together(clock):
        return {name: np.concatenate([part.timings.per_call(clock)[name] for part in parts]) for name in parts[0].timings.wall}
    first = parts[0]
    return energy.Paired(timing.Timings(together("wall"), together("cpu"), first.timings.calls, first.timings.seed),
                         None, first.window_seconds, first.inferences)


def rows_of(paired: energy.Paired) -> list[dict]:
    """What the course says: the ratios by both clocks, and the declared joules of the dense network."""
    t, declared = paired.timings, paired.energy(DENSE)
    rows = [{"tool": f"{what} time", "ratio": t.ratio(SMALL, clock=clock).value, "control": t.control(clock=clock).value,
             "seconds": t.seconds(DENSE, clock=clock) / BATCH} for what, clock in (("CPU", "cpu"), ("wall", "wall"))]
    return [rows[0] | {"joules_low": declared.low, "joules_high": declared.high}, rows[1]]


def rows_of_windows(groups: list[dict], calls: dict[str, int]) -> list[dict]:
    """What codecarbon says, and the clocks over the very same windows; joules and seconds per inference."""
    def per_inference(name, what):
        return sum(group[name][what] for group in groups) / (len(groups) * calls[name] * BATCH)
    rows = []
    for what, tool, unit_of in [*((mode, f"codecarbon, {mode}", "joules") for mode in MODES),
                                ("cpu", "CPU time, same windows", "seconds"),
                                ("wall", "wall time, same windows", "seconds")]:
        dense = per_inference(DENSE, what)
        rows.append({"tool": tool, "ratio": per_inference(SMALL, what) / dense,
                     "control": per_inference(AGAIN, what) / dense, unit_of: dense})
        if what in MODES:
            rows[-1]["ram_share"] = per_inference(DENSE, f"{what} RAM") / dense
    return rows


def modelled_rows(networks: dict) -> list[dict]:
    """The ratio by the modelled tier, which no neighbour can change."""
    def joules(name, weights):
        return energy.modelled(networks[name], torch.rand(1, 1, 28, 28), batch=BATCH, weights=weights)
    return [{"tool": f"modelled, {weights}", "ratio": (joules(SMALL, weights) / joules(DENSE, weights)).estimate.value}
            for weights in (energy.ON_CHIP, energy.DRAM)]


# --- counters ---

def zeus_on_files(settle: float = 10.0) -> list[dict]:
    """Windows of zeus without a counter, and on files in which one package's counter starts over; in joules.

    Each window adds 20 J to the package and 30 J to psys, the whole platform, of which the package is a part.
    """
    from zeus.device.cpu import rapl as zeus_files
    from zeus.monitor import ZeusMonitor
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "powercap")
        zeus_files.RAPL_DIR = zeus_files.CONTAINER_RAPL_DIR = str(Path(folder, "nowhere"))
        monitor = ZeusMonitor(gpu_indices=[])
        monitor.begin_window("none")
        nothing = monitor.end_window("none")

        files = powercap(root, {"intel-rapl:0": ("package-0", RANGE - 30_000_000), "intel-rapl:1": ("psys", 0)})
        zeus_files.RAPL_DIR = str(root)
        zeus_files.rapl_is_available.cache_clear()
        monitor, rapl = ZeusMonitor(gpu_indices=[]), energy.Rapl(root)
        monitor.begin_window("first")           # starts the processes of zeus that watch for a counter starting over
        time.sleep(settle)
        monitor.end_window("first")
        rows = [{"tool": "zeus", "window": "without a counter", "total": nothing.total_energy,
                 "says_none": int(nothing.cpu_energy is None)}]
        for name, pause in (("ordinary", 0), ("the counter starts over", 0), ("the window after", 1.0)):
            monitor.begin_window(name)
            rapl.start()
            time.sleep(pause)
            for file, microjoules in zip(files.values(), (20_000_000, 30_000_000)):
                file.write_text(str((int(file.read_text()) + microjoules) % RANGE))
            found, ours = monitor.end_window(name).cpu_energy, rapl.joules()
            rows.append({"tool": "zeus", "window": name, "package": found[0], "psys": found[1], "ours": ours, "truth": 20.0})
    return rows


if __name__ == "__main__" and not answered(process_run, zeus_on_files):
    try:
        needs("codecarbon", "zeus")
    except ModuleNotFoundError as error:
        raise SystemExit(str(error)) from None
    main(Study("energy_repeatability", (RATIOS, COUNTERS), tuple(range(10)), unit, dataset="random images",
               jobs=1, measured=True, packages=("codecarbon", "zeus")))
