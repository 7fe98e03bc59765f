"""The form for a phone: a `.pte` file, made ahead of time and run by ExecuTorch's small C++ runtime.

ExecuTorch plans the memory of a program before it runs, so a file takes batches of one size only. XNNPACK, a library
of fast kernels for processors, runs the layers that it knows; "portable" kernels are plain C++ for any chip, and slow.
The package is imported where it is used: pip install executorch. Book: "On a phone: a model in ExecuTorch".
"""
import contextlib
import copy
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

__all__ = ["FLOAT_TOLERANCE", "INT8_STEPS", "export_pte", "load_pte", "planned_bytes", "pte_bytes"]

FLOAT_TOLERANCE = 1e-4      # of the largest logit: what float32 sums in another order may differ by
INT8_STEPS = 2              # steps between neighbouring codes of the logits: kernels round halves to different sides
KERNELS = ("XNNPACK", "portable")
_RUNTIME = "executorch.extension.pybindings._portable_lib"      # what loads and runs; the exporter is far larger
_loaded_with = None         # threads of the one pool, once a program was loaded


def pte_bytes(model: nn.Module, example: torch.Tensor, *, calibration: torch.Tensor | None = None,
              kernels: str = "XNNPACK") -> bytes:
    """The content of a `.pte` file of the model, which takes batches of the example's size.

    Args:   example: images of shape (n, channels, height, width), on which model and file must agree.
            calibration: at least n images; with them weights and activations become int8 (weights with a scale for each
            output), activations by the ranges seen in whole batches of n of them. Images and logits stay float32.
            kernels: "XNNPACK", or "portable", which has float only.
    Raises: ValueError for other shapes or kernels, for what ExecuTorch cannot export, and if the file's logits differ by more
            than FLOAT_TOLERANCE of the model's largest, or by INT8_STEPS steps from those of the model with simulated int8.
            ImportError without ExecuTorch.
    """
    program, reference, step = _lowered(model, example, calibration, kernels)
    content, expected = bytes(program.buffer), reference(example).detach()
    allowed = INT8_STEPS * step if step else FLOAT_TOLERANCE * float(expected.abs().max())
    gap = float((torch.from_numpy(load_pte(content, threads=_loaded_with or 1)(example.numpy())) - expected).abs().max())
    if not gap <= allowed * (1 + 1e-4):
        raise ValueError(f"the .pte file disagrees with the model by up to {gap:.2g}, more than {allowed:.2g}")
    return content


def export_pte(model: nn.Module, path: str | Path, example: torch.Tensor, *, calibration: torch.Tensor | None = None,
               kernels: str = "XNNPACK") -> int:
    """Write the model as a `.pte` file; return its size in bytes.

    Args, Raises: as `pte_bytes`; where it raises, nothing is left behind.
    """
    content = pte_bytes(model, example, calibration=calibration, kernels=kernels)
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:      # whole or not at all
        partial = Path(folder, "model.pte")
        partial.write_bytes(content)
        os.replace(partial, path)
    return len(content)


def load_pte(source: str | Path | bytes, *, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Open a `.pte` file (or its content) and return a function from images to logits.

    The function takes float32 images of the shape that the program was exported for. A file is checked as far as ExecuTorch
    does: one with flipped bits inside can crash the process, so load only files that arrived whole.

    Args:   threads: of the one pool that all programs of a process share; it is set by the first program.
    Raises: FileNotFoundError; ValueError if this is no program, for fewer threads than 1, or for images of another shape or
            type (from the function);
            RuntimeError if an earlier program was loaded with another number of threads; ImportError without ExecuTorch.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"no model file at {source}")
    runtime = _with_threads(threads)
    with _silence():
        try:
            program = runtime._load_for_executorch_from_buffer(source) if isinstance(source, bytes) else \
                runtime._load_for_executorch(str(source))
            shape = tuple(program.method_meta("forward").input_tensor_meta(0).sizes())
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"this is not a whole ExecuTorch program of a model with one input ({error})") from error

    def run(images: np.ndarray, keep_alive=source) -> np.ndarray:        # the program reads its weights from the source
        if images.shape != shape or images.dtype != np.float32:
            raise ValueError(f"the program was made for float32 images of shape {shape}; got {images.dtype}, {images.shape}")
        return program.forward((torch.from_numpy(np.ascontiguousarray(images)),))[0].numpy()
    return run


