"""How many weights in which layer? Equal amounts, one global threshold, or amounts from a sensitivity scan.

The amounts are chosen on validation images; the accuracies are those on test images.
"""
from common import CNN, LENET, accuracy, fine_tuned, trained
from runner import Study, main

from course_lib import pruning, training

LEVELS = [0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99]
SPARSITIES = {LENET: (0.8, 0.9, 0.95, 0.98), CNN: (0.9, 0.95)}


def unit(network: str, seed: int) -> list[dict]:
    """Three plans at equal sparsity, before and after the same fine-tuning; and the control without pruning."""
    dense, digits = trained(network, seed)
    scanned = pruning.scan(dense, lambda model: training.evaluate(model, digits.validation).value, levels=LEVELS)
    rows = [{"plan": "no pruning", "before": accuracy(dense, digits), "after": accuracy(fine_tuned(network, dense, digits), digits)}]
    for sparsity in SPARSITIES[network]:
        plans = {"equal": pruning.prune(dense, amount=sparsity, scope="layer"), "global": pruning.prune(dense, amount=sparsity),
                 "scan": pruning.prune(dense, amount=pruning.amounts_for(dense, scanned, sparsity=sparsity))}
        for plan, model in plans.items():
            tuned = fine_tuned(network, model, digits, pruning.Masks(model))
            rows.append({"plan": plan, "sparsity": sparsity, "reached": pruning.sparsity(tuned),
                         "before": accuracy(model, digits), "after": accuracy(tuned, digits)})
    return rows


if __name__ == "__main__":
    main(Study("pruning_allocation", (LENET, CNN), tuple(range(10)), unit))
