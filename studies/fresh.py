"""A unit in a process of its own, so that the rows of several units hold what changes from one process run to the next."""
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_FLAG = "--in-fresh-process"


def fresh_process(script: Path, function: str, **arguments) -> list[dict]:
    """Call a function of a study's script in a new process, and return its rows. Raises RuntimeError with what went wrong."""
    done = subprocess.run([sys.executable, str(script), _FLAG, function, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function} failed: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def answered(*functions: Callable[..., list[dict]]) -> bool:
    """Whether this is such a new process; its rows are printed then. A script asks this before all else."""
    if sys.argv[1:2] != [_FLAG]:
        return False
    function = {f.__name__: f for f in functions}[sys.argv[2]]
    print(json.dumps(function(**json.loads(sys.argv[3]))))
    return True
