"""What goes over the wire: how a request is read, refused or answered, the same behind every server.

A request is checked before it meets others in a batch, so a bad one can only harm itself. The answer to a bad request
is a 4xx status, "your fault", with the reason; a 5xx would say "my fault" and make clients try again.
Book: chapter 6, "Bad requests".
"""
import asyncio
import json
import math

import numpy as np

from .predictor import Prediction, check_images

__all__ = ["BadRequest", "Reader", "json_body", "raw_body", "receive", "refusal", "reply"]

JSON, RAW = "application/json", "application/octet-stream"
BYTES_PER_NUMBER = 26           # in JSON: a sign, 17 digits, a point, an exponent and what separates them
SLOWEST_BODY = 10.0             # seconds until the whole body must have come


class BadRequest(ValueError):
    """A request that cannot be answered, by the client's fault.

    status: the HTTP status, 4xx. reason: a sentence for the client.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Reader:
    """Turns the body of a request into images, or says why not. It needs no model, only what one image looks like.

    Args: shape: (channels, height, width). largest_batch: how many images a request may hold.
    """

    def __init__(self, shape: tuple[int, int, int], *, largest_batch: int = 64):
        if largest_batch < 1:
            raise ValueError(f"a request must be allowed at least one image; got {largest_batch=}")
        self.shape, self.largest_batch = tuple(shape), largest_batch

    @property
    def largest_body(self) -> int:
        """The size in bytes above which a body is not even read."""
        return 1000 + BYTES_PER_NUMBER * math.prod(self.shape) * self.largest_batch

    def read(self, body: bytes, content_type: str) -> np.ndarray:
        """The images of a request: float32, shape (n, *shape).

        Args:   body: JSON {"images": nested lists of shape (n, *shape)}, or the raw numbers, float32, little-endian.
                content_type: says which: application/json or application/octet-stream.
        Raises: BadRequest with status 413 (too large), 415 (another content type), 400 (no JSON) or 422 (all else).
        """
        if len(body) > self.largest_body:
            raise BadRequest(413, f"the body is larger than {self.largest_body} bytes")
        kind = content_type.partition(";")[0].strip().lower()
        if kind not in (JSON, RAW):
            raise BadRequest(415, f"send {JSON} or {RAW}, not {kind[:80] or 'a body without a content type'}")
        images = self._from_json(body) if kind == JSON else self._from_raw(body)
        if len(images) > self.largest_batch:
            raise BadRequest(422, f"a request may hold {self.largest_batch} images; got {len(images)}")
        try:
            return check_images(images, self.shape)
        except ValueError as error:
            raise BadRequest(422, str(error)) from None

    def _from_json(self, body: bytes) -> np.ndarray:
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(400, f"the body is not JSON: {error}") from None
        if not isinstance(message, dict) or "images" not in message:
            found = f"the fields {sorted(message)[:5]}" if isinstance(message, dict) else f"a {type(message).__name__}"
            raise BadRequest(422, f'the body must be an object with the field "images"; got {found}'[:200])
        if not isinstance(message["images"], list):
            raise BadRequest(422, f'"images" must be nested lists of numbers; got a {type(message["images"]).__name__}')
        try:
            images = np.asarray(message["images"])
        except ValueError:
            raise BadRequest(422, '"images" must be nested lists in which all images have the same shape') from None
        if images.size and images.dtype.kind not in "fiu":          # true, null, text
            raise BadRequest(422, '"images" must hold numbers only')
        return images.astype(float, copy=False)

    def _from_raw(self, body: bytes) -> np.ndarray:
        size = 4 * math.prod(self.shape)
        if len(body) % size:
            raise BadRequest(422, f"raw images are float32, {size} bytes for one of shape {self.shape}; got {len(body)} bytes")
        return np.frombuffer(body, dtype="<f4").reshape(-1, *self.shape)


async def receive(request, reader: Reader) -> np.ndarray:
    """Read the images of a Starlette request. Of a body that is too large no more is kept than the limit.

    Raises: BadRequest as `Reader.read`, and with status 408 if the body does not come within ten seconds, or not at all.
    """
    from starlette.requests import ClientDisconnect
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > reader.largest_body:
        raise BadRequest(413, f"the body is larger than {reader.largest_body} bytes")
    parts, size = [], 0
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            async for part in request.stream():
                size += len(part)
                if size > reader.largest_body:
                    raise BadRequest(413, f"the body is larger than {reader.largest_body} bytes")
                parts.append(part)
    except ClientDisconnect:
        raise BadRequest(408, "the client went away before the whole body had come") from None
    except TimeoutError:
        raise BadRequest(408, f"the body did not come within {SLOWEST_BODY:g} seconds") from None
    return reader.read(b"".join(parts), request.headers.get("content-type", ""))


def reply(prediction: Prediction) -> tuple[int, bytes]:
    """The status and the JSON body that answer a request.

    {"classes": n numbers, "probabilities": n lists, "ran_with": images in the run, "model_seconds": its time}. If the
    values were so large that the scores are no numbers: status 422 with the reason, for this request alone.
    """
    if not np.isfinite(prediction.probabilities).all():
        return refusal(BadRequest(422, "the values are so large that the model's scores are not finite numbers"))
    return 200, json.dumps({"classes": prediction.classes.tolist(),
                            "probabilities": prediction.probabilities.astype(float).round(6).tolist(),
                            "ran_with": prediction.ran_with, "model_seconds": prediction.seconds}).encode()


def refusal(error: BadRequest) -> tuple[int, bytes]:
    """The status and the JSON body {"detail": reason} that refuse a request."""
    return error.status, json.dumps({"detail": error.reason}).encode()


def json_body(images: np.ndarray) -> tuple[bytes, str]:
    """Images as the body of a request in JSON, and its content type."""
    return json.dumps({"images": np.asarray(images, dtype=np.float32).tolist()}).encode(), JSON


def raw_body(images: np.ndarray) -> tuple[bytes, str]:
    """Images as the body of a request of raw numbers, 4 bytes each, and its content type."""
    return np.ascontiguousarray(images, dtype="<f4").tobytes(), RAW
