"""int8 in PyTorch, as written and compiled: what each way costs in time, and how long the compiler takes.

One unit is one fresh process with an empty compiler cache, and one network. Compiling needs a C++ compiler; the chapter
shows these rows, so that its readers need none. Units run one after the other, and want a quiet machine.
"""
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from fresh import answered, fresh_process
from runner import Study, main

from course_lib import models, timing
from course_lib.quantization.ready_made import dynamic_int8, exported_int8, torchao_int8

SCRIPT = Path(__file__).resolve()
BATCHES = (1, 64, 1024)
NETWORKS = {"MLP 784-128-10": models.mlp, "CNN 32-64": models.cnn}
EAGER, COMPILED, LEGACY = "as written", "compiled", "quantize_dynamic"


def ways(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.nn.Module]:
    """The float model, which is the reference, and its int8 forms."""
    return {"float32": model, LEGACY: dynamic_int8(model)[0], "torchao, dynamic": torchao_int8(model),
            "torchao, weights only": torchao_int8(model, weights_only=True), "PT2E, static": exported_int8(model, images)}


def compiled(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, float]:
    """The model compiled for batches of this size, and the seconds until it has run twice."""
    begin = time.perf_counter()
    fast = torch.compile(model, dynamic=False)
    fast(images)
    fast(images)
    return fast, time.perf_counter() - begin


@torch.no_grad()
def process_run(network: str, seed: int, batches: tuple[int, ...] = BATCHES, blocks: int = 10) -> list[dict]:
    """One process run: rows for each batch size, way and form, relative to the float model as written."""
    import torch._inductor.config as inductor
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model, images = NETWORKS[network]().eval(), torch.rand(max(batches), 1, 28, 28)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        rows = []
        for batch in batches:
            torch._dynamo.reset()       # here and not for each model: it forgets all that was compiled
            with inductor.patch(freezing=True):     # the weights will not change: they may be packed for the processor
                rows += compared(ways(model, images[:64]), images[:batch], seed, blocks)
        return rows


def compared(models: dict[str, torch.nn.Module], images: torch.Tensor, seed: int, blocks: int) -> list[dict]:
    """Each model as written and compiled, timed side by side; the share of images that both forms put into the same class."""
    calls, rows = {}, {}
    for way, model in models.items():
        calls[f"{way}, {EAGER}"] = lambda model=model: model(images)
        rows[f"{way}, {EAGER}"] = {"way": way, "form": EAGER}
        if way != LEGACY:           # the compiler does not take its packed weights
            fast, seconds = compiled(model, images)
            calls[f"{way}, {COMPILED}"] = lambda fast=fast: fast(images)
            same = (fast(images).argmax(1) == model(images).argmax(1)).double().mean()
            rows[f"{way}, {COMPILED}"] = {"way": way, "form": COMPILED, "compile_seconds": seconds, "same_class": float(same)}
    with torch.compiler.set_stance("fail_on_recompile"):        # what is timed is what was compiled above
        timed = timing.compare(calls, blocks=blocks, seed=seed)
    return [{"batch": len(images), **row, "cpu_ratio": timed.ratio(name, clock="cpu").value,
             "cpu_seconds": timed.seconds(name, clock="cpu")} for name, row in rows.items()]


def unit(configuration: str, seed: int) -> list[dict]:
    """One process run of the network that the configuration names."""
    return fresh_process(SCRIPT, "process_run", network=configuration, seed=seed)


if __name__ == "__main__" and not answered(process_run):
    main(Study("quantization_compiled", tuple(NETWORKS), tuple(range(3)), unit, dataset="random images", jobs=1, measured=True,
               packages=("torchao",)))
