"""The study runner loses and repeats nothing, refuses what is not its own, and says how results were made."""
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from skips import extra, skip

from course_lib import results

STUDIES = Path(__file__).parent.parent / "studies"
NAMES = sorted(path.stem for path in STUDIES.glob("*_*.py"))

SCRIPT = """
'''A study that takes no time.'''
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {studies!r})
import runner
from runner import Study, main

HERE = runner.HERE = Path({here!r})

def unit(configuration, seed):
    with open(HERE / "log", "a") as log:
        log.write(f"{{configuration}} {{seed}}\\n")
    {body}
    return [{{"value": seed + len(configuration) / 8}}]

if __name__ == "__main__":
    main(Study("fake", ("a", "bb"), (0, 1, 2), unit))
"""


@pytest.fixture
def study(tmp_path):
    """A function that writes the script of a study with some lines in its unit, and gives its command."""
    def make(body="pass"):
        script = tmp_path / "fake.py"
        script.write_text(SCRIPT.format(studies=str(STUDIES), here=str(tmp_path), body=textwrap.indent(body, "    ").strip()))
        return [sys.executable, str(script), "--jobs", "2"]
    return make


def call(command, *more):
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)


def log(folder):
    return (folder / "log").read_text().split("\n")[:-1] if (folder / "log").exists() else []


def stored(folder):
    return sorted((folder / "units" / "fake" / "mnist-5k").glob("*.json"))


def wait_for(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited two minutes in vain")


def host_names() -> list[str]:
    """This machine's name, if it is long: one such as "linux" may be part of other words."""
    return [name for name in (os.uname().nodename,) if len(name) > 8]


EVERY = sorted(f"{c} {s}" for c in ("a", "bb") for s in range(3))


# --- a run ---

def test_a_run_stores_every_unit_and_says_how(study, tmp_path):
    answer = call(study())
    assert answer.returncode == 0, answer.stderr
    assert sorted(log(tmp_path)) == EVERY and len(stored(tmp_path)) == 6
    read = results.read(tmp_path / "results" / "fake.json", "fake")
    assert [(r["configuration"], r["seed"], r["value"]) for r in read.rows] == [
        (c, s, s + len(c) / 8) for c in ("a", "bb") for s in range(3)]
    p = read.provenance
    assert p["command"] == "python studies/fake.py --jobs 2" and p["seeds"] == [0, 1, 2] and p["dataset"] == "mnist-5k"
    assert {"python", "torch", "numpy"} <= p["versions"].keys() and "cores" in p["machine"]
    of_git = (Path(__file__).parent.parent / ".git").exists()                      # an unpacked archive has none
    assert len(p["revision"]) == 40 if of_git else p["revision"] == "unknown"
    assert p.keys() == {"command", "date", "dataset", "seeds", "versions", "machine", "unit_seconds", "revision",
                        "changed_since_revision", "fingerprint"}           # none that names the machine or its owner
    assert re.fullmatch(r"\w+ \w+, .+, \d+ cores", p["machine"]) and not any(name in json.dumps(p) for name in host_names())


def test_a_second_run_repeats_nothing(study, tmp_path):
    call(study())
    first = (tmp_path / "results" / "fake.json").read_text()
    assert call(study()).returncode == 0
    assert sorted(log(tmp_path)) == EVERY
    assert json.loads(first)["rows"] == json.loads((tmp_path / "results" / "fake.json").read_text())["rows"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(study, tmp_path, how):
    command = study("if seed: time.sleep(1.5)")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: len(stored(tmp_path)) >= 2)
    os.killpg(process.pid, how)
    process.wait(timeout=30)
    time.sleep(0.3)
    done = {path.name: path.read_bytes() for path in stored(tmp_path)}
    # After Ctrl-C the workers may still finish what they had begun, or even all of it. And where Python meets the signal
    # inside a finaliser it cannot raise: seen once on a busy machine, the run then went on to its end.
    finished = (tmp_path / "results").exists()
    assert len(done) >= 2 and (not finished or how == signal.SIGINT and len(done) == 6)
    assert call(command).returncode == 0
    assert {path.name: path.read_bytes() for path in stored(tmp_path)}.items() >= done.items()
    for name in done:
        configuration, seed = name.removesuffix(".json").split("--seed")
        assert log(tmp_path).count(f"{configuration} {seed}") == 1
    assert len(results.read(tmp_path / "results" / "fake.json", "fake").rows) == 6


def test_a_run_whose_parent_was_killed_alone_repeats_no_unit(study, tmp_path):
    """Its workers go on for a while: the next run waits for their units instead of running them beside them."""
    command = study("time.sleep(3)")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(log(tmp_path)) >= 2)
    process.kill()
    process.wait(timeout=30)
    answer = call(command)
    assert answer.returncode == 0, answer.stderr
    assert sorted(log(tmp_path)) == EVERY


