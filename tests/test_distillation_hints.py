"""What is inside the teacher as a target: equal to the papers' formulas, and gone from the student that is kept."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from course_lib import data, deploy, files, pruning, quantization, training
from course_lib.distillation import (Targets, Watched, attention_map, distill, distillation_loss, feature_loss, relations,
                                     transfer_set)
from helpers import HalfUsed, random_split, same, saved_and_loaded, state, tiny

SETTINGS = {"epochs": 2, "lr": 0.01, "batch_size": 16}
SPLIT = random_split(40)
FEATURES = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
                      elements=st.floats(-4, 4).map(lambda x: round(x, 2)))


@pytest.fixture(scope="module")
def transfer():
    """Two copies, with what the teacher's second convolution gives, (3, 5, 5) for each image."""
    return transfer_set(tiny("cnn", seed=1), SPLIT, copies=2, layer="3")


def hinted(student=None):
    """The student's second convolution gives (3, 4, 4): a learned layer makes it (3, 5, 5)."""
    return Watched(student or tiny("student"), "3", nn.Sequential(nn.Upsample(5), nn.Conv2d(3, 3, 1)))


# --- attention maps ---

def test_an_attention_map_by_hand():
    """Two channels on 1 × 2 pixels: squares add to 9 + 0 and 4 + 8, and (9, 12) has norm 15."""
    features = torch.tensor([[[[3.0, 2.0]], [[0.0, -math.sqrt(8)]]]])
    torch.testing.assert_close(attention_map(features), torch.tensor([[9 / 15, 12 / 15]]))


def test_attention_maps_equal_the_authors_formula():
    """Their code takes the mean over channels, which the norm makes the same."""
    features = torch.randn(6, 4, 3, 5)
    expected = F.normalize(features.pow(2).mean(1).view(6, -1))
    torch.testing.assert_close(attention_map(features), expected)
    loop = torch.stack([(image[0]**2 + image[1]**2 + image[2]**2 + image[3]**2).flatten() for image in features])
    torch.testing.assert_close(attention_map(features), loop / (loop**2).sum(1, keepdim=True).sqrt())


@given(FEATURES, st.floats(0.1, 9))
def test_an_attention_map_does_not_know_channels_signs_or_sizes(array, factor):
    features = torch.tensor(array)
    got = attention_map(features)
    n, channels, height, width = features.shape
    assert got.shape == (n, height * width) and (got >= 0).all()
    dead = (features == 0).flatten(1).all(1)
    torch.testing.assert_close(got.norm(dim=1), (~dead).double())
    torch.testing.assert_close(attention_map(-factor * features.flip(1)), got)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 6), (4, 5, 6, 7, 8)])
def test_only_images_have_an_attention_map(shape):
    with pytest.raises(ValueError) as caught:
        attention_map(torch.zeros(shape))
    assert str(caught.value) == f"an attention map needs features (n, channels, height, width); got {shape}"


# --- relations ---

def test_relations_by_hand():
    """Q Qᵀ of (1, 0), (3, 4) is 1 3 / 3 25: each row is divided by its own norm."""
    got = relations(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    torch.testing.assert_close(got, torch.tensor([[1 / math.sqrt(10), 3 / math.sqrt(10)],
                                                  [3 / math.sqrt(634), 25 / math.sqrt(634)]]))


def test_relations_and_their_loss_equal_the_paper_s():
    """Tung & Mori 2019: G̃ = Q Qᵀ, rows divided by their norms (eq. 1 and 2), ‖G_T − G_S‖²_F / b² (eq. 3)."""
    mine, theirs = torch.randn(6, 4, 3, 3), torch.randn(6, 50)

    def paper(features):
        q = features.reshape(6, -1).double().numpy()
        gram = q @ q.T
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)
    np.testing.assert_allclose(relations(mine).numpy(), paper(mine), rtol=1e-5, atol=1e-6)
    expected = np.linalg.norm(paper(theirs) - paper(mine), "fro")**2 / 6**2
    logits, labels = torch.randn(6, 10), torch.zeros(6).long()
    got = feature_loss(weight=1.0, of=relations)((logits, mine), Targets(labels, logits, theirs))
    assert got.item() == pytest.approx(expected, rel=1e-5)


@given(FEATURES, st.floats(0.1, 9))
def test_relations_do_not_know_the_size_or_the_order_of_the_features(array, factor):
    features = torch.tensor(array)
    got = relations(features)
    assert got.shape == (len(features), len(features))
    torch.testing.assert_close(got.norm(dim=1), (features.flatten(1) != 0).any(1).double())
    torch.testing.assert_close(relations(-factor * features.flip(1)), got)
    torch.testing.assert_close(relations(features.flip(0)), got.flip(0, 1))


