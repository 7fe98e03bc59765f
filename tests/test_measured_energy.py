"""The tables of measured energy: what they must hold, and the script that makes them."""
import importlib
import os
import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "book" / "data"
NAMES = ["arm", "distillation", "mcu", "mcu_models", "mcu_trace", "pruning"]
# What a table may leave empty, and why.
MAY_BE_EMPTY = {"arm": {"width", "macs", "parameters", "watts_before"},         # ResNet-50; Orin's log has no idle part; a stream (sww)
                "mcu": {"macs", "parameters", "software", "supply_volts", "top1_percent", "auc", "resubmitted_from", "flags"}}


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(DATA / f"measured_{name}.csv")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("measured_energy")


# --- the tables ---

def test_the_tables_are_there_and_small():
    assert sorted(p.stem.removeprefix("measured_") for p in DATA.glob("measured_*.csv")) == NAMES
    assert sum(p.stat().st_size for p in DATA.glob("measured_*")) < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_every_row_cites_repository_commit_and_path(name, script):
    frame = table(name)
    assert list(frame.columns[-3:]) == ["repository", "commit", "path"]
    page = (DATA / "measured_sources.md").read_text(encoding="utf-8")
    for repository, commit in set(zip(frame.repository, frame.commit)):
        assert re.fullmatch(r"[0-9a-f]{7,40}", commit) and script.REPOSITORIES[repository].commit == commit
        assert f"| {repository} | {commit} | {script.REPOSITORIES[repository].licence} |" in page
    assert not frame.path.str.startswith(("/", "~")).any() and not frame.path.str.contains("nan").any()


@pytest.mark.parametrize("name", NAMES)
def test_quantities_are_complete_and_positive(name):
    frame = table(name)
    gaps = {column for column in frame if frame[column].isna().any()}
    assert gaps <= MAY_BE_EMPTY.get(name, set())
    for column in frame.select_dtypes("number"):
        if column not in ("published_process_joules", "smallest_sample_watts", "wraps_repaired", "pruned", "window", "top1_percent", "auc"):
            assert (frame[column].dropna() > 0).all(), column


@pytest.mark.parametrize("name, key", [
    ("arm", ["board", "software", "family", "width", "pixels", "precision"]), ("mcu", ["round", "submitter", "system", "task"]),
    ("pruning", ["network", "pruned", "distribution", "batch"]), ("distillation", ["model", "path"]), ("mcu_models", ["task"])])
def test_no_measurement_stands_there_twice(name, key):
    assert not table(name).duplicated(key).any()


def test_rows_that_are_copies_are_marked_and_no_others():
    """Two measurements do not agree to the last digit; what does is one file handed in again."""
    mcu = table("mcu")
    copies = mcu.duplicated(["submitter", "system", "task", "joules", "joules_min", "joules_max"])
    assert copies.sum() == 18 and (copies == mcu.resubmitted_from.notna()).all()


def test_the_counts_of_the_tiny_networks_agree_and_fit_their_bytes():
    mcu, models = table("mcu").dropna(subset=["macs"]), table("mcu_models").set_index("task")
    for column in ("macs", "parameters"):
        assert (mcu[column].values == models[column].loc[mcu.task].values).all()
    overhead = models.weight_bytes / models.parameters          # one byte a weight, four a bias
    assert overhead.between(1, 1.1).all() and (models.activation_bytes > 1000).all()


def test_energy_is_power_times_time_where_the_tables_have_all_three():
    """A unit that is wrong by a thousand, or a swapped column, would show."""
    mcu, arm = table("mcu"), table("arm")
    mcu = mcu[mcu.task != "sww"]
    assert (mcu.watts * mcu.seconds / mcu.joules - 1).abs().max() < 0.01
    assert (arm.watts * arm.seconds / arm.joules - 1).abs().median() < 0.01
    assert (arm.watts * arm.seconds / arm.joules - 1).abs().max() < 0.1
    assert ((mcu.joules_min <= mcu.joules) & (mcu.joules <= mcu.joules_max)).all()


