"""The transfer set is what the teacher says of the images a student sees; the control differs in nothing but the teacher."""
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from course_lib import data, deploy, pruning, quantization, training
from course_lib.distillation import UNLABELLED, Targets, distill, distillation_loss, divergence, transfer_set, unlabelled_but
from helpers import HalfUsed, random_split, same, saved_and_loaded, state, tiny

SETTINGS = {"epochs": 3, "lr": 0.01, "batch_size": 16}
SPLIT = random_split(40)


@pytest.fixture(scope="module")
def transfer():
    """Two deformed copies of forty images, and what a teacher says of them."""
    return transfer_set(tiny("cnn", seed=1), SPLIT, copies=2, seed=3)


# --- the transfer set ---

@pytest.mark.parametrize("name", ["cnn", "student"])
@pytest.mark.parametrize("n", [40, 501])
def test_what_is_written_down_is_what_the_teacher_says_of_those_copies(name, n):
    teacher, images = tiny(name, seed=1), random_split(n)
    versions = transfer_set(teacher, images, copies=2, seed=3)
    assert len(versions) == 2
    for version in versions:
        with torch.no_grad():
            assert torch.equal(version.labels.logits, torch.cat([teacher(batch) for batch in version.images.split(500)]))
        assert torch.equal(version.labels.labels, images.labels) and version.labels.features is None
        assert not version.labels.logits.requires_grad


def test_each_copy_is_deformed_afresh_and_a_seed_repeats_them():
    teacher = tiny("mlp")
    first, again, other = (transfer_set(teacher, SPLIT, copies=3, seed=seed) for seed in (5, 5, 6))
    generator = torch.Generator().manual_seed(5)
    for version in first:
        assert torch.equal(version.images, training.augment(SPLIT.images, generator=generator))
    assert not any(torch.equal(a.images, b.images) for a in first for b in (*other, *(v for v in first if v is not a)))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.labels.logits, b.labels.logits) for a, b in zip(first, again))


def test_without_copies_the_images_are_taken_as_they_are():
    teacher = tiny("mlp")
    version, = transfer_set(teacher, SPLIT, copies=0)
    assert torch.equal(version.images, SPLIT.images)
    with torch.no_grad():
        assert torch.equal(version.labels.logits, teacher(SPLIT.images))


def test_the_teacher_is_asked_in_evaluation_mode_and_stays_as_it_was():
    teacher, images = tiny("student"), SPLIT.images.clone()
    expected = teacher(images).detach()
    teacher.train()[1].eval()                                           # a frozen layer in a teacher that is still in training
    before, modes = state(teacher), [module.training for module in teacher.modules()]
    version, = transfer_set(teacher, SPLIT, copies=0, layer="2")
    assert torch.equal(version.labels.logits, expected)
    assert same(state(teacher), before) and [module.training for module in teacher.modules()] == modes
    assert all(p.grad is None for p in teacher.parameters()) and torch.equal(SPLIT.images, images)
    assert not any(module._forward_hooks for module in teacher.modules())


def test_features_are_those_of_the_named_layer_reduced():
    teacher = tiny("cnn")
    plain, = transfer_set(teacher, SPLIT, copies=0, layer="3")
    pooled, = transfer_set(teacher, SPLIT, copies=0, layer="3", reduce=lambda features: features.mean((2, 3)))
    with torch.no_grad():
        assert torch.equal(plain.labels.features, teacher[:4](SPLIT.images))
    assert torch.equal(pooled.labels.features, plain.labels.features.mean((2, 3)))
    assert torch.equal(plain.labels.logits, pooled.labels.logits)


def test_features_are_noted_before_a_layer_overwrites_them():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    version, = transfer_set(teacher, SPLIT, copies=0, layer="1")
    assert version.labels.features.min() < 0
    with torch.no_grad():
        assert torch.equal(version.labels.features, teacher[:2](SPLIT.images))


def test_only_the_first_images_keep_their_label():
    few = unlabelled_but(SPLIT, 3)
    assert few.labels.tolist() == [0, 1, 2] + [UNLABELLED] * 37 and few.images is SPLIT.images
    assert SPLIT.labels.tolist() == [i % 10 for i in range(40)]
    assert (unlabelled_but(SPLIT, 0).labels == UNLABELLED).all() and torch.equal(unlabelled_but(SPLIT, 40).labels, SPLIT.labels)
    version, = transfer_set(tiny("mlp"), few, copies=0)
    assert torch.equal(version.labels.labels, few.labels)


# --- distillation ---

def one_version(version):
    """The images with their labels alone, as `training.fit` takes them without a teacher."""
    return data.Split(version.images, version.labels.labels)


