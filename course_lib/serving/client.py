"""A client: it asks a server on this machine, one request after another, over one connection.

Book: chapter 6, "Start, ask, stop".
"""
import http.client
import json
import urllib.parse

import numpy as np

from .messages import BadRequest, json_body, raw_body

__all__ = ["Client"]


class Client:
    """One connection that stays open from request to request; close it, or use it in a `with`.

    Args: url: such as http://127.0.0.1:8000. seconds: how long to wait for an answer.
    """

    def __init__(self, url: str, *, seconds: float = 30):
        address = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=seconds)

    def ask(self, images: np.ndarray, *, raw: bool = False) -> dict:
        """Let the server classify images: float32, shape (n, channels, height, width).

        Args:   raw: send the numbers as they are in memory instead of as JSON.
        Raises: BadRequest with the server's reason if it refuses; OSError if it fails or is not there.
        """
        status, answer = self.post(*(raw_body if raw else json_body)(images))
        if 400 <= status < 500:
            raise BadRequest(status, str(answer.get("detail", "")))
        if status != 200:
            raise OSError(f"the server answered {status}")
        return answer

    def post(self, body: bytes, content_type: str = "", *, path: str = "/predict") -> tuple[int, dict]:
        """Send any body; return the status and the answer, an empty one if it is not JSON."""
        return self._request("POST", path, body, {"Content-Type": content_type} if content_type else {})

    def get(self, path: str = "/health") -> tuple[int, dict]:
        """Ask for a path without sending anything: a server with nothing to do."""
        return self._request("GET", path, None, {})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, dict]:
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except http.client.HTTPException as error:
            self.close()
            raise OSError(f"the server broke off: {error!r}") from None
        except BaseException:               # also an interrupt: what is half sent must not mix with the next request
            self.close()
            raise
        try:
            answer = json.loads(content)
        except ValueError:
            answer = {}
        return response.status, answer if isinstance(answer, dict) else {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *reason) -> None:
        self.close()
