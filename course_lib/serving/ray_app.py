"""The same predictor behind Ray Serve, for more than one machine: python -m course_lib.serving.ray_app MODEL --port 8000.

A replica is one process with a predictor of its own; Ray starts them where there is room, on this machine or on others, and
shares the requests out. Reading, refusing and answering are those of `messages`, as behind LitServe. It needs Ray:
pip install -e '.[serve-ray]'. Book: chapter 6, "The same predictor, other hands".
"""
import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .messages import JSON, BadRequest, Reader, receive, refusal, reply
from .predictor import Prediction, Predictor
from .process import HOST, Server, running

__all__ = ["application", "serve_on_ray"]

MISSING = "this server is Ray Serve: pip install -e '.[serve-ray]'"
OBJECT_STORE = 100 * 2**20      # bytes; requests do not pass through it, and Ray would take a third of the memory


def application(model: bytes, *, batch: int = 16, wait_ms: float = 2.0, largest: int = 64, replicas: int = 1):
    """What Ray Serve runs: `replicas` processes with one core each, in which requests that come together run together.

    Args: model: the content of an ONNX file, which travels with the application; the others as in `litserve_app.serve`.
    """
    serve = _ray().serve
    from starlette.responses import Response

    @serve.deployment(num_replicas=replicas, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=8 * batch)
    class Served:
        def __init__(self, model: bytes):
            self.predictor = Predictor(model)
            self.reader = Reader(self.predictor.shape, largest_batch=largest)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait_ms / 1000)
        async def predict(self, requests: list[np.ndarray]) -> list[Prediction]:
            return self.predictor.predict(np.concatenate(requests)).split([len(images) for images in requests])

        async def __call__(self, request) -> Response:
            route = request.method, request.url.path
            if route != ("POST", "/predict"):
                ready = route == ("GET", "/health")
                return Response("ok" if ready else "there is POST /predict and GET /health", 200 if ready else 404)
            try:
                status, body = reply(await self.predict(await receive(request, self.reader)))
            except BadRequest as error:
                status, body = refusal(error)
            return Response(body, status, media_type=JSON)

    return Served.bind(model)


@contextlib.contextmanager
def serve_on_ray(model: str | Path | bytes, *, batch: int = 16, wait_ms: float = 2.0, largest: int = 64, replicas: int = 1,
                 seconds: float = 120) -> Iterator[Server]:
    """As `litserve_app.serve`, behind Ray Serve on this machine: a small cluster of its own, gone when the `with` ends.

    Args:   replicas: how many predictors, each on a core.
    Raises: ImportError without Ray; FileNotFoundError or ValueError for what is no model (see `Predictor`) or no number;
            RuntimeError as `running`.
    """
    if min(batch, largest, replicas) < 1 or wait_ms < 0:
        raise ValueError(f"need batch, largest and replicas >= 1, and wait_ms >= 0; got {batch=}, {largest=}, {replicas=}, {wait_ms=}")
    if importlib.util.find_spec("ray") is None:
        raise ImportError(MISSING)
    Predictor(model)            # a bad model fails here, where the reason is plain
    with tempfile.TemporaryDirectory(prefix="ray") as folder:       # short: sockets in it have long names
        if isinstance(model, bytes):
            model, content = Path(folder, "model.onnx"), model
            model.write_bytes(content)
        with running([sys.executable, "-m", "course_lib.serving.ray_app", str(Path(model).resolve()), "--port", "{port}",
                      "--batch", str(batch), "--wait-ms", str(wait_ms), "--largest", str(largest), "--replicas", str(replicas),
                      "--folder", folder], seconds=seconds) as server:
            yield server


def _ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"         # tells nobody; before the import
    try:
        import ray
        import ray.serve
    except ImportError:
        raise ImportError(MISSING) from None
    return ray


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve an ONNX model with Ray Serve.")
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16, help="the most requests that run together")
    parser.add_argument("--wait-ms", type=float, default=2.0, help="for how long requests are collected")
    parser.add_argument("--largest", type=int, default=64, help="the most images in a request")
    parser.add_argument("--replicas", type=int, default=1, help="how many predictors, each on a core")
    parser.add_argument("--address", help="a cluster that runs already, such as auto; without, one on this machine")
    parser.add_argument("--folder", help="for Ray's own files")
    return parser.parse_args(arguments)


def _main() -> None:
    """Serve until told to stop."""
    told, stop = _options(), threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    ray = _ray()
    own = {} if told.address else {"include_dashboard": False, "num_cpus": told.replicas + 1, "_node_ip_address": HOST,
                                   "object_store_memory": OBJECT_STORE, "_temp_dir": told.folder}
    ray.init(address=told.address, log_to_driver=False, **own)
    try:
        ray.serve.start(http_options={"host": HOST, "port": told.port})
        ray.serve.run(application(Path(told.model).read_bytes(), batch=told.batch, wait_ms=told.wait_ms, largest=told.largest,
                                  replicas=told.replicas), route_prefix="/")
        stop.wait()
        ray.serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    _main()