def test_a_killed_worker_costs_only_its_unit(study, tmp_path):
    answer = call(study("""
        mark = HERE / "killed"
        if seed == 1 and configuration == "a" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        """.strip().replace("\n        ", "\n")))
    assert answer.returncode == 0, answer.stderr
    assert "a worker died" in answer.stderr
    assert set(log(tmp_path)) == set(EVERY) and log(tmp_path).count("a 1") == 2
    assert len(results.read(tmp_path / "results" / "fake.json", "fake").rows) == 6


def test_workers_that_always_die_end_the_run_and_keep_what_is_done(study, tmp_path):
    answer = call(study('if seed == 2:\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGKILL)'))
    assert answer.returncode != 0 and "workers died 4 times" in answer.stderr
    assert len(stored(tmp_path)) >= 2 and not (tmp_path / "results").exists()


def test_a_unit_that_fails_is_named_and_the_others_are_kept(study, tmp_path):
    command = study('if (configuration, seed) == ("bb", 1):\n    time.sleep(0.5)\n    raise ValueError("no such luck")')
    answer = call(command)
    assert answer.returncode != 0 and "study fake, bb, seed 1: ValueError('no such luck')" in answer.stderr
    assert len(stored(tmp_path)) >= 3 and not (tmp_path / "results").exists()


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_refused(study, tmp_path, bad):
    answer = call(study(f'if seed == 1:\n    return [{{"value": float("{bad}")}}]'))
    assert answer.returncode != 0 and "not JSON compliant" in answer.stderr and "seed 1" in answer.stderr
    assert not (tmp_path / "results").exists()


def test_two_runs_at_once(study, tmp_path):
    command = study("time.sleep(1)")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: log(tmp_path))
    second = call(command)
    assert second.returncode != 0 and "another run of this study is at work" in second.stderr and "Traceback" not in second.stderr
    assert process.wait(timeout=60) == 0 and sorted(log(tmp_path)) == EVERY


# --- files that are not what they should be ---

def damage(path, how):
    content = json.loads(path.read_text())
    if how == "half-written":
        return path.write_text(path.read_text()[:40])
    key, value = {"study": ("study", "other"), "seed": ("seed", 7), "code": ("fingerprint", "0" * 16),
                  "data": ("dataset", "mnist"), "rows": ("rows", None)}[how]
    path.write_text(json.dumps({**content, key: value}))


@pytest.mark.parametrize("how", ["half-written", "study", "seed", "code", "data", "rows"])
def test_a_unit_that_is_not_its_own_is_refused_and_stays(study, tmp_path, how):
    call(study())
    shutil.rmtree(tmp_path / "results")
    victim = stored(tmp_path)[1]
    damage(victim, how)
    before = victim.read_bytes()
    answer = call(study())
    assert answer.returncode != 0 and str(victim) in answer.stderr and "delete it" in answer.stderr
    assert victim.read_bytes() == before and not (tmp_path / "results").exists()


def test_a_change_of_the_code_makes_old_units_foreign_but_a_comment_does_not(study, tmp_path):
    call(study())
    command = study()
    script = Path(command[1])
    script.write_text(script.read_text().replace("takes no time", "takes little time") + "# a comment\n")
    assert call(command).returncode == 0 and sorted(log(tmp_path)) == EVERY
    script.write_text(script.read_text() + "more = 1\n")
    answer = call(command)
    assert answer.returncode != 0 and "a fingerprint changes with the code" in " ".join(answer.stderr.split())


def test_check_runs_one_unit_again(study, tmp_path, monkeypatch):
    call(study())
    runner = load("runner")
    command = study()
    folder = tmp_path / "results"
    code = f"from course_lib import results; from pathlib import Path; results.FOLDER = Path({str(folder)!r})\n"
    script = Path(command[1])
    script.write_text(code + script.read_text())
    answer = call(command, "--check")
    assert answer.returncode == 0 and "gives the stored rows" in answer.stdout, answer.stderr
    content = json.loads((folder / "fake.json").read_text())
    for row in content["rows"]:
        row["value"] += 1
    runner.write(folder / "fake.json", content)
    answer = call(command, "--check")
    assert answer.returncode != 0 and "no longer gives the stored rows" in answer.stderr


# --- clusters ---

