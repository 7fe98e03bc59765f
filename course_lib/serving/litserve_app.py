"""The predictor behind LitServe, as a program: python -m course_lib.serving.litserve_app MODEL --port 8000.

It listens on this machine only. Book: chapter 6, "Start, ask, stop".
"""
import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .messages import Reader
from .predictor import Predictor
from .process import Server, running

__all__ = ["options", "serve"]


@contextlib.contextmanager
def serve(model: str | Path | bytes, *, batch: int = 16, wait_ms: float = 2.0, largest: int = 64,
          program: str = "course_lib.serving.litserve_app", seconds: float = 60) -> Iterator[Server]:
    """Serve a model inside a `with`: started and healthy when it begins, stopped when it ends, however it ends.

    Args:   model: an ONNX file or its content.
            batch: the most requests that run together; 1 runs each by itself.
            wait_ms: for how many milliseconds requests are collected before they run together.
            largest: the most images in one request. seconds: how long the start may take.
            program: the module to run as the server, another one that takes the same `options`.
    Raises: ImportError without LitServe; FileNotFoundError or ValueError for what is no model (see `Predictor`) or no number;
            RuntimeError as `running`.
    """
    if not (batch >= 1 and largest >= 1 and (wait_ms > 0 or batch == 1)):
        raise ValueError("need batch >= 1, largest >= 1 and, to collect a batch, wait_ms > 0; "
                         f"got {batch=}, {largest=}, {wait_ms=}")
    _litserve()                 # says what to install
    Predictor(model)            # a bad model fails here, where the reason is plain
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, bytes):
            model, content = Path(folder, "model.onnx"), model
            model.write_bytes(content)
        with running([sys.executable, "-m", program, str(Path(model).resolve()), "--port", "{port}",
                      "--batch", str(batch), "--wait-ms", str(wait_ms), "--largest", str(largest)], seconds=seconds) as server:
            yield server


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line says: model, port, batch, wait_ms and largest."""
    parser = argparse.ArgumentParser(description="Serve an ONNX model on this machine (127.0.0.1).")
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16, help="the most requests that run together")
    parser.add_argument("--wait-ms", type=float, default=2.0, help="for how long requests are collected")
    parser.add_argument("--largest", type=int, default=64, help="the most images in a request")
    return parser.parse_args(arguments)


def _litserve():
    try:
        import litserve
    except ImportError:
        raise ImportError("the server is LitServe: pip install litserve") from None
    return litserve


def _main() -> None:
    """Serve until told to stop."""
    told, litserve = options(), _litserve()
    from .litserve_api import BatchingAPI
    reader = Reader(Predictor(told.model).shape, largest_batch=told.largest)
    server = litserve.LitServer(BatchingAPI(told.model, batch=told.batch, wait=told.wait_ms / 1000), accelerator="cpu")
    server.app.state.reader = reader
    signal.signal(signal.SIGTERM, signal.default_int_handler)           # as if interrupted: LitServe then tidies up
    server.run(host="127.0.0.1", port=told.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    _main()