def test_values_that_were_checked_by_hand_against_the_raw_logs():
    arm = table("arm")
    rows = arm[(arm.board == "RPi 4") & (arm.software == "TFLite 2.4.1") & (arm.family == "resnet50")]
    assert rows[["joules", "watts", "seconds", "top1_percent"]].values.tolist() == [[3.970307, 6.699, 0.5926118, 76.442]]
    assert rows.path.item() == "closed/Krai/results/rpi4coral-fan.on-tflite-v2.4.1-ruy/resnet50/singlestream"
    broken = table("distillation").query("published_process_joules < 0")
    assert broken.published_process_joules.tolist() == [-224720.878, -226293.405]


def test_the_rows_that_the_notebooks_pick_by_name_are_there_once():
    picked = [table("arm").query("board == 'RPi 4' and software == 'TFLite 2.4.1' and width == 'lite1' and precision == 'fp32'"),
              table("mcu").query("round == 'v1.0' and system == 'NUCLEO_L4R5ZI' and task == 'ic'")]
    assert [len(rows) for rows in picked] == [1, 1]
    assert [rows.joules.item() for rows in picked] == pytest.approx([0.704332, 0.010682], abs=1e-6)


def test_the_trace_keeps_the_mean_power_of_each_window():
    trace = table("mcu_trace")
    means = (trace.watts * trace.averaged).groupby(trace.window).sum() / trace.averaged.groupby(trace.window).sum()
    assert means.round(8).tolist() == pytest.approx([0.044734654, 0.044880574, 0.044890799, 0.044892877, 0.044894250, 0.044905523], abs=2e-8)
    row = table("mcu").query("path.str.startswith(@trace.path[0]) and repository == @trace.repository[0]")
    assert row.watts.item() == pytest.approx(means.loc[1:].median(), rel=1e-3)            # the trace belongs to this row


# --- the script ---

@pytest.fixture
def sources(tmp_path, script) -> Path:
    """A tiny folder with the columns of the real one."""
    folder = tmp_path / "sources"
    folder.mkdir()
    arm = {"round": "v1.0", "submitter": "Krai", "board": "RPi4 (Cortex-A72 x4)", "software": "TFLite 2.4.1", "system_id": "rpi4",
           "family": "mobilenet-v1", "width": "0.5", "resolution_px": 128, "precision": "fp32", "macs_M": 49, "params_M": 1.34,
           "energy_mJ": 100.5, "power_W_mean": 5.0, "prerun_power_W": 4.0, "latency_ms_mean": 20.1, "top1_pct": 60.0,
           "model_dir": "m", "throughput_inf_s": 49.8}
    tiny = {"round": "v1.0", "division": "closed", "submitter": "ST", "board": "L4R5", "system_id": "l4r5", "clock_listed": "120 MHz",
            "software": "x", "supply_V": 1.8, "benchmark": "kws", "macs": 2656768.0, "params": 22604.0, "energy_uJ_median": 3371.738,
            "energy_uJ_min": 3370.0, "energy_uJ_max": 3372.0, "n_windows": 5, "window_s": 11.27, "power_mW_median": 44.9,
            "latency_ms_energy_mode": 75.1, "top1_pct": 90.0, "auc": 0.99, "resubmitted_from": "v0.7", "flags": "", "path": "a/results.txt"}
    model = {"benchmark": "kws", "model": "DS-CNN", "name": "k", "params": 22604, "macs": 2656768, "weight_bytes": 24368.0,
             "activation_bytes_moved": 144654, "tflite_path_under_benchmark_training": "k.tflite"}
    nlp = {"model": "BERT", "experiment": "e1", "run": "run_0", "time_s": 900.0, "energy_J_table_process": -1.0,
           "energy_J_process_wrapfixed": 2.0, "energy_J_package_wrapfixed": 3.0, "wraps_fixed": 1, "min_raw_sample_W": -262000.0}
    gpu = {"architecture": "VGG16", "pruned_filters_pct": 5, "pruning_distribution": "PD1", "params": 9, "macs": 8,
           "energy_mJ_per_sample": 2.5, "energy_mJ_sd_trials": 0.1, "time_ms_per_sample": 1.5}
    made = [[arm], [{**arm, "round": "v3.0"}], [tiny, {**tiny, "division": "open"}],
            [{**model, "precision": "int8"}, {**model, "precision": "fp32"}],
            [{"time_s": t / 50, "power_mW": 40 + t, "inference_window": int(t >= 15)} for t in range(30)], [nlp],
            [{**gpu, "batch_size": batch} for batch in (1, 8, 16, 32, 64)]]
    for name, rows in zip(script.SOURCES, made, strict=True):
        pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder


