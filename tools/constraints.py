"""Write constraints.txt: pins of what the packages in requirements.txt need in turn.

`make constraints` runs it in the environment that was just installed. A constraint binds only where
pip needs the package at all, so one file serves every platform. Left out: the pins that are already
in requirements.txt, pip itself, and the packages that only the CUDA build of torch needs.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# What the packages in requirements.txt need in turn. Written by `make constraints`; don't edit it.
# A pin binds only where pip needs the package. CUDA packages are left out: torch pins its own.
"""
CUDA = re.compile(r"nvidia|cuda|triton", re.IGNORECASE)


def normal(name: str) -> str:
    """Spell a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(frozen: str, requirements: str) -> str:
    """Make the text of constraints.txt from `pip freeze --all` and the text of requirements.txt."""
    direct = {normal(m[1]) for m in re.finditer(r"(?m)^([\w.-]+)==", requirements)}
    pins = {}
    for line in frozen.splitlines():
        name, _, version = line.partition("==")
        if version and normal(name) not in direct | {"pip", "course-lib"} and not CUDA.search(name):
            pins[normal(name)] = version.split("+")[0]       # "+cpu" names a build, not a version
    return HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"],
                            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    text = constraints(frozen, (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")
    print(f"constraints.txt: {text.count('==')} pins")
