"""Which channels? Four criteria for whole units, and the baseline: as few channels from the start, same budget."""
from common import CNN, accuracy, fine_tuned, trained
from runner import Study, main

from course_lib import models, pruning, training

WIDTHS = {0.5: (16, 32), 0.75: (8, 16)}
EPOCHS = 8 + 3          # of training and fine-tuning together


def unit(network: str, seed: int) -> list[dict]:
    """Each criterion at each amount, removed and fine-tuned; the dense control; the small network from scratch."""
    dense, digits = trained(network, seed)
    images, labels = digits.train.images[:1024], digits.train.labels[:1024]
    groups = pruning.unit_groups(dense, images[:2])
    criteria = {"magnitude": pruning.unit_magnitude(dense, groups), "activation": pruning.unit_activation(dense, groups, images),
                "Taylor": pruning.unit_taylor(dense, groups, images, labels), "random": pruning.unit_random(groups, seed=seed)}
    rows = [{"criterion": "no pruning", "before": accuracy(dense, digits), "after": accuracy(fine_tuned(network, dense, digits), digits)}]
    for amount, widths in WIDTHS.items():
        for criterion, scores in criteria.items():
            small = pruning.remove_units(dense, groups, pruning.choose_units(groups, scores, amount=amount))
            rows.append({"criterion": criterion, "amount": amount, "before": accuracy(small, digits),
                         "after": accuracy(fine_tuned(network, small, digits), digits)})
        training.set_seed(seed)
        start = models.cnn(digits.channels, digits.image_size, widths=widths)
        for name, lr in (("from scratch", 3e-3), ("from scratch, higher rate", 8e-3)):
            small, _ = training.fit(start, digits.train, epochs=EPOCHS, lr=lr, seed=seed)
            rows.append({"criterion": name, "amount": amount, "after": accuracy(small, digits)})
    return rows


if __name__ == "__main__":
    main(Study("pruning_units", (CNN,), tuple(range(10)), unit))
