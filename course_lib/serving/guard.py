"""The guard: a small program between us and a server, which outlives neither of them.

It starts the server and waits for one of three things: the pipe from us closes (we ask for the end, or we are gone, even
if killed without a chance to tidy up), we are no longer its parent, or the server ends. Then it asks the server to stop and,
after a while, kills whatever is left of it and of the processes that it started. Usage, as a script of its own, which
imports nothing else: guard.py OUR_PID GRACE_SECONDS COMMAND... Book: chapter 6, "Start, ask, stop".
"""
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

__all__ = ["processes_below"]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36        # Linux, sys/prctl.h


def _main(arguments: list[str]) -> int:
    """Guard a server; return the code with which it ended."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    control = _process_control()
    control(PR_SET_CHILD_SUBREAPER, 1)          # processes below us whose parent ends become our children: none is lost
    told = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: told.set())
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True,
                              **({} if os.name == "nt" else {"preexec_fn": lambda: control(PR_SET_PDEATHSIG, signal.SIGTERM)}))
    try:
        print(server.pid, flush=True)
        threading.Thread(target=_wait_for_the_end, args=(told,), daemon=True).start()
        while not told.wait(0.05) and server.poll() is None and os.getppid() == parent:
            pass
        server.terminate()
        deadline = time.monotonic() + grace
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        _kill_all(server)
    return server.wait()


def processes_below(pid: int) -> list[int]:
    """The processes that `pid` started, those that they started, and so on. Linux; elsewhere none are found."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:                     # it has just ended
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [*children.get(pid, [])]
    for one in found:                       # grows while it is read
        found += children.get(one, [])
    return found


def _wait_for_the_end(told: threading.Event) -> None:
    while os.read(0, 100):
        pass
    told.set()


def _process_control():
    """Linux's prctl; elsewhere a function that does nothing."""
    if sys.platform != "linux":
        return lambda *arguments: None
    prctl = ctypes.CDLL(None).prctl
    return lambda option, value: prctl(option, ctypes.c_ulong(int(value)), 0, 0, 0)


def _kill_all(server: subprocess.Popen) -> None:
    """The server's group and, on Linux, every process below us; again until none is left."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(server.pid)], capture_output=True)
        return
    for _ in range(100):
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):       # it has ended
            pass
        left = processes_below(os.getpid())
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not left:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
