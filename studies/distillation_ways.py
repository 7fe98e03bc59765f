"""More than logits: features, a copy of itself, and a teacher for networks that were pruned or rounded; each beside plain logits.

"strided 8-12-8": a small student of the CNN. Its first weights, images and steps are the same for all ways of a seed, except that
"itself" is a second generation, with other first weights, which costs the training twice.
"LeNet-300-100": fine-tuned after pruning or rounding, with labels or with its dense self as teacher; "nothing" is before that.
Settings: "all labels", 3,500 images, deformed; "100 images", no others, and not deformed; "100 labels", as "all labels", with the labels
and the images of 100. The weights of the feature terms are the best of those tried (hint 3 to 300, attention 30 to 1000, relation 30 to
3000) with 100 images, on validation images of seed 100, which is not in the study; the rate for the pruned network is the better of two there.
"""
from common import LENET, accuracy
from runner import Study, main
from torch import nn
from torch.nn import functional as F

from course_lib import data, distillation, models, pruning, training
from course_lib.data import Split
from course_lib.quantization import fake_quantized

STRIDED = "strided 8-12-8"
TEMPERATURE, COPIES = 4.0, 4
ALL, FEW_IMAGES, FEW_LABELS, FEW = "all labels", "100 images", "100 labels", 100
EPOCHS = {ALL: 12, FEW_IMAGES: 250}        # 660 steps, and 500
LAYER, TEACHERS_LAYER, SIZE = "5", "4", 7           # both after a ReLU; the teacher's 11 × 11 places are averaged to 7 × 7
WEIGHTS = {"hint": 300.0, "attention": 300.0, "relation": 3000.0}
SPARSITY, BITS = 0.98, 2
RATES = {"pruned": 5e-3, "rounded": 1e-3}            # of fine-tuning


def smaller(features):
    """The teacher's features, as many places as the student has."""
    return F.adaptive_avg_pool2d(features, SIZE)


def taught(transfer: list[Split], seed: int, epochs: int, *, features: str | None = None, alpha: float = 1.0,
           start: int | None = None) -> nn.Module:
    """A student of the logits (alpha = 1) or of the labels (0), and of the features too if their kind is named."""
    training.set_seed(seed if start is None else start)
    model, loss = models.student(), distillation.distillation_loss(temperature=TEMPERATURE, alpha=alpha)
    if features:
        of = {"hint": lambda f: f, "attention": distillation.attention_map, "relation": distillation.relations}[features]
        loss = distillation.feature_loss(weight=WEIGHTS[features], of=of, temperature=TEMPERATURE, alpha=alpha)
        model = distillation.Watched(model, LAYER, nn.Conv2d(12, 64, 1) if features == "hint" else None)
    trained, _ = distillation.distill(model, transfer, epochs=epochs, lr=1e-2, seed=seed, loss=loss)
    return trained.student if features else trained


def ways(teacher: nn.Module, transfer: list[Split], seed: int, epochs: int) -> dict[str, nn.Module]:
    """The same student, taught in every way."""
    students = {"the teacher": teacher, "labels": taught(transfer, seed, epochs, alpha=0), "logits": taught(transfer, seed, epochs)}
    students |= {f"logits + {kind}": taught(transfer, seed, epochs, features=kind) for kind in WEIGHTS}
    students["labels + hint"] = taught(transfer, seed, epochs, features="hint", alpha=0)
    own = [distillation.transfer_set(students["labels"], Split(v.images, v.labels.labels), copies=0)[0] for v in transfer]
    return students | {"itself": taught(own, seed, epochs, start=seed + 1000)}


def small(digits: data.Dataset) -> list[dict]:
    """The strided student, with every image and with a hundred."""
    seed, rows = digits.seed, []
    training.set_seed(seed)
    teacher = training.fit(models.cnn(), digits.train, epochs=5, lr=3e-3, seed=seed)[0]
    for setting, images, copies in ((ALL, digits.train, COPIES), (FEW_IMAGES, digits.train.first(FEW), 0)):
        transfer = distillation.transfer_set(teacher, images, copies=copies, seed=seed, layer=TEACHERS_LAYER, reduce=smaller)
        rows += [{"setting": setting, "way": way, "accuracy": accuracy(model, digits)}
                 for way, model in ways(teacher, transfer, seed, EPOCHS[setting]).items()]
    return rows


def shrunk(digits: data.Dataset) -> list[dict]:
    """A pruned and a rounded network after the same steps, with labels and with the dense network as teacher."""
    seed = digits.seed
    training.set_seed(seed)
    dense = training.fit(models.lenet_300_100(), digits.train, epochs=12, lr=2e-3, seed=seed)[0]
    transfer = distillation.transfer_set(dense, digits.train, copies=COPIES, seed=seed)
    few = [v.first(FEW) for v in transfer]
    pruned, rounded = pruning.prune(dense, amount=SPARSITY), fake_quantized(dense, BITS)
    rows = [{"setting": ALL, "way": "no change", "accuracy": accuracy(dense, digits)}]
    for change, model, callbacks in (("pruned", pruned, (pruning.Masks(pruned),)), ("rounded", rounded, ())):
        rows.append({"setting": ALL, "way": f"{change}: nothing", "accuracy": accuracy(model, digits)})
        for setting, way, part, alpha, epochs in ((ALL, "labels", transfer, 0, 5), (ALL, "its dense self", transfer, 1, 5),
                                                  (FEW_LABELS, "labels", few, 0, 138)):     # 275 steps, and 276
            tuned = distillation.distill(model, part, epochs=epochs, lr=RATES[change], seed=seed + 1,
                                         temperature=TEMPERATURE, alpha=alpha, callbacks=callbacks)[0]
            rows.append({"setting": setting, "way": f"{change}: {way}", "accuracy": accuracy(tuned, digits)})
    return rows


def unit(configuration: str, seed: int) -> list[dict]:
    """Train the teacher of one seed, and every student of the configuration with it and without."""
    digits = data.load(seed=seed)
    return small(digits) if configuration == STRIDED else shrunk(digits)


if __name__ == "__main__":
    main(Study("distillation_ways", (LENET, STRIDED), tuple(range(10)), unit))
