"""What several studies of pruning share: the trained networks, and the same fine-tuning for all that are compared."""
from torch import nn

from course_lib import data, models, training

LENET, CNN = "LeNet-300-100", "CNN 32-64"


def trained(network: str, seed: int) -> tuple[nn.Module, data.Dataset]:
    """A trained dense network and the data it saw."""
    digits = data.load(seed=seed)
    training.set_seed(seed)
    if network == LENET:
        model, epochs, lr = models.lenet_300_100(digits.channels, digits.image_size), 25, 2e-3
    else:
        model, epochs, lr = models.cnn(digits.channels, digits.image_size), 8, 3e-3
    return training.fit(model, digits.train, epochs=epochs, lr=lr, seed=seed)[0], digits


def fine_tuned(network: str, model: nn.Module, digits: data.Dataset, *callbacks) -> nn.Module:
    """The model after the fine-tuning that all models of this network get, pruned or not."""
    epochs, lr = (5, 1e-3) if network == LENET else (3, 3e-3)
    return training.fit(model, digits.train, epochs=epochs, lr=lr, seed=digits.seed + 1, callbacks=callbacks)[0]


def accuracy(model: nn.Module, digits: data.Dataset) -> float:
    """Accuracy on the test images."""
    return training.evaluate(model, digits.test).value