@pytest.mark.parametrize("name", ["mlp", "student"])
@pytest.mark.parametrize("labelled", [40, 39])
def test_the_control_is_training_with_labels_on_the_same_copies_to_the_last_bit(name, labelled):
    """F.cross_entropy leaves images without a label out too, as long as no batch is without any."""
    versions = transfer_set(tiny("cnn", seed=1), unlabelled_but(SPLIT, labelled), copies=2)
    student = tiny(name)
    control, told = distill(student, versions, seed=4, alpha=0.0, **SETTINGS)
    plain, known = training.fit(student, [one_version(v) for v in versions], seed=4, augmented=False, **SETTINGS)
    assert same(state(control), state(plain)) and told == known


def test_distillation_is_training_with_its_loss(transfer):
    student = tiny("student")
    got, history = distill(student, transfer, SPLIT, seed=4, temperature=2.0, alpha=0.7, weight_decay=0.1, keep="best", **SETTINGS)
    expected, known = training.fit(student, transfer, SPLIT, seed=4, loss=distillation_loss(temperature=2.0, alpha=0.7),
                                   augmented=False, weight_decay=0.1, keep="best", **SETTINGS)
    assert same(state(got), state(expected)) and history == known and "accuracy" in history[0]
    assert not same(state(got), state(distill(student, transfer, seed=4, **SETTINGS)[0]))
    default = distill(student, transfer, seed=4, **SETTINGS)[0]
    assert same(state(default), state(distill(student, transfer, seed=4, temperature=4.0, alpha=1.0, **SETTINGS)[0]))


def numbered(n_versions=3, n=10):
    """Versions whose number can be read from each logit, and whose images can be told apart by their labels."""
    return [data.Split(torch.rand(n, 1, 2, 2), Targets(torch.arange(n), torch.full((n, 3), float(i)))) for i in range(n_versions)]


def batches_seen(versions, weight, *, seed=7):
    """(version, images) for every batch of five epochs, trained with some loss."""
    seen = []

    def loss(logits, targets):
        seen.append((int(targets.logits[0, 0]), targets.labels.tolist()))
        return weight * logits.square().mean()
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    distill(model, versions, epochs=5, lr=0.01, batch_size=4, seed=seed, loss=loss)
    return seen


def test_the_versions_are_taken_in_turn_each_image_once_an_epoch():
    seen = batches_seen(numbered(), 1.0)
    assert [version for version, _ in seen] == [version for version in (0, 1, 2, 0, 1) for _ in range(3)]
    for epoch in range(5):
        assert sorted(sum((images for _, images in seen[3 * epoch:3 * epoch + 3]), [])) == list(range(10))


def test_the_order_depends_on_the_seed_and_not_on_the_loss():
    versions = numbered()
    assert batches_seen(versions, 1.0) == batches_seen(versions, 0.0) != batches_seen(versions, 1.0, seed=8)


def test_nothing_that_was_passed_is_changed(transfer):
    student, before = tiny("student"), [copy.deepcopy(vars(version)) for version in transfer]
    start = state(student)
    trained, _ = distill(student.train(), transfer, SPLIT, **SETTINGS)
    assert same(state(student), start) and student.training and all(p.grad is None for p in student.parameters())
    assert not same(state(trained), start) and not any(module.training for module in trained.modules())
    for version, old in zip(transfer, before):
        assert torch.equal(version.images, old["images"]) and torch.equal(version.labels.labels, old["labels"].labels)
        assert torch.equal(version.labels.logits, old["labels"].logits)


def test_a_student_learns_what_the_teacher_says_from_images_without_labels():
    """A random teacher of four pixels: its student has seen no label, and agrees with it on images that neither knows."""
    images = data.Split(torch.rand(300, 1, 2, 2), torch.full((300,), UNLABELLED))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    teacher[1].weight.data *= 8
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    trained, history = distill(student, transfer_set(teacher, images, copies=0), epochs=30, lr=0.3, alpha=0.5)
    new = torch.rand(500, 1, 2, 2)
    assert (training.predict(trained, new) == training.predict(teacher, new)).float().mean() > 0.97
    with torch.no_grad():
        assert divergence(trained(new), teacher(new), 1.0) < 0.01 * divergence(student(new), teacher(new), 1.0)
    assert history[-1]["loss"] < 0.02 * history[0]["loss"]


def test_a_model_can_be_its_own_student():
    teacher = tiny("mlp")
    before = state(teacher)
    versions = transfer_set(teacher, SPLIT, copies=0)
    same_again, history = distill(teacher, versions, epochs=2, lr=1e-4)
    assert history[0]["loss"] < 1e-6                            # it agrees with itself to begin with
    assert same_again is not teacher and same(state(teacher), before)
    taught, _ = distill(teacher, versions, epochs=2, lr=0.01, alpha=0.0)
    assert same(state(teacher), before) and not same(state(taught), before)


# --- small students of other kinds ---

def onnx_agrees(model):
    images = random_split(5).images
    got = deploy.load_onnx(deploy.onnx_bytes(model, images))(images.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "student"])
def test_a_student_saves_loads_and_exports(name, transfer, tmp_path):
    trained, _ = distill(tiny(name), transfer, **SETTINGS)
    saved_and_loaded(trained, tmp_path)
    onnx_agrees(trained)


