"""Where a request's time goes: the model, the messages, and the rest, which is the server's.

Servers are asked in turn by one client each, in random order, so that a busy moment of the machine hits all alike. The
server says how long its model ran; writing and reading a body is timed without a server; the rest is what remains.
Book: chapter 6, "Where a request's time goes".
"""
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from .client import Client
from .messages import Reader, json_body, raw_body

__all__ = ["Anatomy", "dissect"]

BODIES = {"JSON": json_body, "raw": raw_body}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Requests that hold the same images, asked of several servers in two ways, JSON and raw.

    images: how many in each request. names: the servers. timings: whole requests, "NAME, JSON" and "NAME, raw"; bodies
    written and read, "messages, JSON" and "messages, raw"; and "nothing", a request without images to the first server.
    model: for each way the seconds that the server's model ran, shape (requests,).
    """
    images: int
    names: tuple[str, ...]
    timings: object
    model: dict[str, np.ndarray]

    def parts(self) -> list[dict]:
        """One row for each way: seconds of the model, of the messages, of the rest and of all, and the model's share.

        Medians. The parts add up to all, as the rest is what remains.
        """
        rows = []
        for kind in BODIES:
            for name in self.names:
                whole, model = self.timings.seconds(f"{name}, {kind}"), float(np.median(self.model[f"{name}, {kind}"]))
                messages = self.timings.seconds(f"messages, {kind}")
                rows.append({"images": self.images, "body": kind, "server": name, "model": model, "messages": messages,
                             "rest": whole - model - messages, "all": whole, "share": model / whole})
        return rows

    def ratio(self, way: str, *, to: str):
        """Time of one way over the time of another, such as "dense, raw", as an `Estimate` with its 95 % interval."""
        return self.timings.ratio(way, to=to)


def dissect(clients: Mapping[str, Client], images: np.ndarray, *, blocks: int = 20, max_blocks: int = 40,
            relative: float = 0.1) -> Anatomy:
    """Take requests apart.

    Args:   clients: one for each server, by a name; the servers run one request at a time (`batch=1`).
            images: what every request holds: float32, shape (n, channels, height, width).
            blocks, max_blocks: as `timing.compare`; it goes on until each way's ratio to the first server's raw
            request is known to `relative`.
    Raises: ValueError without clients; BadRequest or OSError as `Client.ask`.
    """
    if not clients:
        raise ValueError("there is no server to ask")
    from .. import timing
    first, reader = next(iter(clients)), Reader(images.shape[1:], largest_batch=len(images))
    model: dict[str, list[float]] = {}
    ways: dict[str, Callable] = {"nothing": clients[first].get}
    for kind, make in BODIES.items():
        ways[f"messages, {kind}"] = lambda make=make: reader.read(*make(images))
        for name, client in clients.items():
            ways[f"{name}, {kind}"] = _ask(client, images, kind == "raw", model.setdefault(f"{name}, {kind}", []))

    def settled(timings) -> bool:
        ratios = [timings.ratio(way, to=f"{first}, raw") for way in model]
        return all(max(r.high / r.value, r.value / r.low) <= 1 + relative for r in ratios)
    timings = timing.compare(ways, blocks=blocks, max_blocks=max_blocks, until=settled)
    return Anatomy(len(images), tuple(clients), timings, {way: np.array(seconds) for way, seconds in model.items()})


def _ask(client: Client, images: np.ndarray, raw: bool, seconds: list[float]) -> Callable:
    return lambda: seconds.append(client.ask(images, raw=raw)["model_seconds"])
