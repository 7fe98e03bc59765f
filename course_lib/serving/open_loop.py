"""The client of a load test: it sends each request when it is due, in a process of its own.

In a process of its own, and on another core where there is one, the client takes no time from the server or from the notebook.
It keeps only what it has to while requests are due, and reads the answers afterwards. Book: "An open loop".
"""
import asyncio
import base64
import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .load import TIMED_OUT, UNANSWERED, Load, arrival_times, on_cores

__all__ = ["load_test"]


def load_test(url: str, bodies: Sequence[bytes], *, rate: float, seconds: float, content_type: str = "application/octet-stream",
              poisson: bool = True, timeout: float = 2.0, connections: int = 200, warm_up: int = 20, collect: Sequence[str] = (),
              cores: set[int] | None = None, seed: int = 0) -> Load:
    """Offer requests to a server at a rate, and see what becomes of each.

    Args:   url: where to POST; bodies: request i has the body i mod len(bodies). rate, seconds, poisson, seed: see `arrival_times`.
            timeout: seconds after which a user is gone, from when the request was due. connections: most at one time; a request
            that waits for one is already counting. warm_up: requests before the start, one by one, which do not count.
            collect: fields of the JSON answers to keep. cores: where the client runs, such as `separate_cores()[1]`.
    Raises: ValueError for bad arguments; RuntimeError if the client could not run.
    """
    due = arrival_times(rate, seconds, poisson=poisson, seed=seed)
    if not bodies or not all(isinstance(body, bytes) for body in bodies):
        raise ValueError("need at least one body, each of bytes, such as messages.raw_body(images)[0]")
    if not 0 < timeout < math.inf or connections < 1 or warm_up < 0:
        raise ValueError(f"need timeout > 0, connections >= 1 and warm_up >= 0; got {timeout=}, {connections=}, {warm_up=}")
    job = {"url": url, "bodies": [base64.b64encode(body).decode() for body in bodies], "content_type": content_type,
           "due": due.tolist(), "timeout": timeout, "connections": connections, "warm_up": warm_up, "collect": list(collect)}
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        with on_cores(cores):           # subprocess.run kills the client if anything interrupts us
            client = subprocess.run([sys.executable, "-c", f"from {__name__} import _client; _client()"], input=json.dumps(job),
                                    capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
                                    timeout=60 + seconds + timeout * (2 + warm_up))
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the load test did not end {error.timeout:.0f} s after its start") from None
    if client.returncode:
        raise RuntimeError(f"the client of the load test failed: {client.stderr.strip().splitlines()[-1:]}")
    seen = json.loads(client.stdout)
    return Load(rate, seconds, due, np.array(seen["finished"]), np.array(seen["status"]), np.array(seen["late"]), seen["answers"])


def _client() -> None:
    """The process of the client: a job on standard input, what became of it on standard output."""
    # select waits to the microsecond; what asyncio takes by default on Linux, epoll, rounds up to a millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        json.dump(runner.run(_offer(json.load(sys.stdin))), sys.stdout)


async def _offer(job: dict) -> dict:
    try:
        import aiohttp
    except ImportError as error:
        raise ImportError("load tests need aiohttp: pip install aiohttp") from error
    bodies, due = [base64.b64decode(body) for body in job["bodies"]], job["due"]
    finished, status, late, replies = ([missing] * len(due) for missing in (0.0, UNANSWERED, 0.0, b""))
    headers = {"Content-Type": job["content_type"]}

    async def ask(session, i: int) -> tuple[int, bytes]:
        async with session.post(job["url"], data=bodies[i % len(bodies)], headers=headers) as response:
            return response.status, await response.read()

    async def request(session, i: int, start: float) -> None:
        late[i] = time.perf_counter() - start - due[i]
        try:
            async with asyncio.timeout(job["timeout"] - late[i]):
                status[i], replies[i] = await ask(session, i)
        except TimeoutError:
            status[i] = TIMED_OUT
        except (aiohttp.ClientError, OSError):
            status[i] = UNANSWERED
        finished[i] = time.perf_counter() - start

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=job["connections"]),
                                     timeout=aiohttp.ClientTimeout(total=None)) as session:
        for i in range(job["warm_up"]):
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(job["timeout"]):
                    await ask(session, i)
        start, tasks = time.perf_counter() + 0.01, []
        for i, moment in enumerate(due):
            if (wait := start + moment - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(request(session, i, start)))
        await asyncio.gather(*tasks)
    # Read the answers only now: while requests are due, the client has other things to do.
    read = [_json(reply) if 200 <= code < 300 and job["collect"] else {} for code, reply in zip(status, replies)]
    return {"finished": finished, "status": status, "late": late,
            "answers": {name: [answer.get(name) for answer in read] for name in job["collect"]}}


def _json(reply: bytes) -> dict:
    try:
        answer = json.loads(reply)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {}
