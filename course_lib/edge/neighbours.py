"""A noisy neighbour: a process that is always busy, on the same core as the model if the system allows it.

Edge devices do more than run a model: they encode video, write to disks, talk to networks. Book: chapter 6, "A noisy neighbour".
"""
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["neighbour"]

# Ends when its standard input is closed: also when we are killed, since the system closes it then.
_BUSY = """
import os, sys, threading
if sys.argv[1:]:
    os.sched_setaffinity(0, [int(sys.argv[1])])
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print("busy", flush=True)
while True:
    sum(range(1000))
"""


@contextlib.contextmanager
def neighbour(core: int | None = None) -> Iterator[int]:
    """A busy process beside us inside a `with`, by default on any core; give its process id. It always ends with the `with`.

    Args:   core: the core on which it must stay; None for wherever the system puts it.
    Raises: ValueError for a core that this process may not use.
    """
    if core is not None:
        if not hasattr(os, "sched_setaffinity") or core not in range(os.cpu_count() or 1):
            raise ValueError(f"a process cannot be kept on core {core!r} here; pass None, or the core that `one_core` gives")
    process = subprocess.Popen([sys.executable, "-c", _BUSY, *([] if core is None else [str(core)])],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process.stdout.readline().strip() != b"busy":
            raise RuntimeError("the neighbour did not start")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
