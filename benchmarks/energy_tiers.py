"""Do the tiers agree? Rank models by modelled energy and by measured CPU time, and compare the two orders.

    OMP_NUM_THREADS=1 python benchmarks/energy_tiers.py [--blocks 30] [--batches 64 1]

Fourteen variants of the course's networks (dense, masked, with units missing, low rank, other architectures; eight-bit
integers in ONNX Runtime) are timed side by side. For each way of ranking them the table gives Spearman's
correlation with the CPU time of one inference, with its bootstrap interval over the variants. Weights are random, since
neither time nor the model depends on them. They take 0.01 to 1.7 MB and are called over and over, so the weights stay in
the processor's cache: the bracket to hold against CPU time is "on chip". At batch 1 the overhead of the call rules, and
DRAM is never asked; those rows are for comparison.
"""
import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import nn

from course_lib import cost, deploy, energy, models, predictors, pruning, timing
from course_lib.declared import LayerCost

ONNX_RUNTIME, EAGER = "ONNX Runtime", "eager PyTorch"


def masked(model: nn.Module, sparsity: float) -> nn.Module:
    """A copy with the smallest weights at zero; it stays as large."""
    return pruning.prune_threshold(model, threshold=pruning.threshold_for(model, sparsity=sparsity))


def low_rank(rank: int) -> nn.Module:
    """LeNet-300-100 with its first two layers as products of two thin ones."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, rank, bias=False), nn.Linear(rank, 300), nn.ReLU(),
                         nn.Linear(300, rank, bias=False), nn.Linear(rank, 100), nn.ReLU(), nn.Linear(100, 10))


def variants() -> dict[str, nn.Module]:
    """Networks by name; "units gone" has the shape that structured pruning leaves."""
    dense, convolutional = models.lenet_300_100(), models.cnn()
    return {"LeNet-300-100": dense, "masked 90 %": masked(dense, 0.9), "half the units gone": models.mlp(hidden=(150, 50)),
            "three quarters gone": models.mlp(hidden=(75, 25)), "rank 16": low_rank(16), "rank 64": low_rank(64),
            "student 784-32-10": models.mlp(hidden=(32,)), "CNN 32-64": convolutional, "CNN masked 80 %": masked(convolutional, 0.8),
            "CNN half the channels gone": models.cnn(widths=(16, 32)), "CNN three quarters gone": models.cnn(widths=(8, 16)),
            "LeNet-5": models.lenet5(), "tiny strided student": models.student(), "ResNet": models.resnet()}


def deployed(model: nn.Module, *, integers: bool = False):
    """The model in ONNX Runtime, as a function; with its dense layers in eight-bit integers if asked for."""
    content = deploy.onnx_bytes(model, torch.rand(64, 1, 28, 28))
    if integers:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(content)
            quantize_dynamic(path, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
            content = path.read_bytes()
    return deploy.load_onnx(content)


def as_integers(layers: list[LayerCost]) -> list[LayerCost]:
    """The same layers with weights of one byte."""
    return [dataclasses.replace(row, operands="int8", weight_bytes=row.weight_bytes // 4) for row in layers]


def cpu_seconds(functions: dict, inputs, *, blocks: int) -> dict[str, float]:
    """CPU seconds of one inference of each variant, all side by side in one run."""
    calls = {name: lambda run=run: run(inputs) for name, run in functions.items()}
    timed = timing.compare(calls, blocks=blocks, max_blocks=max(blocks, 300))
    return {name: timed.seconds(name, clock="cpu") / len(inputs) for name in functions}


def stand_ins(layers: dict[str, list[LayerCost]], batch: int) -> dict[str, list[float]]:
    """What ranks the variants, one number each."""
    def modelled(**which):
        return [energy.modelled_from_costs(rows, batch=batch, **which).value for rows in layers.values()]
    return {"MACs, zeros skipped": [sum(row.ideal_macs for row in rows) for rows in layers.values()],
            "MACs, as executed": [sum(row.macs for row in rows) for rows in layers.values()],
            "modelled, weights on chip": modelled(weights=energy.ON_CHIP),
            "modelled, weights in DRAM": modelled(weights=energy.DRAM),
            "modelled, DRAM, zeros skipped": modelled(weights=energy.DRAM, ideal=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank correlation of modelled energy and of MACs with measured CPU time.")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1])
    options = parser.parse_args()

    torch.manual_seed(0)
    networks, images = variants(), torch.rand(max(options.batches), 1, 28, 28)
    layers = {name: cost.layer_costs(model, images[:1]) for name, model in networks.items()}
    runtimes = {ONNX_RUNTIME: {name: deployed(model) for name, model in networks.items()},
                EAGER: {name: torch.no_grad()(model.eval()) for name, model in networks.items()}}
    runtimes[ONNX_RUNTIME]["LeNet-300-100, int8"] = deployed(networks["LeNet-300-100"], integers=True)
    layers["LeNet-300-100, int8"] = as_integers(layers["LeNet-300-100"])
    for runtime, functions in runtimes.items():
        counted = {name: layers[name] for name in functions}
        for batch in options.batches:
            inputs = images[:batch].numpy() if runtime == ONNX_RUNTIME else images[:batch]
            seconds = cpu_seconds(functions, inputs, blocks=options.blocks)
            found = stand_ins(counted, batch)
            print(f"\n{runtime}, batch {batch}, {len(functions)} variants: CPU time and modelled energy (weights on chip)")
            for name, joules in sorted(zip(functions, found["modelled, weights on chip"]), key=lambda pair: seconds[pair[0]]):
                print(f"  {name:28} {1e6 * seconds[name]:8.2f} µs  {energy.format_joules(joules):>8}")
            correlation = {what: predictors.bootstrap(predictors.spearman, values, list(seconds.values())) for what, values in found.items()}
            for what, e in correlation.items():
                print(f"  Spearman, {what:30} {e.value:5.2f}  [{e.low:5.2f}, {e.high:5.2f}]")
            chip, macs = correlation["modelled, weights on chip"], correlation["MACs, as executed"]
            print(f"  on chip: interval {'above' if chip.low > 0 else 'NOT above'} 0, "
                  f"correlation {'above' if chip.value > macs.value else 'NOT above'} that of MACs as executed")


if __name__ == "__main__":
    main()