def planned_bytes(model: nn.Module, example: torch.Tensor) -> int:
    """Bytes that ExecuTorch plans for the images and all activations of a float model with portable kernels.

    It is the room for all tensors that exist at the same moment; weights are not in it, they stay in the file.
    XNNPACK takes its own memory when it runs, outside the plan.

    Args:   example: images of shape (n, channels, height, width); the plan is for n at a time.
    Raises: as `pte_bytes`.
    """
    program, _, _ = _lowered(model, example, None, "portable")
    return sum(program.executorch_program.execution_plan[0].non_const_buffer_sizes)


class _Named(nn.Module):
    """Gives the weights of a Sequential names that do not begin with a digit, on which folding of normalisation fails."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def _lowered(model: nn.Module, example: torch.Tensor, calibration: torch.Tensor | None, kernels: str):
    """The program; the PyTorch model that it should equal; the step of its logits if they are int8, else None."""
    if example.ndim < 2 or len(example) < 1 or kernels not in KERNELS:
        raise ValueError(f"need at least one example image, and kernels among {', '.join(KERNELS)}; "
                         f"got shape {tuple(example.shape)} and {kernels!r}")
    if calibration is not None and (kernels != "XNNPACK" or len(calibration) < len(example)):
        raise ValueError(f"int8 needs the kernels 'XNNPACK' and at least {len(example)} calibration images, one batch; "
                         f"got {kernels!r} and {len(calibration)} images")
    with _silence(), torch.no_grad():
        exir = _module("executorch.exir")
        partition = _module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        fold = _module("executorch.exir.passes.constant_prop_pass")
        reference, step = _Named(copy.deepcopy(model)).eval(), None
        try:
            if calibration is not None:
                reference, step = _with_int8(reference, example, calibration)
            exported, partitioner = torch.export.export(reference, (example,)), [partition.XnnpackPartitioner()]
            if kernels == "portable":       # transpose the weights now, not as an "activation" at every call
                exported, partitioner = fold.constant_prop_pass(exported.run_decompositions()), []
            return exir.to_edge_transform_and_lower(exported, partitioner=partitioner).to_executorch(), reference, step
        except ImportError:
            raise
        except Exception as error:          # each stage raises classes of its own
            raise ValueError(f"ExecuTorch cannot export this model: {error or type(error).__name__}") from error


def _with_int8(model: nn.Module, example: torch.Tensor, calibration: torch.Tensor) -> tuple[nn.Module, float]:
    """The model with its int8 simulated, by XNNPACK's rules; and the step between neighbouring logits."""
    rules = _module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = _module("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = rules.XNNPACKQuantizer().set_global(rules.get_symmetric_quantization_config(is_per_channel=True))
    prepared = pt2e.prepare_pt2e(torch.export.export(model, (example,)).module(), quantizer)
    for start in range(0, len(calibration) - len(example) + 1, len(example)):
        prepared(calibration[start:start + len(example)])
    converted = pt2e.convert_pt2e(prepared)
    logits = next(node for node in converted.graph.nodes if node.op == "output").args[0]
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    if "dequantize_per_tensor" not in str(logits.target):
        raise ValueError("its last layer is none that XNNPACK has in int8")
    return converted, float(logits.args[1])


def _with_threads(threads: int):
    """ExecuTorch's runtime with a pool of so many threads; programs keep a pointer to it, so it is set once."""
    global _loaded_with
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    with _silence():
        runtime = _module(_RUNTIME)
        if _loaded_with is None and runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)
    if threads != (_loaded_with or threads):
        raise RuntimeError(f"ExecuTorch has one pool of threads in a process, here of {_loaded_with}; "
                           f"for {threads} start a fresh process")
    _loaded_with = threads
    return runtime


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("models for phones need ExecuTorch: pip install executorch torchao") from error


@contextlib.contextmanager
def _silence():
    """Nothing is printed, logged or warned of inside, by C++ neither: ExecuTorch tells of paths of the machine."""
    level, kept = logging.root.manager.disable, None
    with contextlib.ExitStack() as stack, open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(OSError):          # there may be no standard error
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            os.dup2(nowhere.fileno(), 2)
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.callback(logging.disable, level)
        logging.disable(logging.CRITICAL)
        yield
