"""The study of energy tools: its neighbours, its rows, its stored results; the real tools only where they are installed."""
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from serving_helpers import wait_for
from skips import extra

from course_lib import energy, results, timing

ROOT = Path(__file__).resolve().parent.parent
TINY = {"groups": 1, "blocks": 2, "block_seconds": 0.02, "window_seconds": 0.3}

# 10 W in machine mode and 6 W for each second that this process has worked in process mode, memory being 4 W of either.
STAND_IN = """
import time
from types import SimpleNamespace

class OfflineEmissionsTracker:
    def __init__(self, *, country_iso_code, tracking_mode, output_methods, log_level, allow_multiple_runs):
        assert output_methods == [] and log_level == "critical" and allow_multiple_runs
        self.mode = tracking_mode

    def start(self):
        self.begin = time.perf_counter(), time.process_time()

    def stop(self):
        wall, cpu = time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]
        joules = 10 * wall if self.mode == "machine" else 6 * cpu
        self.final_emissions_data = SimpleNamespace(energy_consumed=joules / 3.6e6, ram_energy=0.4 * joules / 3.6e6)
"""


def load(folder, name):
    path = str(ROOT / folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def study():
    return load("studies", "energy_repeatability")


@pytest.fixture(scope="module")
def tools():
    return load("benchmarks", "energy_tools")


def two_cores():
    if len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())) < 2:
        pytest.skip("a neighbour on the other core needs two cores")


# --- the script ---

def test_without_the_tools_the_study_says_what_to_install(study, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "zeus" else SimpleNamespace())
    monkeypatch.setattr(study, "fresh_process", lambda *args, **kwargs: pytest.fail("it ran all the same"))
    for configuration in (study.RATIOS, study.COUNTERS):
        with pytest.raises(ModuleNotFoundError, match=r"zeus is not installed; .* pip install -e '\.\[energy-tools\]'"):
            study.unit(configuration, 0)


def test_a_process_that_fails_says_why(study):
    with pytest.raises(RuntimeError, match="(?s)no_such_function failed: .*KeyError"):
        study.fresh_process(study.SCRIPT, "no_such_function")