def test_the_script_converts_cites_and_counts_what_it_drops(sources, script, tmp_path):
    assert script.main([str(sources), "--to", str(tmp_path)]) == 0
    got = {name: pd.read_csv(tmp_path / f"measured_{name}.csv") for name in NAMES}
    assert {name: len(frame) for name, frame in got.items()} == {
        "arm": 2, "mcu": 1, "mcu_models": 1, "mcu_trace": 4, "distillation": 1, "pruning": 2}
    assert got["arm"][["board", "macs", "joules", "seconds"]].values.tolist()[0] == ["RPi 4", 49e6, 0.1005, 0.0201]
    assert got["arm"][["repository", "path"]].values.tolist()[1] == [
        "mlcommons/inference_results_v3.0", "open/Krai/results/rpi4/m/singlestream"]
    assert got["mcu"].joules.item() == 0.003371738 and got["mcu"].watts.item() == 0.0449
    assert got["mcu"].resubmitted_from.item() == "v0.7"
    assert got["mcu_models"][["weight_bytes", "activation_bytes"]].values.tolist() == [[24368, 144654]]
    assert got["mcu_trace"].averaged.tolist() == [10, 5, 10, 5]             # no group crosses the window's border
    assert got["mcu_trace"].watts.tolist() == [0.0445, 0.052, 0.0595, 0.067]
    assert got["pruning"][["pruned", "joules"]].values.tolist()[0] == [0.05, 0.0025]
    page = (tmp_path / "measured_sources.md").read_text(encoding="utf-8")
    assert "- dropped: open division: whole FPGA boards, other models: 1\n- kept: 1\n" in page
    assert "- dropped: batches 8, 16 and 32: between the two that are kept: 3\n- kept: 2\n" in page
    assert "columns left out: throughput_inf_s" in page


def test_check_writes_nothing_and_names_what_differs(sources, script, tmp_path, capsys):
    assert script.main([str(sources), "--to", str(tmp_path), "--check"]) == 1
    assert not list(tmp_path.glob("measured_*")) and "would change: measured_arm.csv" in capsys.readouterr().err
    script.main([str(sources), "--to", str(tmp_path)])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("measured_*")}
    assert script.main([str(sources), "--to", str(tmp_path), "--check"]) == 0
    (tmp_path / "measured_mcu.csv").write_text("x", encoding="utf-8")
    assert script.main([str(sources), "--to", str(tmp_path), "--check"]) == 1
    assert "would change: measured_mcu.csv\n" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before if p.stem != "measured_mcu"} == {
        p: t for p, t in before.items() if p.stem != "measured_mcu"}


def test_a_missing_source_is_named(sources, script, tmp_path):
    (sources / "mlperf_tiny_models.csv").unlink()
    with pytest.raises(SystemExit, match="mlperf_tiny_models.csv is missing; the folder must hold"):
        script.main([str(sources), "--to", str(tmp_path)])


def test_a_row_without_a_citation_is_refused(sources, script, tmp_path):
    tiny = pd.read_csv(sources / "mlperf_tiny_energy.csv").assign(path=None)
    tiny.to_csv(sources / "mlperf_tiny_energy.csv", index=False)
    with pytest.raises(SystemExit, match="measured_mcu has no rows, or a row without a citation"):
        script.main([str(sources), "--to", str(tmp_path)])


def test_the_stored_tables_are_what_the_script_makes(script):
    """With the folder of collected figures, which is not part of the repository."""
    folder = os.environ.get("COURSE_MEASURED")
    if not folder:
        pytest.skip("COURSE_MEASURED is not set: set it to the folder of collected figures to run this test")
    assert script.main([folder, "--check"]) == 0
