"""Run a study: one unit for each configuration and seed, in parallel, so that nothing finished is lost.

    python studies/NAME.py [--jobs 2] [--backend dask --address tcp://…] [--dataset mnist] [--only CONFIGURATION] [--check]

1. Each unit that is finished is written at once to a file of its own, whole or not at all.
2. A run that was interrupted, or lost a worker, goes on with the units that are missing.
3. When all are there, results/NAME.json is written: the rows of all units, and how they were made.

A unit's file that is damaged, or was made by other code, is refused by name and never overwritten.
"""
import argparse
import contextlib
import dataclasses
import functools
import inspect
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from provenance import code_of, machine, provenance
from tqdm import tqdm

from course_lib import results

HERE = Path(__file__).parent
RESTARTS = 3        # how often a pool that lost a worker is started again


@dataclasses.dataclass(frozen=True)
class Study:
    """What to run. `unit` takes a configuration's name and a seed, and gives rows: flat dictionaries.

    jobs: units at the same time, unless the command line says otherwise; measured: no number comes out twice the same, so
    `--check` compares the names only; packages: what is needed beyond the course, for the provenance.
    """
    name: str
    configurations: tuple[str, ...]
    seeds: tuple[int, ...]
    unit: Callable[[str, int], list[dict]]
    dataset: str = "mnist-5k"
    jobs: int = 2
    measured: bool = False
    packages: tuple[str, ...] = ()

    @functools.cached_property      # of the code that runs, even if the files change meanwhile
    def fingerprint(self) -> str:
        """Changes with the data set and the code that decides the rows; not with comments and docstrings."""
        return code_of(Path(inspect.getsourcefile(self.unit)), self.dataset)

    def label(self, configuration: str, seed: int) -> dict:
        """What identifies a unit; stored with it, and compared when it is read."""
        return {"format": results.FORMAT, "study": self.name, "configuration": configuration, "seed": seed,
                "dataset": self.dataset, "fingerprint": self.fingerprint}


def write(path: Path, content: dict) -> None:
    """Write JSON whole or not at all, whoever else writes beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)


def read_unit(path: Path, label: dict) -> dict:
    """Read a finished unit. Raises ValueError, with the file's name, if it is not whole or not this unit's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or half-written ({error}); delete it, and the unit runs again") from error
    other = [key for key, value in label.items() if not isinstance(content, dict) or content.get(key) != value]
    if other or not isinstance(content.get("rows"), list):
        raise ValueError(f"{path} belongs to something else (its {', '.join(other) or 'rows'} differ; a fingerprint changes "
                         "with the code); move it away or delete it, and the unit runs again")
    return content


def run_unit(unit: Callable, label: dict, path: Path) -> tuple[dict, Path]:
    """Run one unit in a worker, with one thread, and store it there and then."""
    import torch
    torch.set_num_threads(1)
    os.environ["COURSE_DATASET"] = label["dataset"]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path.with_suffix(".lock")):      # a worker may outlive a run that was killed
            if not path.exists():
                begin = time.perf_counter()
                rows = unit(label["configuration"], label["seed"])
                write(path, {**label, "seconds": round(time.perf_counter() - begin, 1), "machine": machine(), "rows": rows})
            return read_unit(path, label), path
    except Exception as error:      # of the unit, or of write: it refuses NaN and infinity
        raise RuntimeError(f"study {label['study']}, {label['configuration']}, seed {label['seed']}: {error!r}") from error


