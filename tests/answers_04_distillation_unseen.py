"""Right and planted wrong answers to the exercises of "Distillation without labels", for test_exercises.py.

RESULTS and EXERCISES as in answers_quantization.py.
"""
import math

import pandas as pd
import torch

NOTEBOOK = "04_distillation_unseen"


def parts(table, *, same=("steps",), others=(("labelled", "soft"), ("all", "decisions")), pick=lambda twins: twins[0]):
    """What the images brought and what the softness brought, with each of its parts to be broken."""
    def runs(images, targets):
        return [run for run in table if (run["images"], run["targets"]) == (images, targets)]
    best, = runs("all", "soft")
    twins = [[run["accuracy"] for run in runs(*other) if all(run[key] == best[key] for key in same)] for other in others]
    return tuple(best["accuracy"] - pick(found) if found else None for found in twins)


def sort_in_place(table):
    table.sort(key=lambda run: run["accuracy"])
    return table


COSTS = pd.DataFrame(
    [("CNN, own labels", 0.93, 100, 307_000), ("labels only", 0.80, 100, 25_408), ("full teacher, all images", 0.95, 3500, 25_408),
     ("own teacher, all images", 0.88, 100, 25_408), ("own teacher's decisions", 0.87, 100, 25_408)],
    columns=["name", "accuracy", "labels", "MACs"]).set_index("name")

RESULTS = {NOTEBOOK: {"costs": COSTS}}


def epochs(n_all, epochs_all, n, batch):
    return -(-(-(-n_all // batch) * epochs_all) // -(-n // batch))


def common_shift(logits, classes, share):
    """The shift by halving an interval, since the share grows with it."""
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        moved = logits.clone()
        moved[:, classes] += middle
        reached = torch.isin(moved.argmax(1), torch.tensor(classes)).float().mean() >= share
        low, high = (low, middle) if reached else (middle, high)
    return high


def gaps(logits, classes):
    outside = [k for k in range(10) if k not in classes]
    return logits[:, outside].amax(1) - logits[:, classes].amax(1)


def pseudo_labels(logits, threshold, none=-100):
    p = logits.softmax(1)
    labels = p.argmax(1)
    labels[p.amax(1) < threshold] = none
    return labels


EXERCISES = [
    (NOTEBOOK, "check_1",
     [epochs, lambda a, e, n, b: math.ceil(e * math.ceil(a / b) / math.ceil(n / b))],
     [lambda a, e, n, b: e,                                             # as many epochs
      lambda a, e, n, b: math.ceil(e * a / n),                          # as many images
      lambda a, e, n, b: e * math.ceil(a / b) // math.ceil(n / b),      # rounded down
      lambda a, e, n, b: e * math.ceil(a / b),                          # the steps
      lambda a, e, n, b: math.ceil(e * (a // b) / (n // b)), 550]),
    (NOTEBOOK, "check_2", [4 * math.log(3), math.log(81)],
     [math.log(3), -4 * math.log(3), 4 / math.log(3), 12, 4 * math.log(28), 3, "4 * math.log(3)"]),
    (NOTEBOOK, "check_3",
     [common_shift, lambda z, c, s: gaps(z, c).sort().values[round(s * len(z)) - 1].item() + 1e-5],
     [lambda z, c, s: -common_shift(z, c, s),                           # lowered in place of raised
      lambda z, c, s: common_shift(z, c, 1 - s),
      lambda z, c, s: common_shift(z, c[:1], s),                        # one of the classes only
      lambda z, c, s: float(gaps(z, c).mean()),
      lambda z, c, s: float((z.amax(1) - z[:, c].amax(1)).quantile(s)),    # of all classes, these included
      lambda z, c, s: sum(common_shift(z, [k], s / len(c)) for k in c) / len(c), 2.0]),
    (NOTEBOOK, "check_4",
     [pseudo_labels, lambda z, t: torch.where(z.log_softmax(1).exp().amax(1) >= t, z.argmax(1), -100)],
     [lambda z, t: z.argmax(1),                                         # however unsure
      lambda z, t: pseudo_labels(z, t, none=-1),
      lambda z, t: z.argmax(1).masked_fill(z.amax(1) < t, -100),        # logits are no probabilities
      lambda z, t: z.argmax(1).masked_fill(z.softmax(0).amax(1) < t, -100),     # over the images
      lambda z, t: z.argmax(1)[z.softmax(1).amax(1) >= t],              # some are missing
      lambda z, t: z.argmax(1).masked_fill(z.softmax(1).amax(1) <= t, -100),    # equal is enough
      lambda z, t: pseudo_labels(z, t).unsqueeze(1),
      lambda z, t: z.softmax(1).amax(1) >= t]),
    (NOTEBOOK, "check_5", ["own teacher, all images", "own teacher, " + "all images"],
     ["full teacher, all images", "CNN, own labels", "labels only", "own teacher's decisions", 0.88]),
    (NOTEBOOK, "check_6", [parts, lambda table: parts(table[::-1])],
     [lambda table: parts(table, same=()),                                      # whoever comes first, whatever the steps
      lambda table: parts(table, same=(), pick=max), lambda table: parts(table)[::-1],
      lambda table: parts(table, others=(("labelled", "labels"), ("all", "decisions"))),                    # two things changed
      lambda table: parts(table, others=(("labelled", "soft"), ("labelled", "labels"))),
      lambda table: tuple(-x if x is not None else None for x in parts(table)), lambda table: tuple(x or 0.0 for x in parts(table)),
      lambda table: tuple(100 * x if x is not None else None for x in parts(table)), lambda table: parts(sort_in_place(table)),
      lambda table: list(parts(table)), (0.06, 0.02)]),
]