@pytest.mark.parametrize("backend, package", [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_that_is_not_installed(study, tmp_path, backend, package):
    command = study()
    (tmp_path / f"{package}.py").write_text("raise ImportError('not installed')")      # found before an installed one
    answer = call(command, "--backend", backend)
    assert answer.returncode != 0 and f"pip install {package}" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.extra
@pytest.mark.parametrize("backend, package, group", [("dask", "distributed", "cluster"), ("ray", "ray", "serve-ray")])
def test_a_cluster_runs_every_unit_once(study, tmp_path, backend, package, group):
    extra(package, group=group)
    answer = call(study(), "--backend", backend)
    assert answer.returncode == 0, answer.stderr
    assert sorted(log(tmp_path)) == EVERY and len(results.read(tmp_path / "results" / "fake.json", "fake").rows) == 6


@pytest.fixture
def imports_as_before():
    """A scheduler inside this process also imports what is uploaded to its workers, and reloads what is already there."""
    uploaded, path = ("provenance", "common", "runner"), list(sys.path)
    ours = {name: sys.modules.pop(name) for name in uploaded if name in sys.modules}
    yield
    for name in uploaded:
        sys.modules.pop(name, None)
    sys.modules.update(ours)
    sys.path[:] = path


@pytest.mark.extra
def test_a_dask_cluster_that_was_started_elsewhere(study, tmp_path, imports_as_before):
    """Its workers know nothing of this folder; and its address is not stored."""
    extra("distributed", group="cluster")
    from distributed import LocalCluster
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(elsewhere)) as cluster:
        address = cluster.scheduler_address
        answer = call(study(), "--backend", "dask", "--address", address)
    assert answer.returncode == 0, answer.stderr
    assert sorted(log(tmp_path)) == EVERY
    p = results.read(tmp_path / "results" / "fake.json", "fake").provenance
    assert "--address ADDRESS" in p["command"] and address not in json.dumps(p)


def test_one_configuration_alone_leaves_the_stored_results_as_they_are(study, tmp_path):
    answer = call(study(), "--only", "bb")
    assert answer.returncode == 0, answer.stderr
    assert sorted(log(tmp_path)) == [f"bb {s}" for s in range(3)] and not (tmp_path / "results").exists()
    rows = json.loads((tmp_path / "units" / "fake-mnist-5k.json").read_text())["rows"]
    assert [(row["configuration"], row["seed"]) for row in rows] == [("bb", 0), ("bb", 1), ("bb", 2)]


# --- the studies of the course ---

def load(name):
    if str(STUDIES) not in sys.path:
        sys.path.insert(0, str(STUDIES))
    return importlib.import_module(name)


# What tells the rows of one seed apart, beside words.
WHICH = ("seed", "sparsity", "amount", "bits", "batch", "budget", "whitened")


@pytest.mark.parametrize("name", NAMES)
def test_stored_results_are_whole(name):
    read = results.load(name)
    assert len(read.seeds) >= 3 and read.seeds == sorted(read.provenance["seeds"])
    keys = [sorted(f"{k}={v}" for k, v in row.items() if isinstance(v, str) or k in WHICH) for row in read.rows]
    assert len({tuple(key) for key in keys}) == len(keys), "two rows of one seed cannot be told apart"
    per_seed = {seed: sum(row["seed"] == seed for row in read.rows) for seed in read.seeds}
    assert len(set(per_seed.values())) == 1
    for row in read.rows:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, (int, float)))
    assert {"command", "date", "dataset", "versions", "machine", "revision", "fingerprint"} <= read.provenance.keys()
    assert name in read.provenance["command"] and name in read.caption
    assert not any(word in json.dumps(read.provenance) for word in ("/home", "/root", "/tmp", *host_names()))


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_importable_and_documented(name):
    module = load(name)
    assert len(module.__doc__) > 60 and len(module.unit.__doc__) > 40


@pytest.mark.extra
def test_a_part_of_the_experiment_on_mnist_gives_the_same_numbers_on_a_cluster(tmp_path):
    """joblib's Dask back end with two local workers, and the same units in this process."""
    extra("distributed", group="cluster")
    if not os.environ.get("COURSE_DATA"):
        skip("COURSE_DATA names no folder with the whole of MNIST")
    module, runner = load("distillation_mnist"), load("runner")
    part = runner.Study("distillation_mnist", (module.PART,), (0, 1), module.unit, dataset="mnist")
    on_the_cluster = runner.run(part, tmp_path / "dask", jobs=2, backend="dask")
    here = [runner.run_unit(part.unit, part.label(module.PART, seed), tmp_path / f"seed{seed}.json")[0] for seed in part.seeds]
    assert [unit["rows"] for unit in on_the_cluster] == [unit["rows"] for unit in here]
    assert len({str(unit["rows"]) for unit in here}) == 2       # the seed decides
