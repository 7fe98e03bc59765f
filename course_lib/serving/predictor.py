"""The predictor: a model file in, a batch of images in, classes out. It knows nothing of servers.

So one and the same predictor stands behind every server, and is tested without any. It needs ONNX Runtime and NumPy,
not PyTorch. Book: chapter 6, "The predictor knows no server".
"""
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["Prediction", "Predictor", "check_images"]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says about n images.

    classes: int64, shape (n,). probabilities: float32, shape (n, classes); a row with values that are no numbers
    means that the model overflowed. seconds: how long the model ran, for all images that ran together.
    ran_with: how many images that were.
    """
    classes: np.ndarray
    probabilities: np.ndarray
    seconds: float
    ran_with: int

    def split(self, counts: Sequence[int]) -> list["Prediction"]:
        """Undo a batch: one prediction for each request, which had `counts` images each, in order.

        Raises: ValueError if the counts do not add up to the number of images.
        """
        if sum(counts) != len(self.classes) or min(counts, default=0) < 0:
            raise ValueError(f"the counts {list(counts)} do not add up to the {len(self.classes)} images of this prediction")
        ends = np.cumsum(counts)
        return [Prediction(self.classes[end - n:end], self.probabilities[end - n:end], self.seconds, self.ran_with)
                for n, end in zip(counts, ends)]


class Predictor:
    """An ONNX file, or its content, opened once and asked many times.

    shape: what one image must look like: (channels, height, width).
    Args:   threads: how many ONNX Runtime may use for one call.
    Raises: FileNotFoundError; ValueError if it is no ONNX model from any number of float32 images to one row of scores each.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 1):
        try:
            import onnxruntime
        except ImportError:
            raise ImportError("the predictor runs on ONNX Runtime: pip install onnxruntime") from None
        if threads < 1:
            raise ValueError(f"the model needs at least one thread; got {threads=}")
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:          # ONNX Runtime has a class of its own for every reason
            raise ValueError(f"ONNX Runtime cannot open this model: {str(error).splitlines()[0]}") from None
        images, scores = self._session.get_inputs(), self._session.get_outputs()
        self.shape = tuple(images[0].shape[1:])
        sizes_known = len(self.shape) == 3 and all(isinstance(size, int) for size in self.shape)
        if len(images) != 1 or not sizes_known or isinstance(images[0].shape[0], int) or images[0].type != "tensor(float)":
            raise ValueError("the model must take one input of float32 images, (any number, channels, height, width); got "
                             + ", ".join(f"{i.name} {i.type} {i.shape}" for i in images))
        if len(scores) != 1 or len(scores[0].shape) != 2:
            raise ValueError(f"the model must give one row of scores for each image; got {[s.shape for s in scores]}")
        self._name = images[0].name

    def predict(self, images: np.ndarray) -> Prediction:
        """Classify a batch.

        Args:   images: floats, shape (n, *shape).
        Raises: ValueError as `check_images` does.
        """
        images = check_images(images, self.shape)
        begin = time.perf_counter()
        scores, = self._session.run(None, {self._name: images})
        seconds = time.perf_counter() - begin
        with np.errstate(over="ignore", invalid="ignore"):          # scores may have overflowed
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities = powers / powers.sum(axis=1, keepdims=True)
        return Prediction(scores.argmax(axis=1), probabilities, seconds, len(images))


def check_images(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The images as a contiguous float32 array of shape (n, *shape); a new one unless they were so already.

    Raises: ValueError if they have another type or shape, are none, or hold a value that is not a finite number.
    """
    images = np.asarray(images)
    if images.dtype.kind != "f":
        raise ValueError(f"images must be floating-point numbers on the scale that the model was trained on; got {images.dtype}")
    if images.ndim and len(images) == 0:
        raise ValueError("there are no images to classify")
    if images.ndim != 4 or images.shape[1:] != tuple(shape):
        raise ValueError(f"images must have the shape (n, {', '.join(map(str, shape))}); got {images.shape}")
    with np.errstate(over="ignore"):
        images = np.ascontiguousarray(images, dtype=np.float32)
    bad = ~np.isfinite(images).all(axis=(1, 2, 3))
    if bad.any():
        raise ValueError(f"image {int(bad.argmax())} holds a value that is not a finite number")
    return images