def test_features_that_are_all_zero_give_no_nan():
    for of in (attention_map, relations):
        dead = torch.zeros(3, 2, 4, 4, requires_grad=True)
        assert of(dead).count_nonzero() == 0
        assert torch.isfinite(torch.autograd.grad(of(dead).square().sum() + of(dead).sum(), dead)[0]).all()


# --- the loss ---

@pytest.mark.parametrize("weight", [0.0, 0.5, 30.0])
def test_the_loss_is_the_soft_one_plus_the_weighted_difference_of_features(weight):
    logits, features = torch.randn(6, 10), torch.randn(6, 4, 3, 3)
    targets = Targets(torch.arange(6), torch.randn(6, 10), torch.randn(6, 4, 3, 3))
    soft = distillation_loss(temperature=2.0, alpha=0.3)(logits, targets)
    gap = ((features - targets.features)**2).sum() / features.numel()
    got = feature_loss(weight=weight, temperature=2.0, alpha=0.3)((logits, features), targets)
    torch.testing.assert_close(got, soft + weight * gap)
    assert torch.equal(feature_loss(weight=0.0)((logits, features), targets), distillation_loss()(logits, targets))


def test_what_is_compared_can_be_another_thing_for_the_teacher():
    """The teacher's maps were made when the transfer set was: they are not made again."""
    logits, features, theirs = torch.randn(6, 10), torch.randn(6, 4, 3, 3), torch.randn(6, 8, 3, 3)
    targets = Targets(torch.arange(6), logits, theirs)
    reduced = Targets(torch.arange(6), logits, attention_map(theirs))
    both = feature_loss(weight=1.0, of=attention_map)((logits, features), targets)
    torch.testing.assert_close(feature_loss(weight=1.0, of=attention_map, of_teacher=lambda maps: maps)((logits, features), reduced), both)
    torch.testing.assert_close(both, F.mse_loss(attention_map(features), attention_map(theirs)))


# --- a watched student ---

def test_a_watched_student_gives_its_features_in_training_only():
    student, images = tiny("student"), SPLIT.images[:8]
    watched = hinted(student)
    watched.train()
    logits, features = watched(images)
    student.train()
    inside = student[:4](images)
    torch.testing.assert_close(features, watched.regressor(inside))
    assert features.shape == (8, 3, 5, 5) and logits.shape == (8, 10)
    watched.eval()
    assert torch.equal(watched(images), student.eval()(images))
    assert torch.equal(training.predict(watched.train(), images), student.eval()(images).argmax(1)) and watched.training
    assert not student[3]._forward_hooks


def test_features_are_those_before_a_layer_overwrites_them():
    student = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    logits, features = Watched(student, "1").train()(SPLIT.images)
    torch.testing.assert_close(features, student[:2](SPLIT.images))
    assert features.min() < 0


@pytest.mark.parametrize("make, loss", [
    (hinted, feature_loss(weight=1.0)),
    (lambda student: Watched(student, "3"), feature_loss(weight=100.0, of=relations)),
    (lambda student: Watched(student, "3"), feature_loss(weight=100.0, of=attention_map,
                                                         of_teacher=lambda f: attention_map(F.adaptive_avg_pool2d(f, 4))))])
def test_the_kept_student_saves_loads_and_exports(make, loss, transfer, tmp_path):
    student = tiny("student")
    start, watched = state(student), make(student)
    before = state(watched)
    trained, history = distill(watched, transfer, SPLIT, loss=loss, keep="best", **SETTINGS)
    assert same(state(student), start) and same(state(watched), before)
    kept = trained.student
    assert kept.architecture == student.architecture and state(kept).keys() == start.keys()
    assert not any(torch.equal(p, start[name]) for name, p in kept.named_parameters())
    assert not any(module._forward_hooks for module in kept.modules()) and not kept.training
    assert training.evaluate(kept, SPLIT).value == max(record["accuracy"] for record in history)
    again = saved_and_loaded(kept, tmp_path)
    if make is hinted:
        images = random_split(5).images
        got = deploy.load_onnx(deploy.onnx_bytes(again, images))(images.numpy())
        with torch.no_grad():
            np.testing.assert_allclose(got, kept(images).numpy(), rtol=1e-4, atol=1e-5)


def test_the_regressor_is_trained_and_is_no_part_of_the_student(transfer, tmp_path):
    watched = hinted()
    trained, _ = distill(watched, transfer, loss=feature_loss(weight=1.0), **SETTINGS)
    assert not torch.equal(trained.regressor[1].weight, watched.regressor[1].weight)
    assert not any("regressor" in name for name in state(trained.student))
    with pytest.raises(ValueError, match="the model has no `architecture`"):
        files.save(trained, tmp_path / "model")


