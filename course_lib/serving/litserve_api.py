"""The predictor as LitServe sees it. Only `litserve_app` opens this module: it imports LitServe.

LitServe has processes of its own for HTTP and for the model. A request is read and checked in the first, where a bad
one is refused; what passes waits for others and runs with them in the second. Book: chapter 6, "Bad requests".
"""
import dataclasses
from typing import Annotated

import litserve
import numpy as np
from fastapi import Depends, HTTPException, Request, Response

from .messages import JSON, BadRequest, receive, reply
from .predictor import Prediction, Predictor

__all__ = ["BatchingAPI"]


@dataclasses.dataclass
class _Checked:
    """Images that have passed. LitServe makes a text of every request for its log, and an array's text takes 2 ms."""
    images: np.ndarray = dataclasses.field(repr=False)


async def _images(request: Request) -> _Checked:
    """What FastAPI calls in the HTTP process to get `decode_request`'s argument."""
    try:
        return _Checked(await receive(request, request.app.state.reader))
    except BadRequest as error:
        raise HTTPException(error.status, error.reason) from None


class BatchingAPI(litserve.LitAPI):
    """A model file behind LitServe; requests that wait at the same time run as one batch.

    Args: model: path of an ONNX file. batch: the most requests in one run. wait: seconds for which a run is held back.
    """

    def __init__(self, model: str, *, batch: int, wait: float):
        super().__init__(max_batch_size=batch, batch_timeout=wait)
        self.model = model

    def setup(self, device) -> None:
        """Open the model, in the model's process."""
        self.predictor = Predictor(self.model)

    def decode_request(self, request: Annotated[_Checked, Depends(_images)]) -> np.ndarray:
        """The images of one request, already checked."""
        return request.images

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Several requests: kept apart, since each may hold any number of images."""
        return inputs

    def predict(self, x: np.ndarray | list[np.ndarray]) -> Prediction | list[Prediction]:
        """One run for all images of all requests."""
        if isinstance(x, list):
            return self.predictor.predict(np.concatenate(x)).split([len(images) for images in x])
        return self.predictor.predict(x)

    def unbatch(self, output: list[Prediction]) -> list[Prediction]:
        """One prediction for each request."""
        return output

    def encode_response(self, output: Prediction) -> Response:
        """The finished HTTP answer, so that the HTTP process has nothing left to do."""
        status, body = reply(output)
        return Response(body, status, media_type=JSON)