def ticks(pid):
    """CPU time of a process so far, in ticks of the system's clock, and the process that started it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12]), int(fields[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which Linux has")
def test_a_neighbour_works_only_when_it_is_told_to_and_ends_with_the_unit(study):
    two_cores()

    def worked(cores):
        study.let_run(pids, cores)
        before = {core: ticks(pid)[0] for core, pid in pids}
        time.sleep(0.5)                     # and for longer, where others keep the core busy
        wait_for(lambda: all(ticks(pid)[0] > before[core] + 2 for core, pid in pids if core in cores), seconds=20)
        return [core for core, pid in pids if ticks(pid)[0] > before[core] + 2]

    with study.neighbours() as pids:
        cores = [core for core, _ in pids]
        assert len(set(cores)) == len(cores) >= 2
        assert all(os.sched_getaffinity(pid) == {core} for core, pid in pids)
        before = [ticks(pid)[0] for _, pid in pids]
        time.sleep(0.3)
        assert all(ticks(pid)[0] <= b + 1 for (_, pid), b in zip(pids, before)), "it starts stopped"
        assert worked(cores[1:2]) == cores[1:2] and worked([]) == [] and worked(cores) == cores
    assert not any(Path(f"/proc/{pid}").exists() for _, pid in pids)


def test_one_core_is_not_enough(study, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    with pytest.raises(RuntimeError, match="this study needs two cores"):
        with study.neighbours():
            pass


@pytest.fixture(scope="module")
def tiny(study, tmp_path_factory):
    """Rows of a short process run with a stand-in for codecarbon."""
    two_cores()
    folder = tmp_path_factory.mktemp("stand_in")
    (folder / "codecarbon.py").write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(study, "needs", lambda *tools: None)
        return study.unit(study.RATIOS, 0, **TINY)


def test_a_process_run_gives_a_row_for_each_tool_and_neighbour(study, tools, tiny):
    found = [(row["neighbour"], row["tool"]) for row in tiny if "neighbour" in row]
    assert sorted(found) == sorted((place, tool) for place in (study.NONE, study.OTHER, study.EVERY) for tool in tools.TOOLS)
    others = [row["tool"] for row in tiny if "neighbour" not in row]
    assert others == ["load average before", "modelled, weights on chip", "modelled, weights in DRAM"]
    assert all(0.4 < row["ratio"] < 0.6 for row in tiny if row["tool"].startswith("modelled"))


def test_codecarbon_is_asked_in_both_modes_around_the_same_windows(study, tiny):
    """The stand-in's joules are watts times the seconds of its own clock, which starts just before ours and stops just after.

    On a busy machine others may run in between, so it may say more than ours; never less.
    """
    for place in (study.NONE, study.OTHER, study.EVERY):
        row = {r["tool"]: r for r in tiny if r.get("neighbour") == place}
        for mode, clock, watts in (("machine", "wall", 10), ("process", "CPU", 6)):
            said, timed = row[f"codecarbon, {mode}"], row[f"{clock} time, same windows"]
            assert 0.999 < said["joules"] / (watts * timed["seconds"]) < 3 and said["ram_share"] == pytest.approx(0.4)
            assert all(1 / 3 < said[which] / timed[which] < 3 for which in ("ratio", "control"))
        ours, power = row["CPU time"], energy.SERVER_WATTS["any of these chips"]
        assert 0 < ours["joules_low"] < 1.001 * power.low * ours["seconds"]             # by hand further below
        assert ours["joules_high"] > 0.999 * power.high * ours["seconds"]


def test_neighbours_on_every_core_take_wall_time(study, tiny):
    """A neighbour that works takes half of it or, on a busy machine, more: times 2. Without one it is times 1."""
    shared = {r["tool"]: r["seconds"] for r in tiny if r.get("neighbour") == study.EVERY and "same windows" in r["tool"]}
    assert shared["wall time, same windows"] > 1.2 * shared["CPU time, same windows"]


# --- rows, by hand ---

def paired(wall, cpu):
    names = ("dense", "half the units gone", timing.AGAIN)
    clocks = [{name: np.array(values, dtype=float) for name, values in zip(names, clock)} for clock in (wall, cpu)]
    return energy.Paired(timing.Timings(*clocks, dict.fromkeys(names, 1), 0), None, 0.25, 64)


def test_the_blocks_of_all_groups_count(study):
    first = paired([[64, 64], [32, 32], [64, 64]], [[64, 64], [16, 16], [64, 64]])
    second = paired([[128, 128, 128], [96, 96, 96], [128, 128, 128]], [[64, 64, 64], [32, 32, 32], [128, 128, 128]])
    cpu, wall = study.rows_of(study.joined([first, second]))
    assert cpu["tool"] == "CPU time" and cpu["ratio"] == pytest.approx(0.5) and cpu["control"] == pytest.approx(2)
    assert wall["tool"] == "wall time" and wall["ratio"] == pytest.approx(0.75) and wall["seconds"] == pytest.approx(2)
    assert cpu["seconds"] == pytest.approx(1) and cpu["joules_low"] == pytest.approx(0.4556) and cpu["joules_high"] == pytest.approx(8.9614)


def test_windows_are_summed_over_groups_and_divided_by_their_inferences(study):
    def group(dense, small, again):
        return {name: {"machine": j, "machine RAM": j / 2, "process": 2 * j, "process RAM": j, "cpu": j, "wall": j}
                for name, j in ((study.DENSE, dense), (study.SMALL, small), (study.AGAIN, again))}
    calls = {study.DENSE: 10, study.SMALL: 20, study.AGAIN: 10}
    machine, process, cpu, wall = study.rows_of_windows([group(640, 640, 640), group(1920, 640, 3200)], calls)
    assert machine["joules"] == pytest.approx(2) and process["joules"] == pytest.approx(4) and cpu["seconds"] == wall["seconds"] == pytest.approx(2)
    assert all(row["ratio"] == pytest.approx(0.25) and row["control"] == pytest.approx(1.5) for row in (machine, process, cpu, wall))
    assert machine["ram_share"] == process["ram_share"] == pytest.approx(0.5) and "ram_share" not in cpu


# --- the runner, for a study whose numbers are all measured ---

@pytest.mark.parametrize("measured, again, passes", [(True, {"tool": "a", "ratio": 3.0}, True), (False, {"tool": "a", "ratio": 3.0}, False),
                                                     (True, {"tool": "b", "ratio": 2.0}, False), (True, {"tool": "a"}, False)])
def test_a_check_of_measured_rows_compares_their_names_only(measured, again, passes, monkeypatch, capsys):
    runner = load("studies", "runner")
    stored = results.Results("fake", [{"configuration": "c", "seed": 0, "tool": "a", "ratio": 2.0}], {})
    monkeypatch.setattr(results, "load", lambda name: stored)
    monkeypatch.setattr(runner, "run_unit", lambda unit, label, path: ({"rows": [again]}, path))
    fake = runner.Study("fake", ("c",), (0,), test_the_blocks_of_all_groups_count, measured=measured)
    if passes:
        runner.check(fake)
        assert "gives the stored rows" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match="no longer gives the stored rows"):
            runner.check(fake)


# --- the real tools ---

@pytest.mark.extra
def test_codecarbon_in_a_short_run(study):
    extra("codecarbon", "zeus", group="energy-tools")
    two_cores()
    rows = [row for row in study.unit(study.RATIOS, 0, **TINY) if row["tool"].startswith("codecarbon")]
    assert len(rows) == 6 and all(row["joules"] > 0 and 0 < row["ram_share"] < 1 and 0.1 < row["ratio"] < 3 for row in rows)


def check_zeus(rows):
    """Silent without a counter; at a wrap far below zero; the window after far above it; psys as another processor."""
    nothing, ordinary, wrap, after = rows
    assert nothing["total"] == 0 and nothing["says_none"] == 1
    assert (ordinary["package"], ordinary["psys"]) == pytest.approx((20, 30))
    assert wrap["package"] < -200_000 and after["package"] > 200_000 and wrap["package"] + after["package"] == pytest.approx(40)
    for row in (ordinary, wrap, after):
        assert row["ours"] == pytest.approx(20) and row["truth"] == 20


@pytest.mark.extra
def test_zeus_on_the_files_of_a_counter_that_starts_over(study):
    extra("zeus", group="energy-tools")
    check_zeus(study.fresh_process(study.SCRIPT, "zeus_on_files"))


# --- the stored study and the benchmarks ---

@pytest.fixture(scope="module")
def stored():
    return results.load("energy_repeatability")


def test_ten_process_runs_are_stored_one_after_the_other(study, tools, stored):
    assert stored.seeds == list(range(10)) and stored.provenance["command"] == "python studies/energy_repeatability.py"
    assert stored.provenance["versions"].keys() >= {"codecarbon", "zeus", "torch", "onnxruntime"}
    for place in (study.NONE, study.OTHER, study.EVERY):
        for tool in tools.TOOLS:
            assert len(stored.by_seed("ratio", tool=tool, neighbour=place)) == 10
    keys = [tuple(sorted((k, v) for k, v in row.items() if isinstance(v, str) or k == "seed")) for row in stored.rows]
    assert len(set(keys)) == len(keys), "two rows of one seed cannot be told apart"


def test_the_counters_of_every_run_were_read_as_the_chapter_says(stored):
    for seed in stored.seeds:
        check_zeus([row for row in stored.rows if row["seed"] == seed and row["tool"] == "zeus"])


def test_our_ratio_spreads_at_most_a_third_as_much_in_every_arm(study, tools, stored):
    """And at most half as much whichever run is left out: the widest arm hangs on one run, which the chapter says."""
    def runs(tool, place):
        return np.array(list(stored.by_seed("ratio", tool=tool, neighbour=place).values()))
    for place in (study.NONE, study.OTHER, study.EVERY):
        ours = runs("CPU time", place)
        for mode in study.MODES:
            theirs = runs(f"codecarbon, {mode}", place)
            assert tools.spread(ours) <= tools.spread(theirs) / 3, (place, mode)
            for left_out in range(10):
                assert tools.spread(np.delete(ours, left_out)) <= tools.spread(np.delete(theirs, left_out)) / 2, (place, mode, left_out)
        assert tools.spread(runs("wall time", place)) < 1.5 * tools.spread(ours)      # blocks that take turns keep wall time steady too


def test_a_neighbour_on_every_core_doubles_the_estimate_and_not_the_cpu_time(study, stored):
    def growth(tool, value):
        alone, beside = (stored.by_seed(value, tool=tool, neighbour=place) for place in (study.NONE, study.EVERY))
        return [beside[seed] / alone[seed] for seed in stored.seeds]
    assert all(1.7 < g < 2.2 for g in growth("codecarbon, process", "joules")) and min(growth("codecarbon, machine", "joules")) > 2.2
    assert all(0.9 < g < 1.2 for g in growth("CPU time", "seconds")) and min(growth("wall time", "seconds")) > 1.9
    assert all(0.8 < g < 1.5 for g in growth("CPU time, same windows", "seconds"))
    for place in (study.NONE, study.OTHER, study.EVERY):
        cpu, wall = (stored.by_seed("seconds", tool=f"{what} time, same windows", neighbour=place) for what in ("CPU", "wall"))
        assert all((wall[seed] > 1.5 * cpu[seed]) == (place == study.EVERY) for seed in stored.seeds)
        assert all(0.3 < ratio < 0.8 for ratio in stored.by_seed("ratio", tool="CPU time", neighbour=place).values())


def test_most_of_the_estimate_is_a_constant_for_the_memory(study, stored):
    for mode in study.MODES:
        for place in (study.NONE, study.OTHER, study.EVERY):
            assert min(stored.by_seed("ram_share", tool=f"codecarbon, {mode}", neighbour=place).values()) > 0.6


def test_the_tables_of_the_stored_study_can_be_printed(tools, capsys):
    tools.main(["--stored"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * len(tools.TOOLS) + 1 + 2 + 3
    assert "in 10 of 10 runs" in next(line for line in lines if line.startswith("zeus without a counter"))
    assert lines[-2].split()[-4:] == ["20", "20", "-262,123", "30"]


def test_the_spread_is_the_coefficient_of_variation_of_a_sample(tools):
    assert tools.spread([1, 2, 3]) == pytest.approx(0.5)
    with pytest.raises(SystemExit, match="at least two runs"):
        tools.main(["--runs", "1"])


def test_the_cost_of_a_reading_is_a_small_part_of_a_window(capsys):
    load("benchmarks", "energy_reading").main(["--readings", "50"])
    out = capsys.readouterr().out
    assert "RAPL counters" in out and "median" in out and out.count(" 0.1 %") == 2 and "NOT" not in out.splitlines()[1]