def test_features_come_closer_to_the_teacher_s_than_without_the_hint(transfer):
    """Also shows that the gradient goes through the features into the layers before them."""
    def gap(weight):
        trained, _ = distill(hinted(), transfer, loss=feature_loss(weight=weight), epochs=10, lr=0.01, batch_size=16)
        with torch.no_grad():
            features = trained.regressor(trained.student[:4](transfer[0].images))
            return float(F.mse_loss(features, transfer[0].labels.features))
    assert gap(10.0) < 0.3 * gap(0.0)
    watched = hinted().train()
    logits, features = watched(SPLIT.images)
    weights = [watched.student[0].weight, watched.student[3].weight, watched.regressor[1].weight]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(features.square().sum(), weights))


def test_without_weight_the_student_learns_as_one_that_is_not_watched(transfer):
    watched, _ = distill(Watched(tiny("student"), "3"), transfer, SPLIT,
                         loss=feature_loss(weight=0.0, temperature=2.0, alpha=0.5, of=relations), **SETTINGS)
    plain, _ = distill(tiny("student"), transfer, SPLIT, temperature=2.0, alpha=0.5, **SETTINGS)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(watched.student.state_dict()[name], tensor)


def test_masks_and_quantizers_work_on_a_watched_student_too(transfer):
    pruned = pruning.prune(tiny("student"), amount=0.8)
    watched = hinted(pruned)
    trained, _ = distill(watched, transfer, loss=feature_loss(weight=1.0), callbacks=[pruning.Masks(watched)], **SETTINGS)
    assert pruning.sparsity(trained.student) == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match="these masks belong to a model with other weights"):
        distill(watched, transfer, loss=feature_loss(weight=1.0), callbacks=[pruning.Masks(pruned)], **SETTINGS)
    fake = quantization.fake_quantized(tiny("student"), 4, axis=0)
    trained, _ = distill(hinted(fake), transfer, loss=feature_loss(weight=1.0), **SETTINGS)
    assert quantization.to_stored(trained.student)(SPLIT.images).shape == (40, 10)


# --- bad calls ---

class Twice(nn.Module):
    """One layer that runs twice for a batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


FOUR = data.Split(torch.rand(6, 4), torch.arange(6) % 4)
SIX = Targets(torch.arange(6), torch.zeros(6, 10), torch.zeros(6, 3, 5, 5))
BAD_CALLS = {
    "an unknown layer": (lambda: Watched(tiny("mlp"), "conv"), "the student has no layer named 'conv'; it has 0, 1, 2, 3"),
    "no layer": (lambda: Watched(tiny("mlp"), ""), "the student has no layer named ''; it has 0, 1, 2, 3"),
    "a layer that never runs": (lambda: Watched(HalfUsed(), "unused").train()(FOUR.images),
                                "layer 'unused' of the student must run once for a batch; it ran 0 times"),
    "a layer that runs twice": (lambda: Watched(Twice(), "layer").train()(FOUR.images), "must run once for a batch; it ran 2 times"),
    "a teacher's layer that runs twice": (lambda: transfer_set(Twice(), FOUR, copies=0, layer="layer"),
                                          "of one length; got (6,), (6, 4), (12, 4)"),
    "a negative weight": (lambda: feature_loss(weight=-1.0), "weight must be a number >= 0; got -1.0"),
    "a weight that is not a number": (lambda: feature_loss(weight=math.nan), "weight must be a number >= 0; got nan"),
    "an endless weight": (lambda: feature_loss(weight=math.inf), "weight must be a number >= 0; got inf"),
    "no temperature": (lambda: feature_loss(weight=1.0, temperature=0.0), "the temperature must be a number above 0"),
    "a bad mixture": (lambda: feature_loss(weight=1.0, alpha=2.0), "alpha must be a fraction from 0 to 1; got 2.0"),
    "a student that is not watched": (lambda: feature_loss(weight=1.0)(torch.zeros(6, 10), SIX),
                                      "the student gives logits only: wrap it in `Watched`, so that it gives its features too"),
    "a transfer set without features": (lambda: feature_loss(weight=1.0)((torch.zeros(6, 10), torch.zeros(6, 3)), Targets(SIX.labels, SIX.logits)),
                                        "the transfer set has no features; name a layer of the teacher in transfer_set"),
    "features of another shape": (lambda: feature_loss(weight=1.0)((torch.zeros(6, 10), torch.zeros(6, 1, 5, 5)), SIX),
                                  "features must have one shape; the student's are (6, 1, 5, 5), the teacher's (6, 3, 5, 5): "
                                  "a regressor can fit them"),
    "a watched student and the plain loss": (lambda: distill(Watched(tiny("mlp"), "1"), [data.Split(SPLIT.images[:6], SIX)], **SETTINGS),
                                             "the student gives features besides its logits: train it with `feature_loss`"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_says_what_was_wrong(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
