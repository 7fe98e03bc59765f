"""The field's own tools for int8 in PyTorch, behind the course's one form: a model in, a new model out.

Each stores the weights of linear layers as int8. They differ in what happens to the activations: found and rounded
at every call (dynamic), left alone (weights only), or rounded on a grid fixed beforehand (PT2E, by exporting the model to
a graph). None of these models can be written by `files.save`; PyTorch's own `torch.save` can write their numbers.
Book: chapter 3, "Today's ways".
"""
import copy
import platform
import warnings

import torch
from torch import nn

from .stored import quantizable

__all__ = ["dynamic_int8", "exported_int8", "torchao_int8"]

LEGACY, SUCCESSOR = "torch.quantization.quantize_dynamic", "torchao.quantization.quantize_"


def dynamic_int8(model: nn.Module) -> tuple[nn.Module, str]:
    """The source article's call: int8 weights for linear layers, activations rounded at every call.

    Returns: the new model, and the name of the API that made it: PyTorch's own where this release still has it, otherwise
             torchao's (which has a scale for each output and each image, instead of one for the layer and one for the batch).
    Raises:  ValueError as `quantizable`; ModuleNotFoundError if neither is there.
    """
    quantizable(model)
    if not _has_legacy():
        return torchao_int8(model), SUCCESSOR
    return torch.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), LEGACY


def _has_legacy() -> bool:
    """Whether this PyTorch has `quantize_dynamic`, the data type that it needs, and a library that multiplies it."""
    function = getattr(getattr(torch, "quantization", None), "quantize_dynamic", None)
    return function is not None and hasattr(torch, "qint8") and torch.backends.quantized.engine != "none"


def torchao_int8(model: nn.Module, *, weights_only: bool = False) -> nn.Module:
    """Return a copy of `model` whose linear layers hold int8 weights, with a scale for each output; by torchao.

    Args:   weights_only: float32 activations, instead of int8 with a scale for each image, found at every call.
    Raises: ValueError as `quantizable`; ModuleNotFoundError without torchao.
    """
    quantizable(model)
    from torchao import quantization as ao
    changed = copy.deepcopy(model)
    ao.quantize_(changed, ao.Int8WeightOnlyConfig() if weights_only else ao.Int8DynamicActivationInt8WeightConfig())
    return changed


def exported_int8(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """PT2E: export the model to a graph, let observers watch `images`, and insert quantize and dequantize operations.

    Run as it is, the graph rounds and then multiplies in float32; compiled (`torch.compile`), it multiplies integers.
    Args:   images: for calibration, at least two, of shape (n, channels, height, width).
    Raises: ValueError as `quantizable`, or for fewer images; ModuleNotFoundError without torchao.
    """
    quantizable(model)
    if len(images) < 2:
        raise ValueError(f"calibration needs at least two images; got {len(images)}")
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    # 1. From Python to a graph of operations, for batches of any size.
    program = torch.export.export(copy.deepcopy(model).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")         # observers warn about an argument that the quantizer chose
        # 2. Observers where the quantizer for this processor wants them.  3. Let them see the images.
        observed = prepare_pt2e(program.module(), _quantizer())
        observed(images)
        # 4. Observers become quantize and dequantize operations.
        graph = convert_pt2e(observed)
    return allow_exported_model_train_eval(_without_leftovers(graph))


def _quantizer():
    """The quantizer whose patterns PyTorch's compiler knows for this processor."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm
        return arm.ArmInductorQuantizer().set_global(arm.get_default_arm_inductor_quantization_config())
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def _without_leftovers(graph: nn.Module) -> nn.Module:
    """Drop the float32 weights, which the graph no longer reads but would still write into every file."""
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph.named_parameters()):
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    return graph
