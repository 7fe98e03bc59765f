"""Time and memory of pruning beside torch.nn.utils.prune and Torch-Pruning, on models of 0.1 to 25 million parameters.

    python benchmarks/pruning.py [--blocks 15] [--largest 25]

Four tasks. Both sides leave the model that they are given as it was; where a library works in place, it gets a
copy, and the copy counts. The column "in place" is the library's time without that copy, for those who need none.

    prune          half of all weights, one threshold: prune(…)            | global_unstructured, remove
    apply masks    given masks: apply_masks(…)                             | custom_from_mask, remove
    remove         given units, groups known: remove_units(…)              | pruning groups of a known DependencyGraph
    thin           half of the units of every layer, from model to model:
                   unit_groups, unit_magnitude, choose_units, remove_units | MagnitudePruner(…).step()

Time is CPU time with one thread; a ratio is the median over blocks of the ratio inside one block, in which all
take turns in random order, with its 95 % interval. Below 1, course_lib is faster. Memory is the highest sum of
bytes that PyTorch's allocator had handed out during the task and not yet got back (its profiler records each
allocation, so this repeats to the byte; the resident size of the process would mostly show what malloc keeps).
A known graph belongs to one model, which Torch-Pruning thins in place: in "remove" the copy is made beside it.
"""
import argparse
import copy
import gc
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn.utils import prune
from tqdm import tqdm

from course_lib import intervals, models, pruning, timing, vision

TASKS = ("prune", "apply masks", "remove", "thin")


def zoo(largest: float) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Models with an example for each: one small residual net at growing width, and ResNet-50."""
    example = torch.rand(1, 1, 28, 28)
    nets = {f"residual net, width {w}": (models.resnet(width=w), example) for w in (37, 116, 260, 581)}
    nets["ResNet-50"] = vision.torchvision().models.resnet50(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():           # course_lib does not count a weight that chanced to be 0 already; PyTorch does
        for weight in (w for net, _ in nets.values() for w in pruning.prunable(net).values()):
            weight[weight == 0] = 0.01
    return {name: (m.eval(), x) for name, (m, x) in nets.items() if millions(m) <= 1.1 * largest}


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def weights_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def prune_by_torch(model: nn.Module) -> nn.Module:
    prune.global_unstructured(weights_of(model), prune.L1Unstructured, amount=0.5)
    for module, name in weights_of(model):
        prune.remove(module, name)
    return model


def mask_by_torch(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    for name, module in model.named_modules():
        if f"{name}.weight" in masks:
            prune.custom_from_mask(module, "weight", masks[f"{name}.weight"])
            prune.remove(module, "weight")
    return model


def with_graph(model: nn.Module, example: torch.Tensor) -> tuple[nn.Module, object]:
    return model, torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)


def remove_by_torch_pruning(model_and_graph: tuple, plan: dict[str, list[int]]) -> nn.Module:
    model, graph = model_and_graph
    for name, gone in plan.items():
        layer = model.get_submodule(name)
        linear = isinstance(layer, nn.Linear)
        cut = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
        graph.get_pruning_group(layer, cut, idxs=gone).prune()
    return model


def thin(model: nn.Module, example: torch.Tensor) -> nn.Module:
    groups = pruning.unit_groups(model, example)
    plan = pruning.choose_units(groups, pruning.unit_magnitude(model, groups), amount=0.5)
    return pruning.remove_units(model, groups, plan)


def thin_by_torch_pruning(model: nn.Module, example: torch.Tensor) -> nn.Module:
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    torch_pruning.pruner.MagnitudePruner(model, example, importance=importance, pruning_ratio=0.5, ignored_layers=[last]).step()
    return model


def contestants(task: str, model: nn.Module, example: torch.Tensor) -> dict[str, tuple]:
    """For each contestant, what is prepared outside the measurement, and the function of it that is measured."""
    def fresh():
        return copy.deepcopy(model)

    if task == "prune":
        ours, theirs = lambda m: pruning.prune(m, amount=0.5), prune_by_torch
    elif task == "apply masks":
        masks = pruning.keep_masks(model, pruning.magnitude(model), amount=0.5)
        ours, theirs = lambda m: pruning.apply_masks(m, masks), lambda m: mask_by_torch(m, masks)
    elif task == "remove":
        groups = pruning.unit_groups(model, example)
        plan = pruning.choose_units(groups, pruning.unit_magnitude(model, groups), amount=0.5)

        def known():
            return with_graph(fresh(), example)

        return {"ours": (lambda: model, lambda m: pruning.remove_units(m, groups, plan)),
                "with copy": (known, lambda pair: (fresh(), remove_by_torch_pruning(pair, plan))[1]),
                "in place": (known, lambda pair: remove_by_torch_pruning(pair, plan))}
    else:
        ours, theirs = lambda m: thin(m, example), lambda m: thin_by_torch_pruning(m, example)
    return {"ours": (lambda: model, ours), "with copy": (lambda: model, lambda m: theirs(copy.deepcopy(m))),
            "in place": (fresh, theirs)}


def same_result(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same numbers, but for weights that tie at the cut: those go in any order."""
    first, second = one.state_dict(), other.state_dict()
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        return False
    differences = torch.cat([(first[n] - second[n]).abs().flatten() for n in first])
    zeros = [sum(int((t == 0).sum()) for t in state.values()) for state in (first, second)]
    return zeros[0] == zeros[1] and len(differences[differences != 0].unique()) <= 1


