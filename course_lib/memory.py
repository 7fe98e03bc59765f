"""Peak memory: how much more of the machine a piece of code takes than there was before it.

What a process touched stays with it for long, so each measurement starts a fresh one: it sets up, notes the memory that it
holds, runs the code, and reads the highest point on the way. Book: "On a phone: a model in ExecuTorch".
"""
import concurrent.futures
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from . import intervals

__all__ = ["RUNTIMES", "file_peak", "peak_bytes"]

# What a process has imported before it opens a model file, and the function that opens it.
RUNTIMES = {"ONNX Runtime": ("import onnxruntime", "deploy.load_onnx"),
            "ExecuTorch": ("import torch, executorch.extension.pybindings._portable_lib", "mobile.load_pte")}

_CHILD = """
import ctypes, gc, sys
scope = {}
def peak():
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            found = dict(line.split(":", 1) for line in file)
        return tuple(1024 * int(found[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    if sys.platform == "win32":
        import psutil
        most = psutil.Process().memory_info().peak_wset
        return most, most
    import resource
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most
exec(compile(sys.argv[1], "setup", "exec"), scope)
code = compile(sys.argv[2], "code", "exec")
gc.collect()
try:
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
except (AttributeError, OSError, TypeError):        # another system, or a container that does not allow it
    pass
before, highest = peak()
exec(code, scope)
print("", max(0, peak()[1] - max(before, highest)))
"""


def peak_bytes(code: str, *, setup: str = "", repeats: int = 5) -> intervals.Estimate:
    """Most bytes of memory that `code` held at one moment beyond what `setup` left: the median of fresh processes.

    Linux counts the resident memory (its peak is set back after the setup) in pages, and in batches for each processor: a
    few hundred kB are its resolution. Where the peak cannot be set back (macOS, Windows, some containers), the code must rise
    above the setup's own peak to be seen, so the figure is a lower bound.

    Args:   code, setup: Python source; the code sees the setup's names, and course_lib can be imported.
    Returns: the median in bytes, with its bootstrap interval.
    Raises: ValueError for fewer than 2 repeats; RuntimeError with the last line of its error if the code fails.
    """
    if repeats < 2:
        raise ValueError(f"need at least 2 repeats, got {repeats}")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:         # memory, unlike time, bears company
        return intervals.bootstrap_median(list(pool.map(lambda _: _one_peak(code, setup), range(repeats))))


def file_peak(source: str | Path | bytes, images: np.ndarray, *, runtime: str = "ONNX Runtime",
              repeats: int = 5) -> intervals.Estimate:
    """Peak memory of opening a model file and running it once, beyond that of a process which imported the runtime.

    The runtime's own preparation at its first file is in it: take the same of a model that does next to nothing as the floor.

    Args:   source: the file or its content; images: one batch, float32; runtime: "ONNX Runtime" or "ExecuTorch".
    Returns, Raises: as `peak_bytes`; ValueError for another runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}; got {runtime!r}")
    imports, function = RUNTIMES[runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(source if not isinstance(source, bytes) else Path(folder, "model"))
        if isinstance(source, bytes):
            path.write_bytes(source)
        np.save(Path(folder, "images.npy"), images)
        setup = (f"import numpy\nfrom course_lib import deploy, mobile\n{imports}\n"
                 f"images = numpy.load({str(Path(folder, 'images.npy'))!r})")
        return peak_bytes(f"{function}({str(path)!r})(images)", setup=setup, repeats=repeats)


def _one_peak(code: str, setup: str) -> int:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.run([sys.executable, "-c", _CHILD, setup, code], capture_output=True, text=True, encoding="utf-8",
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"})
    if child.returncode:
        raise RuntimeError(f"the measured code failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
    return int(child.stdout.split()[-1])
