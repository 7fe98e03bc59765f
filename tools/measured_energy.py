"""Make the book's small tables of measured energy from a folder of collected raw figures.

    python tools/measured_energy.py FOLDER            write book/data/measured_*.csv and measured_sources.md
    python tools/measured_energy.py FOLDER --check    write nothing; exit code 1 if they would differ

FOLDER holds the files that SOURCES names: figures that were read from the public logs of others, one
row a measurement. Nothing is computed here but joules from milli- and microjoules and the thinning of one power trace. Each row of
a table ends with its citation: repository, commit, path. What was kept and what was dropped, and why,
is counted while it happens and written to measured_sources.md with the licences.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

import pandas as pd
from checkout import ROOT, write_atomically

TARGET = ROOT / "book" / "data"
CITATION = ["repository", "commit", "path"]
APACHE, MIT = "Apache License 2.0", "MIT License"


@dataclasses.dataclass(frozen=True)
class Repository:
    """Where figures come from: the commit that was read, the licence and its notice."""
    name: str
    commit: str
    licence: str
    notice: str


_MLCOMMONS = "authors: MLCommons and the submitter whom the path names"
REPOSITORIES = {r.name: r for r in [
    *(Repository(f"mlcommons/tiny_results_{version}", commit, APACHE, _MLCOMMONS) for version, commit in
      {"v0.5": "d75aef6", "v0.7": "64623f4", "v1.0": "c7761cf", "v1.1": "c32ef94", "v1.2": "cadb362", "v1.3": "cd605ea"}.items()),
    Repository("mlcommons/tiny", "1afd2c9", APACHE, _MLCOMMONS),
    Repository("mlcommons/inference_results_v1.0", "f7759ba", APACHE, _MLCOMMONS),
    Repository("mlcommons/inference_results_v3.0", "1948f9b", APACHE, _MLCOMMONS),
    Repository("S2-group/cain-2024-distilled-models-energy-perf-rep-pkg", "b0fffc6", MIT,
               "authors: those of Yuan et al. 2024"),
    Repository("DEEP-CGPS/PruneEnergyAnalyzer", "7a0d10a", MIT, "Copyright (c) 2025 DEEP-CGPS"),
]}


@dataclasses.dataclass
class Table:
    """A finished table and the story of its rows: (what happened, how many) in order."""
    name: str
    about: str
    frame: pd.DataFrame
    story: list[tuple[str, int]]


class Rows:
    """The rows of a source file on their way to a table; every loss is counted."""

    def __init__(self, frame: pd.DataFrame):
        self.frame, self.story = frame.reset_index(drop=True), [("read", len(frame))]

    def drop(self, reason: str, where: pd.Series) -> None:
        if where.any():
            self.story.append((f"dropped: {reason}", int(where.sum())))
        self.frame = self.frame[~where].reset_index(drop=True)

    def table(self, name: str, about: str, columns: dict, repository, path, *, for_path: tuple = ()) -> Table:
        """Keep columns and add the citation.

        Args: columns: {new name: old name} or {new name: (old name, factor to the new unit)};
              repository, path: one value or one a row; for_path: columns that live on in the path.
        """
        columns = {new: old if isinstance(old, tuple) else (old, None) for new, old in columns.items()}
        frame = pd.DataFrame({new: self.frame[old] if factor is None else scaled(self.frame[old], factor)
                              for new, (old, factor) in columns.items()})
        frame["repository"] = repository
        frame["commit"] = [REPOSITORIES[r].commit for r in frame.repository]
        frame["path"] = path
        dropped = sorted(set(self.frame.columns) - {old for old, _ in columns.values()} - set(for_path))
        self.story += [("kept", len(frame)), (f"columns left out: {', '.join(dropped) or 'none'}", len(dropped))]
        return Table(name, about, frame, self.story)


# --- one function a table ---

BOARDS = {"RPi4 (Cortex-A72 x4)": "RPi 4", "RPi4 fan off (Cortex-A72 x4)": "RPi 4, fan off",
          "Jetson AGX Xavier CPU (Carmel x8)": "Xavier", "Jetson AGX Orin CPU": "Orin",
          "Firefly-RK3588S": "RK3588S", "Khadas VIM4": "VIM4"}


def arm(folder: Path) -> Table:
    """MLPerf Inference v1.0 and v3.0: image classifiers on the CPUs of Arm boards."""
    names = ["mlperf_inference_v1.0_arm_cpu_energy.csv", "mlperf_inference_v3.0_arm_cpu_energy.csv"]
    rows = Rows(pd.concat([read(folder, name) for name in names]))
    frame = rows.frame
    frame["board"] = frame.board.map(BOARDS)
    division = frame.family.map(lambda family: "closed" if family == "resnet50" else "open")
    path = division + "/" + frame.submitter + "/results/" + frame.system_id + "/" + frame.model_dir + "/singlestream"
    return rows.table(
        "measured_arm", "Joules per image at the wall socket, batch 1, one run a row, fp32 and int8, with ImageNet accuracy.",
        {"board": "board", "software": "software", "family": "family", "width": "width", "pixels": "resolution_px",
         "precision": "precision", "macs": ("macs_M", 1e6), "parameters": ("params_M", 1e6), "joules": ("energy_mJ", 1e-3),
         "watts": "power_W_mean", "watts_before": "prerun_power_W", "seconds": ("latency_ms_mean", 1e-3), "top1_percent": "top1_pct"},
        "mlcommons/inference_results_" + frame["round"], path, for_path=("round", "submitter", "system_id", "model_dir"))


def mcu(folder: Path) -> Table:
    """MLPerf Tiny, closed division: small int8 networks on microcontrollers and small accelerators."""
    rows = Rows(read(folder, "mlperf_tiny_energy.csv"))
    rows.drop("open division: whole FPGA boards, other models", rows.frame.division == "open")
    frame = rows.frame.astype({"macs": "Int64", "params": "Int64"})
    rows.frame = frame
    return rows.table(
        "measured_mcu", "Joules per inference at the supply pin, median of five windows, 8-bit networks.",
        {"round": "round", "submitter": "submitter", "system": "system_id", "clock": "clock_listed", "software": "software",
         "supply_volts": "supply_V", "task": "benchmark", "macs": "macs", "parameters": "params", "joules": ("energy_uJ_median", 1e-6),
         "joules_min": ("energy_uJ_min", 1e-6), "joules_max": ("energy_uJ_max", 1e-6), "windows": "n_windows",
         "window_seconds": "window_s", "watts": ("power_mW_median", 1e-3), "seconds": ("latency_ms_energy_mode", 1e-3),
         "top1_percent": "top1_pct", "auc": "auc", "resubmitted_from": "resubmitted_from", "flags": "flags"},
        "mlcommons/tiny_results_" + frame["round"], frame["path"], for_path=("path", "division", "board"))


def mcu_models(folder: Path) -> Table:
    """The reference networks of MLPerf Tiny: counted from their files, not measured."""
    rows = Rows(read(folder, "mlperf_tiny_models.csv"))
    rows.drop("float versions, which no energy row uses", rows.frame.precision == "fp32")
    rows.frame = rows.frame.astype({"weight_bytes": "Int64"})
    path = "benchmark/training/" + rows.frame.tflite_path_under_benchmark_training
    return rows.table(
        "measured_mcu_models", "Bytes of weights and of activations of the 8-bit reference networks of MLPerf Tiny.",
        {"task": "benchmark", "model": "model", "macs": "macs", "parameters": "params", "weight_bytes": "weight_bytes",
         "activation_bytes": "activation_bytes_moved"}, "mlcommons/tiny", path, for_path=("tflite_path_under_benchmark_training",))


def mcu_trace(folder: Path) -> Table:
    """The power of one microcontroller while it waits and while it infers, thinned to five values a second."""
    source = read(folder, "mlperf_tiny_trace_l4r5zi_kws_50Hz.csv")
    segment = source.inference_window.ne(source.inference_window.shift()).cumsum()
    block = segment.astype(str) + "." + (source.groupby(segment).cumcount() // 10).astype(str)
    thin = source.groupby(block, sort=False).agg(seconds=("time_s", "mean"), milliwatts=("power_mW", "mean"),
                                                 window=("inference_window", "first"), averaged=("power_mW", "size"))
    rows = Rows(thin.round({"seconds": 3}))
    rows.story = [("read", len(source)), ("averaged in groups of up to ten, never across the border of a window", len(thin))]
    return rows.table(
        "measured_mcu_trace", "One power trace with five inference windows (window 0: waiting). Its folder was found by the length and the mean power of its windows.",
        {"seconds": "seconds", "watts": ("milliwatts", 1e-3), "window": "window", "averaged": "averaged"},
        "mlcommons/tiny_results_v1.0", "closed/STMicroelectronics/results/NUCLEO_L4R5ZI/kws/energy")


def distillation(folder: Path) -> Table:
    """Language models and their distilled versions on an x86 processor, by RAPL, one run a row."""
    rows = Rows(read(folder, "nlp_distillation_cpu_energy.csv"))
    frame = rows.frame
    return rows.table(
        "measured_distillation", "Joules of whole runs of 9 to 15 minutes; package: the processor; process: a share by CPU time.",
        {"model": "model", "run": "run", "seconds": "time_s", "published_process_joules": "energy_J_table_process",
         "process_joules": "energy_J_process_wrapfixed", "package_joules": "energy_J_package_wrapfixed",
         "wraps_repaired": "wraps_fixed", "smallest_sample_watts": "min_raw_sample_W"},
        "S2-group/cain-2024-distilled-models-energy-perf-rep-pkg",
        "data/experiment_data/**/" + frame.experiment + "/" + frame.run, for_path=("experiment",))


def pruning(folder: Path) -> Table:
    """Convolutional networks with whole filters removed, on a GPU, by its energy counter."""
    rows = Rows(read(folder, "gpu_structured_pruning_energy.csv"))
    rows.drop("batches 8, 16 and 32: between the two that are kept", ~rows.frame.batch_size.isin([1, 64]))
    return rows.table(
        "measured_pruning", "Joules per image of the GPU board, mean and standard deviation of 20 trials; no accuracy was recorded.",
        {"network": "architecture", "pruned": ("pruned_filters_pct", 0.01), "distribution": "pruning_distribution", "batch": "batch_size",
         "parameters": "params", "macs": "macs", "joules": ("energy_mJ_per_sample", 1e-3), "joules_sd": ("energy_mJ_sd_trials", 1e-3),
         "seconds": ("time_ms_per_sample", 1e-3)},
        "DEEP-CGPS/PruneEnergyAnalyzer", "notebooks/prepared_results.csv")


TABLES = (arm, mcu, mcu_models, mcu_trace, distillation, pruning)
LEFT_OUT = {"mlperf_tiny_latency_only_fp32_int8.csv": "it holds latencies, and no energy"}
SOURCES = ("mlperf_inference_v1.0_arm_cpu_energy.csv", "mlperf_inference_v3.0_arm_cpu_energy.csv", "mlperf_tiny_energy.csv",
           "mlperf_tiny_models.csv", "mlperf_tiny_trace_l4r5zi_kws_50Hz.csv", "nlp_distillation_cpu_energy.csv",
           "gpu_structured_pruning_energy.csv")


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read one source file. Raises: SystemExit, naming the file, if it is missing."""
    path = folder / name
    if not path.is_file():
        sys.exit(f"measured_energy: {path} is missing; the folder must hold {', '.join(SOURCES)}")
    return pd.read_csv(path)