def cpu_seconds(prepare, run) -> float:
    prepared = prepare()
    gc.collect()
    begin = time.process_time()
    run(prepared)
    return time.process_time() - begin


def peak_bytes(prepare, run) -> int:
    """Most bytes that the task held at one moment, beyond what it was given."""
    prepared = prepare()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run(prepared)
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    return max(itertools.accumulate((change for _, change in sorted(changes, key=lambda c: c[0])), initial=0))


def compare(task: str, model: nn.Module, example: torch.Tensor, blocks: int, rng: np.random.Generator) -> dict:
    """Ratios of ours to each of theirs in time and memory, and our own time and memory."""
    who = contestants(task, model, example)
    results = [run(prepare()) for prepare, run in who.values()]         # also warms up
    if task != "thin" and not all(same_result(results[0], other) for other in results[1:]):
        raise AssertionError(f"{task}: the results differ")
    del results
    seconds = {name: [] for name in who}
    with timing.one_thread():
        for _ in range(blocks):
            for name in rng.permutation(list(who)):
                seconds[name].append(cpu_seconds(*who[name]))
        peaks = {name: peak_bytes(*pair) for name, pair in who.items()}
    ratios = {name: intervals.bootstrap_median(np.array(seconds["ours"]) / np.array(seconds[name]))
              for name in who if name != "ours"}
    return {"ratios": ratios, "memory": {name: peaks["ours"] / peaks[name] for name in ratios},
            "milliseconds": 1e3 * np.median(seconds["ours"]), "megabytes": peaks["ours"] / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of pruning against two libraries, as ratios.")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--largest", type=float, default=25, help="leave out models of more million parameters")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    cases = [(task, name, *pair) for task in TASKS for name, pair in zoo(options.largest).items()]
    print(f"{options.blocks} blocks, one thread; ratios of course_lib to the library, below 1 is better\n")
    print(f"{'task':12} {'model':24} {'million':>7} {'ms':>8} {'MB':>6}   {'CPU time: with copy':22} {'in place':22} memory")
    for task, name, model, example in tqdm(cases, desc="comparing", disable=None):
        row = compare(task, model, example, options.blocks, rng)
        time_columns = [f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" if (r := row["ratios"].get(how)) else "–"
                        for how in ("with copy", "in place")]
        memory = row["memory"].get("with copy", row["memory"]["in place"])
        print(f"{task:12} {name:24} {millions(model):7.2f} {row['milliseconds']:8.1f} {row['megabytes']:6.1f}   "
              f"{time_columns[0]:22} {time_columns[1]:22} {memory:.2f}", flush=True)


if __name__ == "__main__":
    main()
