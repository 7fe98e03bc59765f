"""QDQ: how an ONNX file says "integers" with ordinary layers, and leaves the kernel to the runtime.

Each operation stays a float operation, between nodes that decode its inputs (DequantizeLinear) and encode its output
(QuantizeLinear); weights are stored as int8 in front of their DequantizeLinear. A runtime that knows the pattern
replaces it by one integer kernel: Conv by QLinearConv, Gemm by QGemm. One that does not know it computes in float32,
and is right as well. ONNX Runtime wants a zero point at every node, zeros too, or it does not see the pattern.

Saturation. Processors with VNNI multiply uint8 codes by int8 weights and add four products at once in 32 bits. Older
ones (AVX2, AVX-512 without VNNI) add two products in 16 bits first (instruction vpmaddubsw): 2·255·127 = 64,770 does
not fit, and the sum stays at 32,767, silently. Weights of 7 bits avoid it: 2·255·64 = 32,640 (`weight_bits=7`, or
"reduce range" in ONNX Runtime). Book: chapter 3, "Sums that saturate".
"""
import torch

__all__ = ["dequantize_node", "quantize_node"]


def quantize_node(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """A QuantizeLinear node, while the model is exported: codes of the type of `zero_point`, of the shape of `x`."""
    return torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape)


def dequantize_node(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None) -> torch.Tensor:
    """A DequantizeLinear node: float32; a scale of shape (n,) belongs to dimension 0, zero point None means zeros."""
    if zero_point is None:
        zero_point = torch.zeros_like(scale, dtype=codes.dtype)
    return torch.onnx.ops.symbolic("DequantizeLinear", (codes, scale, zero_point), {"axis": 0} if scale.dim() else {},
                                   dtype=torch.float32, shape=codes.shape)
