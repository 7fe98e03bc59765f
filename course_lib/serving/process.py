"""A server as a child of ours: started on a free port, awaited, and stopped with all that it started.

A context manager alone would leave the server behind if we are killed. So a small program, the `guard`, stands between us
and the server and ends it as soon as we are gone, for whatever reason. Book: chapter 6, "Start, ask, stop".
"""
import contextlib
import dataclasses
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from . import guard

__all__ = ["Server", "running"]

HOST = "127.0.0.1"              # this machine only: nobody else can reach it
TAIL = 2000                     # characters of the log in an error
PORT_TAKEN = "address already in use"
LISTENING = "0A"                # a state in /proc/net/tcp


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server. port, url: where it listens. pid: its process; it may have started more."""
    port: int
    pid: int
    _guard: subprocess.Popen = dataclasses.field(repr=False)
    _log: BinaryIO = dataclasses.field(repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._guard.poll() is None

    def log(self) -> str:
        """All that the server has printed so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def processes(self) -> list[int]:
        """The ids of all its processes. Linux; elsewhere only its own."""
        return guard.processes_below(self._guard.pid) or [self.pid]

    def cpu_seconds(self) -> float:
        """Processor time that all its processes have used so far: take the difference of two readings.

        Linux tells, in steps of about 10 ms; elsewhere this is nan.
        """
        if not Path("/proc/self/stat").exists():
            return float("nan")
        ticks = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))           # user, system, and those of children that have ended
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: Sequence[str], *, health: str = "/health", seconds: float = 60, grace: float = 5,
            environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a server inside a `with`; afterwards none of its processes is left, however the block was left.

    Also not if this process is killed: then its guard notices. Python prints at once, and its libraries use one thread.

    Args:   command: program and arguments. "{port}" in one of them becomes a free port; without any, "--port" and the
            port are added. health: the path that answers 200 once the server is ready.
            seconds: how long that may take. grace: seconds to stop by itself before it is killed.
            environment: variables to set for it.
    Raises: RuntimeError with the end of its log if it ends or is not ready in time.
    """
    with contextlib.ExitStack() as stack:
        for attempt in range(3):
            try:
                server = stack.enter_context(_started(command, health, seconds, grace, environment or {}))
                break
            except RuntimeError as error:       # somebody may have taken the port since we found it free
                if PORT_TAKEN not in str(error).lower() or attempt == 2:
                    raise
        yield server


@contextlib.contextmanager
def _started(command, health, seconds, grace, environment) -> Iterator[Server]:
    port = _free_port()
    command = [part.replace("{port}", str(port)) for part in map(str, command)] \
        + ([] if any("{port}" in str(part) for part in command) else ["--port", str(port)])
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryFile() as log, subprocess.Popen(
            [sys.executable, "-I", guard.__file__, str(os.getpid()), str(grace), *command], env=environment, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True) as watched:
        first = None
        try:
            first = watched.stdout.readline()
            server = Server(port, int(first or 0), watched, log)
            _wait_until_healthy(server, health, seconds)
            yield server
        finally:
            _stop(watched, int(first or 0), grace)


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind((HOST, 0))
        return candidate.getsockname()[1]


def _wait_until_healthy(server: Server, health: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.alive() and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=max(0.1, deadline - time.monotonic()))
        try:
            connection.request("GET", health)
            if connection.getresponse().status == 200 and _listens(server):
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    what = "was not ready in time" if server.alive() else f"ended with code {server._guard.returncode} before it was ready"
    raise RuntimeError(f"the server {what}. The end of its log:\n{server.log()[-TAIL:]}")


def _listens(server: Server) -> bool:
    """Whether it is this server that answers, and not a stranger at the same port. Linux; elsewhere we trust the port."""
    if not Path("/proc/net/tcp").exists():
        return server.alive()
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{fields[9]}]" for fields in sockets
            if fields[1].endswith(f":{server.port:04X}") and fields[3] == LISTENING}
    for pid in server.processes():
        with contextlib.suppress(OSError):          # it has just ended
            if any(os.readlink(path) in ours for path in Path(f"/proc/{pid}/fd").iterdir()):
                return True
    return False


def _stop(watched: subprocess.Popen, server: int, grace: float) -> None:
    """Close the guard's pipe and wait. The guard does the rest, even if we are interrupted here."""
    watched.stdin.close()
    try:
        watched.wait(grace + 10)
    except subprocess.TimeoutExpired:
        watched.kill()
    if watched.wait() < 0 and server and hasattr(os, "killpg"):        # the guard itself was killed
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
