"""The deployed form: an ONNX file, run by ONNX Runtime without PyTorch.

Training code is rarely what runs on a phone or a server. The file is stripped of comments and
traces of its making, so that its size is that of the model. Book: chapter 1, "Column 4: latency".
"""
import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .training import evaluating

__all__ = ["export_onnx", "load_onnx", "onnx_bytes", "quantize_onnx"]

CALIBRATION = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def onnx_bytes(model: nn.Module, example: torch.Tensor) -> bytes:
    """The content of an ONNX file of the model, which takes batches of any size.

    Args:   example: images of shape (n, channels, height, width), n >= 2, on which PyTorch and
            ONNX Runtime must agree.
    Raises: ValueError if the file's predictions differ from the model's: by more than float32 rounding or, in a
            model of integer layers, by more than one step in every code would make.
    """
    if len(example) < 2:
        raise ValueError(f"pass at least two example images, so that batches can be checked; got {len(example)}")
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (example[:2],), dynamo=True, verbose=False, input_names=["images"],
                                    output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},))
        expected = model(example)
        steps = (_one_step_off(model, example) - expected).abs().max()
    content = _stripped(program.model_proto).SerializeToString()
    run = load_onnx(content)
    for batch in (example, example[:1]):
        got = torch.from_numpy(run(batch.numpy()))
        if not torch.allclose(got, expected[:len(batch)], rtol=1e-3, atol=float(1e-3 * expected.abs().max() + steps)):
            raise ValueError(f"the ONNX file disagrees with the model by up to {(got - expected[:len(batch)]).abs().max():.2g}"
                             + ("; on a processor without VNNI, use weights of 7 bits" if steps else ""))
    return content


def export_onnx(model: nn.Module, path: str | Path, example: torch.Tensor) -> int:
    """Write the model as an ONNX file; return its size in bytes.

    Args, Raises: as `onnx_bytes`; where it raises, nothing is left behind.
    """
    content = onnx_bytes(model, example)
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:      # whole or not at all
        partial = Path(folder, "model.onnx")
        partial.write_bytes(content)
        os.replace(partial, path)
    return len(content)


def load_onnx(source: str | Path | bytes, *, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Open an ONNX file (or its content) and return a function from images to logits.

    Args: threads: how many threads ONNX Runtime may use for one call.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source if isinstance(source, bytes) else str(source), options,
                                           providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def quantize_onnx(content: bytes, images: torch.Tensor | None = None, *, mode: str, per_channel: bool = False,
                  method: str = "min-max", reduce_range: bool = False) -> bytes:
    """Let ONNX Runtime quantize the content of a float ONNX file: weights int8, activations uint8.

    Args:   mode: "dynamic" finds the range of each activation anew at every call; "static" finds it now, on `images`, which
            only this mode takes, and writes QuantizeLinear and DequantizeLinear nodes (QDQ).
            method: how static ranges are chosen: "min-max", "entropy" or "percentile" (99.999 % of the values).
            per_channel: a weight scale for each output; in dynamic mode not for convolutions, whose kernel takes only one.
            reduce_range: weights of 7 bits, for processors whose sums of uint8·int8 products saturate.
    Raises: ValueError for another mode or method, for images in dynamic mode, and for none in static mode.
    Equals: onnxruntime.quantization.quantize_dynamic and quantize_static.
    """
    if mode not in ("dynamic", "static") or method not in CALIBRATION:
        raise ValueError(f"mode must be dynamic or static, method one of {', '.join(CALIBRATION)}; got {mode!r}, {method!r}")
    if (mode == "static") != (images is not None and len(images) > 0):
        raise ValueError("static quantization needs images to find the ranges, dynamic quantization takes none; "
                         f"got {mode!r} with {0 if images is None else len(images)} images")
    import onnx
    from onnxruntime import quantization
    options = {"per_channel": per_channel, "reduce_range": reduce_range, "weight_type": quantization.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        if mode == "dynamic":
            quantization.quantize_dynamic(path, path, **options)
        else:
            quantization.quantize_static(path, path, _Reader(onnx.load(path).graph.input[0].name, images), **options,
                                         activation_type=quantization.QuantType.QUInt8,
                                         calibrate_method=quantization.CalibrationMethod[CALIBRATION[method]])
        return _stripped(onnx.load(path)).SerializeToString()


class _Reader:
    """Hands images to ONNX Runtime's calibration, one at a time: its histograms want batches of one size."""

    def __init__(self, name: str, images: torch.Tensor):
        self.name, self.images = name, iter(images.split(1))

    def get_next(self) -> dict | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image.numpy()}


@contextlib.contextmanager
def _quiet():
    """Nothing is printed or logged inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _one_step_off(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """The model's logits if every code in it were one step too high or too low, at random.

    PyTorch and ONNX Runtime may round a code near the middle of two to different sides, seldom; so this is more
    than they can differ by. Codes are what layers with numbers give as uint8; without any, these are the logits.
    """
    generator = torch.Generator().manual_seed(0)

    def shift(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.dtype == torch.uint8:
            steps = 2 * torch.randint(0, 2, output.shape, generator=generator) - 1
            return (output + steps).clamp(0, 255).to(torch.uint8)
    hooks = [module.register_forward_hook(shift) for module in model.modules() if [*module.buffers(recurse=False)]]
    try:
        return model(example)
    finally:
        for hook in hooks:
            hook.remove()


def _stripped(proto):
    """Remove documentation and metadata, which the exporter fills with names and source lines."""
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.ClearField("value_info")
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return proto