def scaled(column: pd.Series, factor: float) -> pd.Series:
    """In another unit, to nine significant digits (more than any source has); gaps stay gaps."""
    return column.map(lambda x: float(f"{x * factor:.9g}"))


# --- what is written ---

def sources_page(tables: list[Table]) -> str:
    """The page that goes with the tables: licences, and what was kept and dropped."""
    lines = ["# Where the tables of measured energy come from", "",
             "Made by `tools/measured_energy.py` together with the tables; do not edit. Each row of a table names the",
             "repository, the commit and the path (a file, or the folder of one run's logs) that its figures were read from; `**`",
             "stands for folders between. The figures are facts measured by others; the wording and the selection are ours.", ""]
    for table in tables:
        lines += [f"## {table.name}.csv", "", table.about, ""]
        lines += [f"- {what}: {count}" if not what.startswith("columns") else f"- {what}" for what, count in table.story]
        lines += [""]
    lines += ["## Left out", ""] + [f"- `{name}`: {why}" for name, why in LEFT_OUT.items()] + [""]
    used = {(r, c) for table in tables for r, c in zip(table.frame.repository, table.frame.commit)}
    lines += ["## Licences", "",
              "The permission notice of the MIT License is the one in this course's `LICENSE`, with the notice below in place of its",
              "copyright line. The text of the Apache License 2.0 is at <https://www.apache.org/licenses/LICENSE-2.0>. Changes made: selection",
              "of rows and columns, units, the thinning of the trace.", "", "| repository | commit | licence | notice |", "|---|---|---|---|"]
    lines += [f"| {r} | {c} | {REPOSITORIES[r].licence} | {REPOSITORIES[r].notice} |" for r, c in sorted(used)]
    return "\n".join(lines) + "\n"


def files(folder: Path) -> dict[str, str]:
    """All files by name, as text."""
    tables = [make(folder) for make in TABLES]
    for table in tables:
        if table.frame[CITATION].isna().any(axis=None) or not len(table.frame):
            sys.exit(f"measured_energy: {table.name} has no rows, or a row without a citation")
    made = {f"{table.name}.csv": table.frame.to_csv(index=False, lineterminator="\n") for table in tables}
    return {**made, "measured_sources.md": sources_page(tables)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the book's tables of measured energy.")
    parser.add_argument("folder", type=Path, help="the folder with the collected figures")
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FOLDER", help="where the tables go (default: book/data)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file would change")
    options = parser.parse_args(arguments)
    stale = []
    for name, text in files(options.folder).items():
        path = options.to / name
        same = path.is_file() and path.read_bytes() == text.encode()
        if not same and options.check:
            stale.append(name)
        elif not same:
            write_atomically(path, text)
        print(f"{name}: {len(text.encode()):,} bytes{'' if same else ', differs' if options.check else ', written'}")
    if stale:
        print(f"measured_energy: would change: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