def run(study: Study, folder: Path, *, jobs: int = 1, backend: str = "loky", address: str | None = None) -> list[dict]:
    """Run the units that are missing in `folder`, and return all of them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    units = [(study.label(c, s), folder / f"{c.replace(' ', '-')}--seed{s}.json") for c in study.configurations for s in study.seeds]
    with _alone(folder), tqdm(total=len(units), desc=study.name, unit="unit", disable=None) as bar:
        for attempt in range(RESTARTS + 1):
            done = [path for label, path in units if path.exists() and read_unit(path, label)]
            missing = [(label, path) for label, path in units if path not in done]
            bar.update(len(done) - bar.n)
            if not missing:
                return [read_unit(path, label) for label, path in units]
            try:
                with _pool(backend, address, jobs):
                    work = (joblib.delayed(run_unit)(study.unit, label, path) for label, path in missing)
                    # Ray's back end gives everything at the end; its workers store their units at once all the same.
                    how = "list" if backend == "ray" else "generator_unordered"
                    for record, path in joblib.Parallel(n_jobs=jobs, return_as=how, batch_size=1)(work):
                        if not path.exists():           # a worker on another machine
                            write(path, record)
                        bar.update()
            except TerminatedWorkerError:
                print(f"{study.name}: a worker died; its unit starts again", file=sys.stderr)
            except KeyboardInterrupt:
                raise SystemExit(f"{study.name}: interrupted; what is finished is kept, run it again") from None
    raise RuntimeError(f"{study.name}: workers died {RESTARTS + 1} times (out of memory?); what is finished is kept, run it again")


@contextlib.contextmanager
def _alone(folder: Path):
    """Refuse to run beside another run of the same study; a killed one leaves no lock behind."""
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise SystemExit(f"another run of this study is at work in {folder}; wait for it, or stop it") from None


@contextlib.contextmanager
def _pool(backend: str, address: str | None, jobs: int):
    """joblib's own back ends: processes here, or a cluster of Dask or Ray."""
    client = None
    try:
        if backend == "dask":
            from distributed import Client
            client = Client(address) if address else Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
            for name in ("provenance", "common", "runner") if address else ():     # workers elsewhere must have course_lib only
                client.upload_file(str(Path(__file__).with_name(f"{name}.py")))
        elif backend == "ray":
            import ray
            from ray.util.joblib import register_ray
            # The workers find the modules that the scripts share in a copy of this folder, wherever they are.
            ray.init(address, ignore_reinit_error=True, include_dashboard=False, runtime_env={
                "working_dir": str(Path(__file__).parent), "excludes": ["units", "results", "__pycache__"]})
            register_ray()
    except ImportError as error:
        package = {"dask": "distributed", "ray": "ray"}[backend]
        raise SystemExit(f"--backend {backend} needs a package that is not installed: pip install {package}") from error
    try:
        with joblib.parallel_config(backend=backend):
            yield
    finally:
        if client is not None:
            client.close()
        if backend == "ray":
            ray.shutdown()


def main(study: Study) -> None:
    """The command line of a study's script."""
    parser = argparse.ArgumentParser(description=inspect.getmodule(study.unit).__doc__)
    parser.add_argument("--jobs", type=int, default=study.jobs, help="units that run at the same time (default: %(default)s)")
    parser.add_argument("--backend", choices=("loky", "dask", "ray"), default="loky", help="processes here, or a cluster")
    parser.add_argument("--address", help="the cluster's scheduler; without it one is started here")
    parser.add_argument("--dataset", default=study.dataset, help="another data set; its results are shown, not stored")
    parser.add_argument("--only", choices=study.configurations, help="one configuration; its results are shown, not stored")
    parser.add_argument("--check", action="store_true", help="run one unit again, and compare it with the stored results")
    options = parser.parse_args()
    if options.check:
        return check(study)
    chosen = (options.only,) if options.only else study.configurations
    study_here = dataclasses.replace(study, dataset=options.dataset, configurations=chosen)
    units = run(study_here, HERE / "units" / study.name / options.dataset, jobs=options.jobs, backend=options.backend,
                address=options.address)
    rows = [{"configuration": unit["configuration"], "seed": unit["seed"], **row} for unit in units for row in unit["rows"]]
    content = {"format": results.FORMAT, "study": study.name,
               "provenance": provenance(study_here, units, options.address), "rows": rows}
    whole = options.dataset == study.dataset and not options.only
    path = HERE / "results" / f"{study.name}.json" if whole else HERE / "units" / f"{study.name}-{options.dataset}.json"
    write(path, content)
    print(f"{study.name}: {len(units)} units, {len(rows)} rows in {path}")


def check(study: Study) -> None:
    """Run one unit, chosen by chance, and raise SystemExit if its rows are not the stored ones."""
    stored = results.load(study.name)
    configuration, seed = random.choice(study.configurations), random.choice(study.seeds)
    expected = [row for row in stored.rows if (row["configuration"], row["seed"]) == (configuration, seed)]
    with tempfile.TemporaryDirectory() as folder:
        record, _ = run_unit(study.unit, study.label(configuration, seed), Path(folder, "unit.json"))

    def exact(rows):            # times are measured, and differ from run to run
        return [{k: type(v) if study.measured and not isinstance(v, str) else v for k, v in row.items()
                 if not k.startswith(("cpu_", "configuration", "seed"))} for row in rows]

    if exact(record["rows"]) != exact(expected):
        raise SystemExit(f"{study.name}: {configuration}, seed {seed} no longer gives the stored rows: run the study again")
    print(f"{study.name}: {configuration}, seed {seed} gives the stored rows")
