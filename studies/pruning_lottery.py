"""Lottery tickets: do the first weights of a pruned network matter? And 2:4, against zeros anywhere."""
import torch
from common import LENET, accuracy, fine_tuned
from runner import Study, main

from course_lib import data, models, pruning, training

SPARSITIES = (0.8, 0.95, 0.98)


def shuffled(masks: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same number of weights left in each layer, but anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return {name: kept.flatten()[torch.randperm(kept.numel(), generator=generator)].view_as(kept) for name, kept in masks.items()}


def unit(network: str, seed: int) -> list[dict]:
    """Train, prune, go back to the first weights, train again; with new first weights; with other zeros."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    initial = models.lenet_300_100(digits.channels, digits.image_size)
    training.set_seed(seed + 1000)
    other = models.lenet_300_100(digits.channels, digits.image_size)

    def train(model, *callbacks):
        return training.fit(model, digits.train, epochs=25, lr=2e-3, seed=seed, callbacks=callbacks)[0]

    dense = train(initial)
    rows = [{"start": "no pruning", "after": accuracy(dense, digits)}]
    for sparsity in SPARSITIES:
        pruned = pruning.prune(dense, amount=sparsity)
        kept = pruning.Masks(pruned).kept
        starts = {"ticket": pruning.rewind(pruned, initial), "new weights": pruning.rewind(pruned, other),
                  "other zeros": pruning.apply_masks(initial, shuffled(kept, seed))}
        rows += [{"start": name, "sparsity": sparsity, "after": accuracy(train(start, pruning.Masks(start)), digits)}
                 for name, start in starts.items()]
    tuned = fine_tuned(LENET, dense, digits)
    rows.append({"start": "dense, fine-tuned", "after": accuracy(tuned, digits)})
    for name, model in {"2:4": pruning.prune_n_m(dense), "half, anywhere": pruning.prune(dense, amount=0.5)}.items():
        tuned = fine_tuned(LENET, model, digits, pruning.Masks(model))
        rows.append({"start": name, "before": accuracy(model, digits), "after": accuracy(tuned, digits)})
    return rows


if __name__ == "__main__":
    main(Study("pruning_lottery", (LENET,), tuple(range(10)), unit))
