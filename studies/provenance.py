"""How the results of a study were made: enough to make them again, and nothing that names the machine or its owner."""
import ast
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("course-lib", "torch", "numpy", "scikit-learn", "onnxruntime", "joblib")


def code_of(script: Path, dataset: str) -> str:
    """A fingerprint of the data set and of what the study's script, `common` and course_lib do."""
    trees = []
    for source in [script, Path(__file__).with_name("common.py"), *sorted((ROOT / "course_lib").rglob("*.py"))]:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        trees.append(ast.dump(tree))
    return hashlib.sha256("\n".join([*trees, dataset]).encode()).hexdigest()[:16]


def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def machine() -> str:
    """The class of this machine."""
    return f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores"


def provenance(study, units: list[dict], address: str | None = None) -> dict:
    """How the results were made; the classes of the machines that did it, and nothing that names them."""
    def git(*arguments):
        answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    changed = git("status", "--porcelain", "--", "course_lib", "studies/*.py")
    command = " ".join(["python", f"studies/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command.replace(address, "ADDRESS") if address else command,
            "date": time.strftime("%Y-%m-%d"), "dataset": study.dataset, "seeds": list(study.seeds),
            "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in (*PACKAGES, *study.packages)}},
            "machine": "; ".join(sorted({unit["machine"] for unit in units})),
            "unit_seconds": round(sum(unit["seconds"] for unit in units), 1),
            "revision": git("rev-parse", "HEAD") or "unknown", "changed_since_revision": bool(changed), "fingerprint": study.fingerprint}
