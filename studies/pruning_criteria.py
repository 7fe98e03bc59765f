"""Which weights? Magnitude, activation, Taylor and chance, at equal sparsity, before and after fine-tuning."""
from common import CNN, LENET, accuracy, fine_tuned, trained
from runner import Study, main

from course_lib import pruning

CASES = {LENET: [(s, scope) for s in (0.8, 0.9, 0.95) for scope in ("global", "layer")],
         CNN: [(0.9, "global")]}


def unit(network: str, seed: int) -> list[dict]:
    """Four criteria at each sparsity, and the control that got the same fine-tuning without pruning."""
    dense, digits = trained(network, seed)
    images, labels = digits.train.images[:1024], digits.train.labels[:1024]
    criteria = {"magnitude": pruning.magnitude(dense), "activation": pruning.activation(dense, images),
                "Taylor": pruning.taylor(dense, images, labels), "random": pruning.at_random(dense, seed=seed)}
    rows = [{"criterion": "no pruning", "before": accuracy(dense, digits), "after": accuracy(fine_tuned(network, dense, digits), digits)}]
    for sparsity, scope in CASES[network]:
        for criterion, scores in criteria.items():
            model = pruning.prune(dense, amount=sparsity, scope=scope, scores=scores)
            tuned = fine_tuned(network, model, digits, pruning.Masks(model))
            rows.append({"criterion": criterion, "scope": scope, "sparsity": sparsity,
                         "before": accuracy(model, digits), "after": accuracy(tuned, digits)})
    return rows


if __name__ == "__main__":
    main(Study("pruning_criteria", (LENET, CNN), tuple(range(8)), unit))
