"""Bad calls, one a row: what was called, which error it must raise, and what the message must say.

Errors about damaged files are in test_data.py and test_files.py, those of checkers in test_checks.py.
"""
import math

import numpy as np
import pytest
import torch
from torch import nn

from course_lib import checks, cost, data, deploy, energy, files, intervals, models, pruning, quantization, report, timing, training
from helpers import IMAGE_SIZE, random_split, tiny

SPLIT = random_split(12)
EMPTY = SPLIT.first(0)
MLP = tiny("mlp")
FIT = {"epochs": 1, "lr": 0.01}
THREE = torch.zeros(3, dtype=torch.long)
GRID = quantization.grid_from_range(-1.0, 1.0, 8)


class NoMoment:
    def __repr__(self):
        return "NoMoment()"


BAD_CALLS = [
    # data
    ("an unknown data set", lambda: data.load("imagenet"), ValueError,
     "unknown data set 'imagenet'; choose one of mnist-5k, mnist, fashion-mnist, kmnist, cifar10"),
    # models
    ("a negative width", lambda: models.mlp(hidden=(-3,)), ValueError, 
     "hidden must hold whole numbers >= 1, such as (128,); got (-3,)"),
    ("no hidden layer", lambda: models.mlp(hidden=()), ValueError, "such as (128,); got ()"),
    ("a width that is no whole number", lambda: models.resnet(width=1.5), ValueError,
     "width must hold whole numbers >= 1, such as 16; got 1.5"),
    ("no channels", lambda: models.cnn(channels=0), ValueError, "channels must hold whole numbers >= 1, such as 1; got 0"),
    ("a truth value for a size", lambda: models.student(image_size=True), ValueError,
     "image_size must hold whole numbers >= 1, such as 28; got True"),
    ("text for a number", lambda: models.lenet5(classes="ten"), ValueError, "such as 10; got 'ten'"),
    ("three widths for two convolutions", lambda: models.cnn(widths=(1, 2, 3)), ValueError,
     "widths must hold two numbers, one for each convolution; got (1, 2, 3)"),
    ("one number for two widths", lambda: models.cnn(widths=8), ValueError,
     "widths must hold whole numbers >= 1, such as (32, 64); got 8"),
    ("a tuple for one number", lambda: models.resnet(width=(8, 8)), ValueError,
     "width must hold whole numbers >= 1, such as 16; got (8, 8)"),
    ("an image that vanishes", lambda: models.cnn(image_size=9), ValueError, "image_size is too small: nothing is left"),
    ("an unknown builder", lambda: models.build({"builder": "vgg"}), ValueError,
     "unknown builder 'vgg'; choose one of mlp, lenet_300_100"),
    ("a description without a builder", lambda: models.build({"channels": 1}), ValueError, "unknown builder None"),
    ("an unknown argument", lambda: models.mlp(depth=3), TypeError, "unexpected keyword argument 'depth'"),
    # training
    ("no epochs", lambda: training.fit(MLP, SPLIT, epochs=0, lr=0.1), ValueError, "epochs >= 1, batch_size >= 1, lr > 0"),
    ("the number of epochs that was passed", lambda: training.fit(MLP, SPLIT, epochs=-2, lr=0.1), ValueError, "epochs=-2"),
    ("no learning rate", lambda: training.fit(MLP, SPLIT, epochs=1, lr=0.0), ValueError, "lr=0.0"),
    ("a learning rate that is not a number", lambda: training.fit(MLP, SPLIT, epochs=1, lr=math.nan), ValueError, "lr=nan"),
    ("an empty batch", lambda: training.fit(MLP, SPLIT, batch_size=0, **FIT), ValueError, "batch_size=0"),
    ("an unknown rule of what to keep", lambda: training.fit(MLP, SPLIT, SPLIT, keep="first", **FIT), ValueError,
     "keep='first'"),
    ("no training images", lambda: training.fit(MLP, EMPTY, **FIT), ValueError, "need training images"),
    ("the best epoch without validation", lambda: training.fit(MLP, SPLIT, keep="best", **FIT), ValueError,
     "choose by validation accuracy: pass the validation part"),
    ("patience without validation", lambda: training.fit(MLP, SPLIT, patience=2, **FIT), ValueError,
     "pass the validation part"),
    ("no patience at all", lambda: training.fit(MLP, SPLIT, SPLIT, patience=0, **FIT), ValueError,
     "patience must be at least one epoch; got 0"),
    ("a callback without a moment", lambda: training.fit(MLP, SPLIT, callbacks=[NoMoment()], **FIT), TypeError,
     "NoMoment() has none of the methods before_training, after_backward, after_step, after_epoch, after_training"),
    ("accuracy on nothing", lambda: training.evaluate(MLP, EMPTY), ValueError, "cannot evaluate on an empty split"),
    ("predictions of different images", lambda: training.compare_predictions(THREE, THREE[:2], THREE), ValueError,
     "predictions and labels must have one shape; got (3,), (2,), (3,)"),
    # intervals
    ("more successes than cases", lambda: intervals.wilson(11, 10), ValueError, "0 <= successes <= n and n >= 1; got 11 of 10"),
    ("no cases", lambda: intervals.wilson(0, 0), ValueError, "got 0 of 0"),
    ("a percentage for a confidence", lambda: intervals.wilson(5, 10, confidence=95), ValueError,
     "confidence must be a fraction between 0 and 1, e.g. 0.95; got 95"),
    ("a percentage for a confidence, again", lambda: intervals.mean_over_runs([1, 2], confidence=95), ValueError, "got 95"),
    ("a percentage for a confidence, once more", lambda: intervals.bootstrap_median([1, 2], confidence=95), ValueError,
     "got 95"),
    ("more disagreements than cases", lambda: intervals.paired_difference(6, 5, 10), ValueError,
     "gained + lost <= n; got 6, 5 of 10"),
    ("a negative count", lambda: intervals.paired_difference(-1, 5, 10), ValueError, "got -1, 5 of 10"),
    ("one run", lambda: intervals.mean_over_runs([0.9]), ValueError, "need at least two runs in one dimension; got shape (1,)"),
    ("runs in a table", lambda: intervals.mean_over_runs([[1, 2], [3, 4]]), ValueError, "got shape (2, 2)"),
    ("one value", lambda: intervals.bootstrap_median([0.9]), ValueError,
     "need at least two values in one dimension; got shape (1,)"),
    # files
    ("a model that does not say how it was built", lambda: files.save(nn.Linear(2, 2), "never-written"), ValueError,
     "the model has no `architecture`: only models made by course_lib.models can be saved whole"),
    # cost
    ("no example", lambda: cost.macs(MLP, EMPTY.images), ValueError, "need at least one example to run the model on"),
    ("an operation without a price", lambda: cost.macs(nn.Upsample(scale_factor=2), SPLIT.images), ValueError,
     "cannot count the operation 'upsample_nearest2d' in layer '(model)'"),
    # timing
    ("nothing to time", lambda: timing.compare({}), ValueError, "need at least one candidate"),
    ("a reserved name", lambda: timing.compare({"a": id, timing.AGAIN: id}), ValueError, "none named 'the reference again'"),
    ("one block", lambda: timing.compare({"a": id}, blocks=1), ValueError, "2 <= blocks <= max_blocks; got ['a'], blocks=1"),
    ("a cap below the start", lambda: timing.compare({"a": id}, blocks=30, max_blocks=20), ValueError,
     "blocks=30, max_blocks=20"),
    # energy
    ("a point of watts", lambda: energy.Power(2.0, 2.0, "a guess"), ValueError,
     "declare an interval of watts, such as 0.7 to 2.3: a point claims to know too much; got 2.0 twice"),
    ("watts upside down", lambda: energy.Power(5.0, 2.0, "a guess"), ValueError, "the interval of watts is upside down: 5.0 to 2.0"),
    ("negative watts", lambda: energy.Power(-1.0, 2.0, "a guess"), ValueError, "watts must be finite numbers above 0"),
    ("watts in words", lambda: energy.Power("2", 5.0, "a guess"), ValueError, "got '2' to 5.0"),
    ("endless watts", lambda: energy.Power(2.0, math.inf, "a guess"), ValueError, "watts must be finite numbers above 0"),
    ("watts from nowhere", lambda: energy.Power(2.0, 5.0, " "), ValueError, "name the source of the watts"),
    ("watts as a number", lambda: energy.declared(intervals.Estimate(1, 1, 1), 3.5, runs=5), TypeError,
     "declare the watts as an interval with its source, e.g. Power(0.7, 2.3, 'my guess'); got 3.5"),
    ("a batch of nothing", lambda: energy.modelled(MLP, SPLIT.images, batch=0), ValueError,
     "batch must be a whole number >= 1, such as 64; got 0"),
    ("weights elsewhere", lambda: energy.modelled(MLP, SPLIT.images, weights="sram"), ValueError,
     "weights must be 'weights on chip' or 'weights in DRAM'; got 'sram'"),
    ("a model of nothing", lambda: energy.modelled(nn.ReLU(), SPLIT.images), ValueError, "no layer that multiplies"),
    ("a data type without a price", lambda: energy.modelled(nn.Linear(2, 2).double(), torch.rand(1, 2).double()),
     energy.UnpricedOperation, "Horowitz 2014 has no energy for a multiply-accumulate of 'float64'; it has int8"),
    # deploy
    ("one image for a check of batches", lambda: deploy.export_onnx(MLP, "never-written.onnx", SPLIT.images[:1]), ValueError,
     "pass at least two example images, so that batches can be checked; got 1"),
    # report
    ("no model", lambda: report.measure({}, SPLIT), ValueError,
     "need a model, batches >= 1, runtimes among 'ONNX Runtime' and 'eager PyTorch'"),
    ("an unknown runtime", lambda: report.measure({"a": MLP}, SPLIT, runtimes=("TensorRT",)), ValueError,
     "['a'], ['TensorRT'], 12 images"),
    ("fewer images than a batch", lambda: report.measure({"a": MLP}, SPLIT, batches=(1, 64)), ValueError,
     "as many images as the largest batch; got ['a'], ['ONNX Runtime'], 12 images for batches=(1, 64)"),
    ("a table of nothing", lambda: report.compare([]), ValueError, "need at least one row to compare"),
    # checks
    ("a claim about an array", lambda: checks.expect("a claim", np.array([True])), TypeError,
     "ok must be True or False; got ndarray"),
    ("a checker without a right answer", lambda: checks.check(3, hint="none"), TypeError, "either `equals` or `like`"),
    # pruning
    ("a negative threshold", lambda: pruning.prune_threshold(MLP, threshold=-0.1), ValueError,
     "threshold must be a finite number >= 0, e.g. 0.05; got -0.1"),
    ("an infinite threshold", lambda: pruning.threshold_mask(torch.ones(2), threshold=math.inf), ValueError, "got inf"),
    ("a threshold that is not a number", lambda: pruning.threshold_mask(torch.ones(2), threshold=math.nan), ValueError,
     "got nan"),
    ("a truth value for a threshold", lambda: pruning.threshold_mask(torch.ones(2), threshold=True), ValueError, "got True"),
    ("whole numbers for weights", lambda: pruning.threshold_mask(torch.ones(2, dtype=torch.int8), threshold=0.5), TypeError,
     "weights must be floating point; got torch.int8"),
    ("truth values for weights", lambda: pruning.threshold_mask(torch.ones(2, dtype=torch.bool), threshold=0.5), TypeError,
     "got torch.bool"),
    ("weights that are not numbers", lambda: pruning.threshold_mask(torch.tensor([math.nan]), threshold=0.5), ValueError,
     "weights must be finite; got NaN or infinity (did training diverge?)"),
    ("a percentage for a sparsity", lambda: pruning.threshold_for(MLP, sparsity=90), ValueError,
     "sparsity must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got 90"),
    ("a negative sparsity", lambda: pruning.threshold_for(MLP, sparsity=-0.1), ValueError, "got -0.1"),
    ("a sparsity that is not a number", lambda: pruning.threshold_for(MLP, sparsity=math.nan), ValueError, "got nan"),
    ("a truth value for a sparsity", lambda: pruning.threshold_for(MLP, sparsity=True), ValueError, "got True"),
    ("a model with nothing to prune", lambda: pruning.threshold_for(nn.BatchNorm2d(3), sparsity=0.5), ValueError,
     "the model has no weight with two dimensions or more, or it is empty: nothing to prune"),
    ("masks of such a model", lambda: pruning.Masks(nn.ReLU()), ValueError, "nothing to prune"),
    ("masks for another model", lambda: pruning.Masks(MLP).before_training(tiny("cnn")), ValueError,
     "these masks belong to a model with other weights"),
    ("masks for other widths", lambda: pruning.Masks(MLP).before_training(models.mlp(1, IMAGE_SIZE, hidden=(6,))), ValueError,
     "these masks belong to a model with other weights"),
    ("a percentage for an amount", lambda: pruning.prune(MLP, amount=90), ValueError,
     "amount must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got 90"),
    ("a scope that does not exist", lambda: pruning.prune(MLP, amount=0.5, scope="channel"), ValueError,
     "scope must be 'global' or 'layer'; got 'channel'"),
    ("an amount for some layers only", lambda: pruning.prune(MLP, amount={"1.weight": 0.5}), ValueError,
     "amount must name every weight tensor: 1.weight, 3.weight; got 1.weight"),
    ("an amount for a layer that does not exist", lambda: pruning.prune(MLP, amount=dict.fromkeys("abc", 0.5)), ValueError,
     "amount must name every weight tensor: 1.weight, 3.weight; got a, b, c"),
    ("scores of another model", lambda: pruning.prune(MLP, amount=0.5, scores=pruning.magnitude(tiny("cnn"))), ValueError,
     "scores must have the names and shapes of the weights, {'1.weight': (5, 256), '3.weight': (10, 5)}; got {"),
    ("scores that are not numbers", lambda: pruning.prune(nn.Linear(2, 1), amount=0.5, scores={
        "weight": torch.tensor([[math.nan, 1.0]])}), ValueError, "scores must be finite; got NaN or infinity"),
    ("masks that are missing", lambda: pruning.apply_masks(MLP, {}), ValueError, "masks must have the names and shapes of the"),
    ("masks of numbers", lambda: pruning.apply_masks(MLP, pruning.magnitude(MLP)), ValueError,
     "the mask of 1.weight must be boolean, True for what stays; got torch.float32"),
    ("a ticket of another model", lambda: pruning.rewind(MLP, tiny("cnn")), ValueError, "masks must have the names and shapes"),
    ("influence without images", lambda: pruning.taylor(MLP, EMPTY.images, EMPTY.labels), ValueError,
     "need images, and one label for each; got 0 and 0"),
    ("influence with too few labels", lambda: pruning.taylor(MLP, SPLIT.images, SPLIT.labels[:5]), ValueError, "got 12 and 5"),
    ("activation without images", lambda: pruning.activation(MLP, EMPTY.images), ValueError, "need at least one image"),
    ("the same layer twice", lambda: pruning.activation(nn.Sequential(nn.Flatten(), *[nn.Linear(256, 256)] * 2), SPLIT.images),
     ValueError, "1.weight and 2.weight are one and the same weight; pruning a shared layer would change it in two places"),
    ("a schedule that ends before it begins", lambda: pruning.Gradual(final=0.9, begin=10, end=5), ValueError,
     "need 0 <= begin < end, initial <= final and power > 0; got begin=10, end=5, initial=0.0, final=0.9, power=3"),
    ("a schedule that falls", lambda: pruning.polynomial_sparsity(0, begin=0, end=5, final=0.1, initial=0.5), ValueError,
     "initial=0.5, final=0.1"),
    ("a schedule beyond the training", lambda: training.fit(MLP, SPLIT, callbacks=[pruning.Gradual(final=0.9, begin=0, end=99)],
                                                            **FIT), RuntimeError,
     "training had 1 steps, but the schedule ends at step 99; use an end below the number of steps"),
    ("updates never", lambda: pruning.Gradual(final=0.9, begin=0, end=5, frequency=0), ValueError, "a whole frequency >= 1"),
    ("a scan without the dense model", lambda: pruning.scan(MLP, lambda _: 1.0, levels=[0.5, 0.9]), ValueError,
     "levels must rise from 0, e.g. [0, 0.5, 0.9]; got [0.5, 0.9]"),
    ("a scan in percent", lambda: pruning.scan(MLP, lambda _: 1.0, levels=[0, 50]), ValueError,
     "each level must be a fraction from 0 to 1, e.g. 0.9 for 90 %; got 50"),
    # quantization
    ("no bits", lambda: quantization.grid_for(torch.ones(2), 0), ValueError, "bits must be a whole number from 1 to 16; got 0"),
    ("too many bits", lambda: quantization.quantize_weights(MLP, 17), ValueError, "bits must be a whole number from 1 to 16; got 17"),
    ("a truth value for bits", lambda: quantization.formula(torch.ones(2), True), ValueError, "from 1 to 16; got True"),
    ("half a bit", lambda: quantization.pack(THREE, 0.5), ValueError, "from 1 to 16; got 0.5"),
    ("equal values in the source's formula", lambda: quantization.formula(torch.ones(2), 8), ValueError,
     "all values are 1: the formula divides by x_max − x_min, which is 0"),
    ("an empty tensor", lambda: quantization.grid_for(torch.ones(0), 8), ValueError,
     "cannot quantize an empty tensor: it has no range"),
    ("an empty tensor in channels", lambda: quantization.grid_for(torch.ones(0, 3), 8, axis=0), ValueError, "empty tensor"),
    ("values that are not numbers", lambda: quantization.grid_for(torch.tensor([1, math.nan]), 8), ValueError,
     "values must be finite; got NaN or infinity (did training diverge?)"),
    ("infinite values", lambda: quantization.fake_quantize(torch.tensor([1, math.inf]), GRID), ValueError, "values must be finite"),
    ("whole numbers for values", lambda: quantization.quantize(THREE, GRID), TypeError, "values must be floating point; got torch.int64"),
    ("an axis too far", lambda: quantization.grid_for(torch.ones(2, 3), 8, axis=2), ValueError,
     "axis must be one of the 2 dimensions of shape (2, 3); got 2"),
    ("an axis of a single number", lambda: quantization.grid_for(torch.tensor(1.0), 8, axis=0), ValueError, "shape (); got 0"),
    ("groups that do not fit", lambda: quantization.grid_for(torch.ones(2, 3), 8, group=2), ValueError,
     "group must be a whole number that divides the 3 values of a row; got 2"),
    ("groups of nothing", lambda: quantization.grid_for(torch.ones(2, 3), 8, group=0), ValueError, "got 0"),
    ("a grid of another shape", lambda: quantization.quantize(torch.ones(3, 2), quantization.grid_for(torch.ones(2, 2), 8, axis=0)),
     ValueError, "a tensor of shape (3, 2) has 3 blocks (axis=0, group=None); the grid has 2 scales"),
    ("an unknown convention", lambda: quantization.grid_for(torch.ones(2), 8, convention="tensorflow"), ValueError,
     "convention must be one of torch, torchao, onnxruntime; got 'tensorflow'"),
    ("a range upside down", lambda: quantization.grid_from_range(1.0, -1.0, 8), ValueError,
     "a range needs finite ends, low <= high; got 1.0 to -1.0"),
    ("a range without end", lambda: quantization.grid_from_range(-math.inf, 1.0, 8), ValueError, "a range needs finite ends"),
    ("a range beyond float32", lambda: quantization.grid_from_range(-3e38, 3e38, 8), ValueError,
     "the range is too wide: numbers on a grid from -3e+38 to 3e+38 overflow float32"),
    ("a number of too many bits", lambda: quantization.pack(torch.tensor([8]), 3), ValueError,
     "numbers of 3 bits go from 0 to 7; got 8 to 8"),
    ("a model without weights", lambda: quantization.quantize_weights(nn.ReLU(), 8), ValueError,
     "the model has no linear layer or convolution that could be quantized (ReLU)"),
    ("a layer that cannot be quantized", lambda: quantization.quantize_weights(nn.Conv1d(1, 1, 3), 8), ValueError,
     "only Linear and Conv2d can be quantized, not the model (Conv1d)"),
]


@pytest.mark.parametrize("call, error, message", [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS])
def test_a_bad_call_says_what_was_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize("text", ["-1", "1.5", "seven", " 3", "1e3"])
def test_a_bad_seed_in_the_environment_is_named(monkeypatch, text):
    monkeypatch.setenv("COURSE_SEED", text)
    for call in (data.seed_from_environment, data.load):
        with pytest.raises(ValueError, match=f"COURSE_SEED must be a whole number such as 0 or 7; got {text!r}"):
            call()


def test_a_bad_data_set_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("COURSE_DATASET", "minst")
    with pytest.raises(ValueError, match="unknown data set 'minst'"):
        data.load()


def test_the_table_is_long_enough_and_no_bad_call_wrote_a_file(request):
    assert len(BAD_CALLS) >= 30 and len({row[0] for row in BAD_CALLS}) == len(BAD_CALLS)
    assert not list(request.config.invocation_params.dir.glob("never-written*"))
    assert SPLIT.images.shape[-1] == IMAGE_SIZE
