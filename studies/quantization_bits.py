"""Accuracy against bits: weights rounded once after training, or rounded all through a fine-tuning.

Rows of one seed are paired: one trained network, one set of test images, the same epochs of fine-tuning. Without `bits` it is the
float32 network, and the control: that network with the same fine-tuning. `accuracy` is that of the packed model.
"""
import torch
from common import CNN, LENET, accuracy, fine_tuned, trained
from runner import Study, main
from torch import nn

from course_lib import data, files
from course_lib.quantization import affine, binary, qat, stored

BITS = (8, 4, 3, 2, 1)


SHARES = torch.linspace(0.02, 1, 50)        # of the largest magnitude, which a symmetric grid may end at


def least_squares(model: nn.Module, bits: int) -> nn.Module:
    """Rounded to the symmetric grid with the smallest squared error; with one bit, to two values of equal size."""
    if bits == 1:
        return binary.quantize_binary(model, axis=None)

    def grid(weight):
        grids = [affine.grid_from_range(-top, top, bits, symmetric=True) for top in SHARES * weight.detach().abs().max()]
        return min(grids, key=lambda grid: float((affine.fake_quantize(weight.detach(), grid) - weight.detach()).square().sum()))

    return stored.store(model, {name: stored.AffineForm.of(layer.weight, grid(layer.weight))
                                for name, layer in stored.quantizable(model).items()})


def unit(network: str, seed: int) -> list[dict]:
    """Float32 and its control; then, for each number of bits, three ways to round and the ways to train."""
    dense, digits = trained(network, seed)
    rows = [row("float32", dense, digits), row("float32, fine-tuned", fine_tuned(network, dense, digits), digits)]
    for bits in BITS:
        rounded = {"min-max": stored.quantize_weights(dense, bits, axis=None, symmetric=False),
                   "min-max, channels": stored.quantize_weights(dense, bits, axis=0, symmetric=False),
                   "least squares": least_squares(dense, bits)}
        rows += [row(f"rounded: {name}", model, digits, bits) for name, model in rounded.items()]
        for method in ("min-max", "learned step", *(("sign",) if bits == 1 else ())):
            tuned = fine_tuned(network, qat.fake_quantized(dense, bits, method=method), digits)
            rows.append(row(f"trained: {method}", qat.to_stored(tuned), digits, bits))
    return rows


def row(method: str, model: nn.Module, digits: data.Dataset, bits: int | None = None) -> dict:
    """What is kept of one model."""
    return {"method": method, **({"bits": bits} if bits else {}), "accuracy": accuracy(model, digits),
            "payload_bytes": files.payload_bytes(model)}


if __name__ == "__main__":
    main(Study("quantization_bits", (LENET, CNN), tuple(range(10)), unit))
