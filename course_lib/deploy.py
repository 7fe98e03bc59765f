"""The deployed form: an ONNX file, run by ONNX Runtime without PyTorch.

Training code is rarely what runs on a phone or a server. The file is stripped of comments and
traces of its making, so that its size is that of the model. Book: chapter 1, "Column 4: latency".
"""
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .training import evaluating

__all__ = ["export_onnx", "load_onnx", "onnx_bytes"]


def onnx_bytes(model: nn.Module, example: torch.Tensor) -> bytes:
    """The content of an ONNX file of the model, which takes batches of any size.

    Args:   example: images of shape (n, channels, height, width), n >= 2, on which PyTorch and
            ONNX Runtime must agree.
    Raises: ValueError if the file's predictions differ from the model's.
    """
    if len(example) < 2:
        raise ValueError(f"pass at least two example images, so that batches can be checked; got {len(example)}")
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (example[:2],), dynamo=True, verbose=False, input_names=["images"],
                                    output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},))
        expected = model(example)
    content = _stripped(program.model_proto).SerializeToString()
    run = load_onnx(content)
    for batch in (example, example[:1]):
        got = torch.from_numpy(run(batch.numpy()))
        if not torch.allclose(got, expected[:len(batch)], rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise ValueError(f"the ONNX file disagrees with the model by up to {(got - expected[:len(batch)]).abs().max():.2g}")
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


def _stripped(proto):
    """Remove documentation and metadata, which the exporter fills with names and source lines."""
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.ClearField("value_info")
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return proto
