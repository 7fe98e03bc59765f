"""The scripts behind the make targets, on tiny projects made for the occasion."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def notebook(*sources: str, **metadata) -> str:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=metadata))


# --- execute.py ---

def execute(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOLS / "execute.py"), *map(str, arguments)],
                          capture_output=True, text=True, encoding="utf-8")


def test_execute_stores_outputs_and_only_what_the_cells_make(tmp_path):
    path = tmp_path / "a.ipynb"
    write(tmp_path, {"a.ipynb": notebook("import os\nprint(1)\nprint(2)", "os.path.basename(os.getcwd())", "", vscode={"cwd": "/home/ada"})})
    first = execute(path)
    assert first.returncode == 0, first.stderr
    done = nbformat.read(path, as_version=4)
    nbformat.validate(done)
    one, two, _ = done.cells
    assert [c.execution_count for c in done.cells[:2]] == [1, 2]
    assert [o.text for o in one.outputs] == ["1\n2\n"]
    assert two.outputs[0].data["text/plain"] == repr(tmp_path.name)          # it works in the notebook's folder
    assert set(done.metadata) == {"course", "kernelspec", "language_info"}
    assert done.metadata.kernelspec.name == "python3" and "version" not in done.metadata.language_info
    seconds = done.metadata.course.seconds
    assert 0 < seconds < 60 and seconds == round(seconds, 1)
    assert one.metadata == {} and one.outputs[0].get("metadata", {}) == {}

    before = path.read_text(encoding="utf-8")
    assert execute(path).returncode == 0
    lines = [(a, b) for a, b in zip(before.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True) if a != b]
    assert all('"seconds"' in a for a, _ in lines), lines


def test_execute_leaves_a_failing_notebook_as_it_was_and_goes_on(tmp_path):
    good = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})])
    write(tmp_path, {"bad.ipynb": notebook("x = 1", "y = 2\nraise ValueError('sparsity is 2')", "x"),
                     "good.ipynb": nbformat.writes(good)})
    before = (tmp_path / "bad.ipynb").read_bytes()
    result = execute(tmp_path / "bad.ipynb", tmp_path / "good.ipynb")
    assert result.returncode == 1
    assert (tmp_path / "bad.ipynb").read_bytes() == before
    assert "bad.ipynb: not stored: code cell 2 (y = 2): ValueError: sparsity is 2" in result.stderr
    assert nbformat.read(tmp_path / "good.ipynb", as_version=4).cells[0].outputs[0].ename == "ZeroDivisionError"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ipynb", "good.ipynb"]


def test_cell_ids_follow_the_text_not_the_place(tool):
    normalise = tool("execute").normalise
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("a", "b", "a")], metadata={"course": {"level": 1}})
    ids = [cell.id for cell in normalise(book, 1.26).cells]
    assert book.metadata.course == {"level": 1, "seconds": 1.3}
    assert len(set(ids)) == 3
    book.cells.insert(0, nbformat.v4.new_code_cell("new"))
    assert [cell.id for cell in normalise(book, 1.0).cells][1:] == ids


def test_copy_of_the_checkout_has_no_environment_and_no_built_files(tool, tmp_path):
    write(tmp_path / "from", {"book/a.ipynb": "{}", "_config.yml": "", ".venv/x": "", "_build/html/x": "", "course_lib/__pycache__/x": "",
                              "wheelhouse/torch.whl": ""})
    copy = tool("checkout").copy_checkout(tmp_path / "to", tmp_path / "from")
    assert sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()) == ["_config.yml", "book/a.ipynb"]


# --- constraints.py ---

def test_constraints_leave_out_direct_pins_cuda_and_the_build_of_a_version(tool):
    text = tool("constraints").constraints(
        "Jinja2==3.1.6\ntorch==2.13.0+cpu\nnvidia-cublas==13.0\ncuda_bindings==13\ntriton==3.5\npip==26\n"
        "ruamel.yaml==1.0+local\n-e git+x#egg=y\ncourse_lib==0.1.0\n", "# direct\ntorch==2.13.0\n-e .\n")
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["jinja2==3.1.6", "ruamel-yaml==1.0"]


def test_every_requirement_is_pinned_and_constrained_once():
    pins = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith(("#", "-"))]
    constraints = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert pins and all(line.count("==") == 1 for line in pins + constraints)
    names = [line.split("==")[0].lower().replace("_", "-") for line in pins + constraints]
    assert len(names) == len(set(names))
    assert not [line for line in constraints if "nvidia" in line or "cuda" in line or "triton" in line or "+" in line]


# --- sweep.py ---

def passed(tool, **changes):
    values = {"code": 0, "passed": 1, "failed": 0, "errors": 0, "skipped": 0, "headline": "", "message": "", "output": ""}
    return tool("checkout").Outcome(**{**values, **changes})


PACKAGE = {
    "course_lib/__init__.py": "import importlib\n", "course_lib/data.py": "import numpy\n",
    "course_lib/models.py": "from . import data\n", "course_lib/cost.py": "def f():\n    from .models import Net\n",
    "course_lib/timing.py": "", "course_lib/coding/__init__.py": "from .huffman import encode\n",
    "course_lib/coding/huffman.py": "from ..timing import x\n", "course_lib/coding/other.py": "",
}


@pytest.mark.parametrize("code, expected", [
    ("import numpy", set()),
    ("from course_lib import data", {"", "data"}),
    ("from course_lib import models, timing", {"", "models", "data", "timing"}),
    ("from course_lib.cost import f", {"", "cost", "models", "data"}),
    ("import course_lib.data as d", {"", "data"}),
    ("from course_lib.coding import encode", {"", "coding", "coding.huffman", "timing"}),
    ("import course_lib", {"", "data", "models", "cost", "timing", "coding", "coding.huffman", "coding.other"}),
    ("from course_lib import surprise", {"", "data", "models", "cost", "timing", "coding", "coding.huffman", "coding.other"}),
])
def test_a_notebook_depends_on_the_modules_that_it_reaches(tool, tmp_path, code, expected):
    write(tmp_path, PACKAGE)
    assert set(tool("sweep").dependencies(code, tmp_path / "course_lib")) == expected


@pytest.fixture
def project(tmp_path):
    """A book of two notebooks; the first uses the data module, a table, and a magic."""
    return write(tmp_path, {**PACKAGE, "requirements.txt": "numpy==1\n", "tests/sanitize.cfg": "", "book/data/t.csv": "1",
                            "studies/results/s.json": "1", "book/a.ipynb": notebook(
                                "%matplotlib inline\nfrom course_lib import data", "open('data/t.csv'), load('s')"),
                            "book/b.ipynb": notebook("print(1)")})


class Runs:
    """Stands in for nbval: notes what is run, and gives the outcome that was ordered."""

    def __init__(self, tool):
        self.tool, self.seen, self.orders = tool, [], {}

    def __call__(self, path, arm, root, report):
        self.seen.append((path.stem, arm.name))
        order = self.orders.get(self.seen[-1], {})
        if isinstance(order, BaseException):
            raise order
        return passed(self.tool, **order)


def do_sweep(tool, root, runs, *, arms=("base", "seed1"), **options):
    module, runs.seen = tool("sweep"), []
    chosen = [arm for arm in module.ARMS if arm.name in arms]
    results, _ = module.sweep(tool("checkout").notebooks(root), chosen, root=root, run=runs, **options)
    return {pair: result["outcome"] for pair, result in results.items()}


def test_sweep_runs_again_only_what_changed(tool, project):
    runs = Runs(tool)
    assert set(do_sweep(tool, project, runs).values()) == {"held"}
    assert runs.seen == [("a", "base"), ("a", "seed1"), ("b", "base"), ("b", "seed1")]
    assert len(do_sweep(tool, project, runs)) == 4 and runs.seen == []
    for file, text, again in [("course_lib/data.py", "x = 1", {"a"}), ("course_lib/timing.py", "x = 1", set()),
                              ("book/data/t.csv", "2", {"a"}), ("studies/results/s.json", "2", {"a"}), ("book/b.ipynb", notebook("print(2)"), {"b"}),
                              ("requirements.txt", "numpy==2\n", {"a", "b"})]:
        write(project, {file: text})
        do_sweep(tool, project, runs)
        assert {name for name, _ in runs.seen} == again, file


def test_sweep_sees_a_changed_output_but_not_a_changed_picture_or_time(tool, project):
    runs, path = Runs(tool), project / "book" / "b.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].outputs = [nbformat.v4.new_output("display_data", data={"text/plain": "1", "image/png": "AA"})]
    nbformat.write(book, path)
    do_sweep(tool, project, runs)
    book.metadata.course = {"seconds": 9}
    book.cells[0].outputs[0].data["image/png"] = "BB"
    nbformat.write(book, path)
    do_sweep(tool, project, runs)
    assert runs.seen == []
    book.cells[0].outputs[0].data["text/plain"] = "2"
    nbformat.write(book, path)
    do_sweep(tool, project, runs)
    assert runs.seen == [("b", "base"), ("b", "seed1")]


def test_sweep_keeps_a_failure_until_something_changes_or_retry(tool, project):
    runs = Runs(tool)
    runs.orders["a", "seed1"] = {"code": 1, "passed": 0, "failed": 1, "message": "the claim does not hold"}
    assert do_sweep(tool, project, runs)["a", "seed1"] == "FAILED"
    stored = json.loads((project / "_build" / "sweep" / "a--seed1.json").read_text(encoding="utf-8"))
    assert stored["message"] == "the claim does not hold" and stored["seconds"] >= 0
    assert do_sweep(tool, project, runs)["a", "seed1"] == "FAILED" and runs.seen == []
    runs.orders.clear()
    assert do_sweep(tool, project, runs, retry=True)["a", "seed1"] == "held"
    assert runs.seen == [("a", "seed1")]


@pytest.mark.parametrize("order", [{"code": 5, "passed": 0}, {"code": 0, "passed": 0}, {"code": 0, "skipped": 1}, {"code": -9}])
def test_sweep_counts_nothing_as_held_that_was_not_wholly_run(tool, project, order):
    runs = Runs(tool)
    runs.orders["a", "base"] = order
    assert do_sweep(tool, project, runs)["a", "base"] == "FAILED"
    do_sweep(tool, project, runs)
    assert runs.seen == ([] if order["code"] == 0 else [("a", "base")])        # no verdict is not kept


def test_sweep_loses_nothing_when_interrupted(tool, project):
    runs = Runs(tool)
    runs.orders["b", "base"] = KeyboardInterrupt()
    assert set(do_sweep(tool, project, runs)) == {("a", "base"), ("a", "seed1")}
    runs.orders.clear()
    assert len(do_sweep(tool, project, runs)) == 4
    assert runs.seen == [("b", "base"), ("b", "seed1")]


def test_sweep_says_what_was_not_run(tool, project, monkeypatch):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    runs, module = Runs(tool), tool("sweep")
    assert do_sweep(tool, project, runs, arms=("base", "mnist")).keys() == {("a", "base"), ("b", "base")}
    results = {("a", "base"): {"outcome": "held", "seconds": 4.2}, ("b", "base"): {"outcome": "FAILED", "seconds": 10}}
    assert module.table(["a", "b"], ["base", "mnist"], results).splitlines() == [
        "notebook  base         mnist", "a         held 4 s     not run", "b         FAILED 10 s  not run"]


def test_each_arm_changes_one_thing_against_the_base(tool, monkeypatch):
    monkeypatch.setenv("COURSE_SEED", "9")
    arms = {arm.name: arm.environment() for arm in tool("sweep").ARMS}
    assert list(arms) == ["base", "seed1", "seed2", "seed3", "seed4", "threads2", "isa-default", "mnist"]
    changed = {name: {k for k in env | arms["base"] if env.get(k) != arms["base"].get(k)} for name, env in arms.items()}
    assert changed == {"base": set(), **{f"seed{n}": {"COURSE_SEED"} for n in range(1, 5)}, "threads2": {"OMP_NUM_THREADS"},
                       "isa-default": {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"}, "mnist": {"COURSE_DATASET"}}
    assert arms["base"]["OMP_NUM_THREADS"] == "1" and arms["seed3"]["COURSE_SEED"] == "3"


def test_sweep_runs_nbval_in_the_setting_of_the_arm(tool, tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "import os\nprint(os.environ['OMP_NUM_THREADS'])", execution_count=1,
        outputs=[nbformat.v4.new_output("stream", text="1\n")])])
    write(tmp_path, {"book/a.ipynb": nbformat.writes(book), "tests/sanitize.cfg": ""})
    module = tool("sweep")
    threads2 = next(arm for arm in module.ARMS if arm.name == "threads2")
    outcome = module.run_nbval(tmp_path / "book" / "a.ipynb", threads2, tmp_path, tmp_path / "r.xml")
    assert (outcome.code, outcome.passed, outcome.failed) == (1, 0, 1)
    assert "Cell outputs differ" in outcome.message and "'1\\n' == '2\\n'" in outcome.message


# --- faults.py ---

COURSE = {
    "course_lib/__init__.py": "",
    "course_lib/arithmetic.py": "def half(n):\n    return n // 2\n\ndef same(n):\n    return n\n",
    "tests/test_arithmetic.py": (
        "import os\nimport pytest\n\n"
        "def test_half():\n    from course_lib.arithmetic import half\n    assert half(5) == 2\n\n"
        "def test_same():\n    from course_lib.arithmetic import same\n    same(3)\n\n"
        "def test_skipped():\n    pytest.skip('no data')\n\n"
        "@pytest.fixture\ndef three():\n    from course_lib.arithmetic import same\n    assert same(3) == 3\n\n"
        "def test_three(three):\n    pass\n"),
    "pyproject.toml": "[tool.pytest.ini_options]\n",
}


def fault(name="rounding", file="course_lib/arithmetic.py", old="n // 2", new="-(-n // 2)", test="tests/test_arithmetic.py::test_half"):
    return {"name": name, "file": file, "old": old, "new": new, "test": test}


def faults_toml(*faults) -> str:
    return "".join("[[fault]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in f.items()) for f in faults)


def run_faults(root: Path, *faults) -> subprocess.CompletedProcess:
    write(root, {**COURSE, "tests/faults.toml": faults_toml(*faults)})
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    result = subprocess.run([sys.executable, str(TOOLS / "faults.py"), "--root", str(root)],
                            capture_output=True, text=True, encoding="utf-8",
                            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})      # these tests need none
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before        # the checkout is untouched
    return result


def test_faults_are_caught_and_missed_and_told_apart(tmp_path):
    result = run_faults(
        tmp_path,
        fault("rounding"),
        fault("unseen", old="return n\n", new="return n + 1\n", test="tests/test_arithmetic.py::test_same"),
        fault("twice", old="return n", new="return 0"),
        fault("nowhere", old="n // 3"),
        fault("nameless", old="n // 2", new="m // 2"),
        fault("no file", file="course_lib/missing.py"),
        fault("no Python", new="n //"),
        fault("import", old="def half(n):", new="def halve(n):"),
        fault("fixture", old="return n\n", new="return n + 1\n", test="tests/test_arithmetic.py::test_three"))
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    rows = lines[lines.index("") + 2:][:9]
    words = dict(line.rsplit(maxsplit=3)[::2] for line in rows)
    assert words == {"rounding": "caught", **dict.fromkeys(
        ("unseen", "twice", "nowhere", "nameless", "no file", "no Python", "import", "fixture"), "MISSED")}
    assert "unseen (course_lib/arithmetic.py): the test still passes" in result.stdout
    assert "`old` occurs 2 times in course_lib/arithmetic.py, not once" in result.stdout
    assert "`old` occurs 0 times in course_lib/arithmetic.py, not once" in result.stdout
    assert "there is no file course_lib/missing.py" in result.stdout
    assert "would be no valid Python" in result.stdout
    assert result.stdout.splitlines()[-1] == "faults: 1 caught, 8 missed"


def test_faults_all_caught(tmp_path):
    result = run_faults(tmp_path, fault())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "faults: 1 caught, 0 missed"


@pytest.mark.parametrize("test, message", [
    ("tests/test_arithmetic.py::test_misspelt", "pytest's exit code is 4"),
    ("tests/test_arithmetic.py::test_skipped", "a named test was skipped"),
])
def test_faults_need_tests_that_pass_unbroken(tmp_path, test, message):
    result = run_faults(tmp_path, fault(test=test))
    assert result.returncode == 1 and message in result.stdout


def test_every_planted_fault_fits_the_code_once(tool):
    """Or a later change has moved the line, and `make faults` would stop there, at the end of a long check."""
    root = TOOLS.parent
    for planted in tool("faults").read_faults(root / "tests" / "faults.toml"):
        assert (root / planted.file).read_text(encoding="utf-8").count(planted.old) == 1, planted.name


def test_faults_never_test_another_course_lib(tool, tmp_path):
    write(tmp_path, COURSE)
    shutil.rmtree(tmp_path / "course_lib")              # so `import course_lib` finds the installed one, or none
    module = tool("faults")
    outcome = module.run_in_copy(["tests/test_arithmetic.py::test_half"], tmp_path, 60)
    assert outcome.passed == 0 and "could not run" in module.judge(outcome)


@pytest.mark.parametrize("entries, message", [
    ([fault(), fault()], "two faults are named"),
    ([{"name": "short"}], "fault 'short' must have exactly"),
    ([{**fault(), "extra": "x"}], "must have exactly"),
])
def test_faults_list_is_checked(tool, tmp_path, entries, message):
    write(tmp_path, {"faults.toml": faults_toml(*entries)})
    with pytest.raises(ValueError, match=message):
        tool("faults").read_faults(tmp_path / "faults.toml")


# --- the scripts around them ---

def test_browser_script_never_fails(tmp_path):
    # No browser on PATH, no apt-get, and a Python without playwright.
    commands = {name: shutil.which(name) for name in ("mkdir", "id", "sh")}
    for name, path in commands.items():
        (tmp_path / name).symlink_to(path)
    result = subprocess.run(["sh", str(TOOLS / "browser.sh"), "no-such-python"], cwd=tmp_path,
                            env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "the tests that need one are skipped" in result.stdout


def test_make_help_lists_the_targets():
    if not shutil.which("make"):
        pytest.skip("there is no make here")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    result = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    for target in ("book", "test", "sweep", "faults", "lab", "help", "clean"):
        assert f"  make {target} " in result.stdout


def test_make_refuses_an_old_python(tmp_path):
    if not shutil.which("make"):
        pytest.skip("there is no make here")
    for name in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && { echo Python 3.9.1; exit 0; }\nexit 1\n")
    old.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    result = subprocess.run(["make", "-C", str(tmp_path), "book", f"PYTHON={old}"], capture_output=True, text=True, env=env)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stdout and "Python 3.9.1" in result.stdout
    assert not (tmp_path / ".venv").exists()