def test_a_pruned_student_stays_pruned(transfer, tmp_path):
    student = pruning.prune(tiny("student"), amount=0.8)
    zeros = {name: weight == 0 for name, weight in pruning.prunable(student).items()}
    trained, _ = distill(student, transfer, callbacks=[pruning.Masks(student)], **SETTINGS)
    weights = pruning.prunable(trained)
    assert all((weights[name][zero] == 0).all() for name, zero in zeros.items())
    assert pruning.sparsity(trained) == pytest.approx(0.8, abs=0.01) and not same(state(trained), state(student))
    unmasked, _ = distill(student, transfer, **SETTINGS)
    assert pruning.sparsity(unmasked) < 0.1
    saved_and_loaded(trained, tmp_path)


@pytest.mark.parametrize("bits, activations", [(4, None), (2, 8)])
def test_a_student_with_quantization_in_the_loop_learns_from_the_teacher(bits, activations, transfer, tmp_path):
    student = quantization.fake_quantized(tiny("student"), bits, axis=0, activations=activations)
    trained, _ = distill(student, transfer, SPLIT, **SETTINGS)
    assert not same(state(trained), state(student))
    stored = quantization.to_stored(trained)
    with torch.no_grad():
        assert torch.equal(stored(SPLIT.images), trained(SPLIT.images))
    saved_and_loaded(stored, tmp_path)


# --- bad calls ---

TARGETS = Targets(torch.zeros(4).long(), torch.zeros(4, 10))
BAD_CALLS = {
    "no images": (lambda: transfer_set(tiny("mlp"), SPLIT.first(0)), "need images, and a whole number of copies >= 0; got Split(0 images"),
    "fewer copies than none": (lambda: transfer_set(tiny("mlp"), SPLIT, copies=-1), "copies=-1"),
    "half a copy": (lambda: transfer_set(tiny("mlp"), SPLIT, copies=1.5), "copies=1.5"),
    "an unknown layer": (lambda: transfer_set(tiny("mlp"), SPLIT, layer="conv1"), "the model has no layer named 'conv1'; it has 0, 1"),
    "a layer that never runs": (lambda: transfer_set(HalfUsed(), data.Split(torch.rand(3, 4), torch.zeros(3).long()), copies=0,
                                                     layer="unused"), "the model never calls unused"),
    "fewer features than images": (lambda: transfer_set(tiny("mlp"), SPLIT, copies=0, layer="1", reduce=lambda f: f[:7]),
                                   "of one length; got (40,), (40, 10), (7, 5)"),
    "a teacher without classes": (lambda: transfer_set(nn.Flatten(0), SPLIT, copies=0), "targets need labels (n,), logits (n, classes)"),
    "a label too few": (lambda: unlabelled_but(SPLIT, -1), "n must be a whole number from 0 to 40; got -1"),
    "a label too many": (lambda: unlabelled_but(SPLIT, 41), "n must be a whole number from 0 to 40; got 41"),
    "half a label": (lambda: unlabelled_but(SPLIT, 0.5), "n must be a whole number from 0 to 40; got 0.5"),
    "no version": (lambda: distill(tiny("mlp"), [], **SETTINGS), "must be a list of splits with Targets, as transfer_set makes it"),
    "plain labels": (lambda: distill(tiny("mlp"), [SPLIT], **SETTINGS), "must be a list of splits with Targets"),
    "a split": (lambda: distill(tiny("mlp"), SPLIT, **SETTINGS), "must be a list of splits with Targets"),
    "tensors": (lambda: distill(tiny("mlp"), [SPLIT.images], **SETTINGS), "must be a list of splits with Targets"),
    "deformed again": (lambda: distill(tiny("mlp"), transfer_set(tiny("mlp"), SPLIT, copies=0), augmented=True, **SETTINGS),
                       "the images are deformed in transfer_set, where the teacher sees them; leave augmented out"),
    "a temperature that nobody reads": (lambda: distill(tiny("mlp"), transfer_set(tiny("mlp"), SPLIT, copies=0), temperature=2.0,
                                                        loss=distillation_loss(), **SETTINGS),
                                        "temperature and alpha belong to the loss: give them to the one that you pass"),
    "a weight that nobody reads": (lambda: distill(tiny("mlp"), transfer_set(tiny("mlp"), SPLIT, copies=0), alpha=0.5,
                                                   loss=distillation_loss(), **SETTINGS), "temperature and alpha belong to the loss"),
    "a student with other classes": (lambda: distill(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)),
                                                     [data.Split(SPLIT.images[:4], TARGETS)], **SETTINGS),
                                     "both logits must have one shape (n, classes); got (4, 3) and (4, 10)"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_says_what_was_wrong(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_diverged_is_refused(value):
    teacher = tiny("mlp")
    with torch.no_grad():
        teacher[-1].bias[3] = value
    with pytest.raises(ValueError, match=r"the teacher gives NaN or infinite logits \(did its training diverge\?\)"):
        transfer_set(teacher, SPLIT, copies=0)
