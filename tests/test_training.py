"""Training does what its few lines say, leaves its argument alone, and judges as the references do."""
import copy
import math
from types import SimpleNamespace

import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course_lib import data, intervals, training
from helpers import random_split, same, state, tiny

SETTINGS = {"epochs": 2, "lr": 0.01, "batch_size": 16}


@pytest.fixture
def model():
    return tiny("student")          # it has batch statistics, which are easily spoilt


@pytest.fixture
def split():
    return random_split(40)


def plain(n_in=4, n_out=3):
    """A linear classifier and noise to train it on."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out)), data.Split(torch.rand(10, 1, 2, 2), torch.arange(10) % 3)


# --- fit ---

def test_fit_returns_a_trained_copy_and_leaves_its_argument_as_it_was(model, split):
    before = state(model)
    trained, history = training.fit(model, split, split, **SETTINGS)
    assert same(state(model), before) and not model.training
    assert all(p.grad is None for p in model.parameters())
    assert trained is not model and not same(state(trained), before)
    assert not any(module.training for module in trained.modules())
    assert [sorted(record) for record in history] == [["accuracy", "epoch", "loss", "lr"]] * 2


def test_fit_gives_the_same_weights_for_the_same_seed(model, split):
    first, again, other = (training.fit(model, split, seed=seed, **SETTINGS) for seed in (1, 1, 2))
    assert same(state(first[0]), state(again[0])) and first[1] == again[1]
    assert not same(state(first[0]), state(other[0]))


def test_fit_equals_a_loop_written_out():
    """AdamW, the one-cycle schedule stepped once a batch, every image once an epoch in random order."""
    model, split = plain()
    expected = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=0.1)
    losses = []
    for epoch in range(3):
        order = torch.randperm(10, generator=generator)
        for i, batch in enumerate((order[:4], order[4:8], order[8:])):
            optimizer.param_groups[0]["lr"] = 0.05 * training.one_cycle(3 * epoch + i, 9)
            loss = F.cross_entropy(expected(split.images[batch]), split.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    trained, history = training.fit(model, split, epochs=3, lr=0.05, seed=5, batch_size=4, weight_decay=0.1, augmented=False)
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name])
    assert [record["loss"] for record in history] == pytest.approx([sum(losses[i:i + 3]) / 3 for i in (0, 3, 6)])
    assert [record["lr"] for record in history] == pytest.approx([0.05 * training.one_cycle(i, 9) for i in (2, 5, 8)])


def test_watching_the_validation_part_does_not_change_the_training(model, split):
    """Judging in between must neither move the batch statistics nor leave the model in evaluation mode."""
    watched, _ = training.fit(model, split, random_split(20, seed=9), **SETTINGS)
    unwatched, _ = training.fit(model, split, **SETTINGS)
    assert same(state(watched), state(unwatched))


def test_fit_learns_what_can_be_learnt():
    images = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (images.flatten(1)[:, 0] > images.flatten(1)[:, 15]).long()
    split = data.Split(images, labels)
    torch.manual_seed(0)
    trained, _ = training.fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), split, epochs=20, lr=0.1, augmented=False)
    assert training.evaluate(trained, split).value > 0.95


# --- several splits ---

def labelled_by_number(n_splits, n=10):
    """Splits whose labels say which one they are."""
    return [data.Split(random_split(n, seed=i).images, torch.full((n,), i)) for i in range(n_splits)]


def splits_seen(splits, *, epochs, **options):
    """For every batch, the splits that its labels come from."""
    seen = []

    def loss(logits, labels):
        seen.append(labels.unique().tolist())
        return F.cross_entropy(logits, labels)
    training.fit(tiny("mlp"), splits, epochs=epochs, lr=0.01, batch_size=4, loss=loss, **options)
    return seen


@pytest.mark.parametrize("augmented", [False, True])
def test_each_epoch_takes_the_next_split_in_turn(augmented):
    assert splits_seen(labelled_by_number(3), epochs=5, augmented=augmented) == [[i] for i in (0, 1, 2, 0, 1) for _ in range(3)]
    assert splits_seen(labelled_by_number(3), epochs=2) == [[i] for i in (0, 1) for _ in range(3)]


def test_the_images_and_the_labels_are_of_the_same_split(monkeypatch):
    """Deformed or not: the model sees the images of the split whose labels it is told."""
    splits, seen = labelled_by_number(2), []

    class Look(nn.Sequential):
        def forward(self, images):
            seen.append([i for i, split in enumerate(splits) if all(any(torch.equal(x, y) for y in split.images) for x in images)])
            return super().forward(images)
    monkeypatch.setattr(training, "augment", lambda images, generator: images.clone())
    for augmented in (False, True):
        training.fit(Look(*tiny("mlp")), splits, epochs=3, lr=0.01, augmented=augmented)
    assert seen == [[0], [1], [0]] * 2


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("several", [lambda split: [split], lambda split: (split,) * 3, lambda split: iter([split, split])])
def test_one_split_in_a_list_is_that_split(model, split, augmented, several):
    alone, history = training.fit(model, split, split, augmented=augmented, **SETTINGS)
    listed, known = training.fit(model, several(split), split, augmented=augmented, **SETTINGS)
    assert same(state(alone), state(listed)) and history == known


@pytest.mark.parametrize("splits, got", [
    ([], "[]"), ([random_split(10), random_split(12)], "[Split(10 images of shape (1, 16, 16)), Split(12 images of shape (1, 16, 16))]"),
    ((torch.zeros(4, 1, 2, 2), torch.zeros(4)), "['Tensor', 'Tensor']"), ([random_split(10), None], "(1, 16, 16)), 'NoneType']")])
def test_splits_of_several_sizes_are_refused(model, splits, got):
    with pytest.raises(ValueError) as caught:
        training.fit(model, splits, **SETTINGS)
    assert str(caught.value).startswith("train must be a split, or several of one size; got [") and str(caught.value).endswith(got)


# --- callbacks ---

class Recorder:
    """A callback with all moments, which notes what it sees of the model at each."""

    def __init__(self):
        self.seen = []

    def __getattr__(self, moment):
        if moment not in training.MOMENTS:
            raise AttributeError(moment)
        return lambda model: self.seen.append(SimpleNamespace(
            moment=moment, state=state(model), training=model.training,
            gradient=max(float(p.grad.abs().max()) if p.grad is not None else 0 for p in model.parameters())))


def test_hooks_are_called_at_their_moments(model, split):
    recorder = Recorder()
    trained, _ = training.fit(model, split, callbacks=[recorder], **SETTINGS)
    epoch = ["after_backward", "after_step"] * 3 + ["after_epoch"]
    assert [s.moment for s in recorder.seen] == ["before_training", *epoch, *epoch, "after_training"]
    first, second = recorder.seen[1], recorder.seen[2]
    weights = [name for name, _ in model.named_parameters()]
    assert same(recorder.seen[0].state, state(model))
    assert first.gradient > 0 and all(torch.equal(first.state[n], model.state_dict()[n]) for n in weights)
    assert not any(torch.equal(second.state[n], first.state[n]) for n in weights)
    assert all(s.training for s in recorder.seen) and same(recorder.seen[-1].state, state(trained))


def test_a_hook_may_change_the_model_that_is_trained(model, split):
    class Silence:
        def after_step(self, model):
            nn.init.zeros_(model[-1].weight)
    trained, _ = training.fit(model, split, callbacks=iter([Silence()]), **SETTINGS)     # any iterable will do
    assert trained[-1].weight.count_nonzero() == 0


def test_a_callback_without_a_known_method_is_refused(model, split):
    class Misspelt:
        def after_steps(self, model):
            pass
    with pytest.raises(TypeError, match=r"Misspelt object.* has none of the methods before_training, after_backward, after_step"):
        training.fit(model, split, callbacks=[Misspelt()], **SETTINGS)


def scripted(monkeypatch, accuracies):
    """Let the validation accuracies be those given, in turn."""
    values = iter(accuracies)
    monkeypatch.setattr(training, "evaluate", lambda model, split: SimpleNamespace(value=next(values)))


@pytest.mark.parametrize("keep, epoch", [("best", 2), ("last", 4)])
def test_the_kept_weights_are_those_of_the_epoch_that_was_asked_for(monkeypatch, model, split, keep, epoch):
    """The best of 0.3, 0.8, 0.8, 0.5 is the second: a later epoch that is only as good does not count."""
    scripted(monkeypatch, [0.3, 0.8, 0.8, 0.5])
    recorder = Recorder()
    trained, history = training.fit(model, split, split, epochs=4, lr=0.01, batch_size=16, keep=keep, callbacks=[recorder])
    ends = [s.state for s in recorder.seen if s.moment == "after_epoch"]
    assert [same(state(trained), end) for end in ends] == [i + 1 == epoch for i in range(4)]
    assert [record["accuracy"] for record in history] == [0.3, 0.8, 0.8, 0.5]


def test_patience_stops_after_so_many_epochs_without_a_better_one(monkeypatch, model, split):
    scripted(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    _, history = training.fit(model, split, split, epochs=9, lr=0.01, patience=2)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(model, split, value):
    with pytest.raises(FloatingPointError, match=f"the loss became {value} in epoch 1; a smaller lr may help"):
        training.fit(model, split, loss=lambda logits, labels: 0 * logits.sum() + value, **SETTINGS)


def test_another_loss_is_really_used():
    model, split = plain()
    trained, history = training.fit(model, split, loss=lambda logits, labels: 0 * logits.sum(), **SETTINGS)
    assert same(state(trained), state(model)) and history[0]["loss"] == 0


# --- the schedule ---

def test_the_schedule_by_hand():
    """Ten steps: two to rise (20 %), then eight along the cosine to a hundredth."""
    values = [training.one_cycle(step, 10) for step in range(10)]
    assert values[:2] == [0.5, 1.0]
    assert values[5] == pytest.approx(0.01 + 0.99 / 2) and values[9] == pytest.approx(0.01)


@given(total=st.integers(2, 200), warm_up=st.floats(0, 0.9), final=st.floats(0, 0.5))
@settings(max_examples=80)
def test_the_schedule_rises_to_one_and_falls_to_its_end(total, warm_up, final):
    values = [training.one_cycle(step, total, warm_up=warm_up, final=final) for step in range(total)]
    top = values.index(max(values))
    assert values[top] == 1 and top + 1 == max(1, round(warm_up * total))
    assert values[:top + 1] == sorted(values[:top + 1]) and values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == pytest.approx(final if top < total - 1 else 1)


def test_the_learning_rate_is_stepped_once_a_batch(monkeypatch, model, split):
    rates = []

    class Recording(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)
    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    _, history = training.fit(model, split, epochs=3, lr=0.02, batch_size=16)
    assert rates == pytest.approx([0.02 * training.one_cycle(step, 9) for step in range(9)])
    assert max(rates) == 0.02 and rates[-1] == pytest.approx(0.0002)
    assert [record["lr"] for record in history] == pytest.approx(rates[2::3])


# --- augmentation ---

def test_augmented_images_keep_shape_type_and_range(split):
    images = random_split(5, channels=3).images
    deformed = training.augment(images, generator=torch.Generator().manual_seed(0))
    assert deformed.shape == images.shape and deformed.dtype == images.dtype
    assert deformed.min() >= 0 and deformed.max() <= 1 and not torch.equal(deformed, images)


def test_augmentation_without_any_deformation_is_the_identity(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 0.5))      # the middle of every range
    images = torch.linspace(0, 1, 2 * 3 * 7 * 7).view(2, 3, 7, 7)
    torch.testing.assert_close(training.augment(images), images, atol=1e-5, rtol=0)


def test_augmentation_moves_each_image_its_own_small_way():
    """A spot in the middle is only shifted: by at most 7 % of the side, the rest is what turning it adds."""
    side = torch.arange(28.0) - 13.5
    spot = torch.exp(-(side[:, None] ** 2 + side**2) / 8).expand(200, 1, 28, 28)
    deformed = training.augment(spot, generator=torch.Generator().manual_seed(0))[:, 0]
    mass = deformed.sum((1, 2))
    moved = torch.stack([(deformed.sum(2) * side).sum(1) / mass, (deformed.sum(1) * side).sum(1) / mass], 1)
    assert moved.abs().max() < 1.35 * 0.07 * 28
    assert moved.std(0).min() > 0.5 and moved.mean(0).abs().max() < 0.3
    assert len(moved.unique(dim=0)) == 200


def test_every_epoch_sees_freshly_deformed_images(monkeypatch, model, split):
    calls = []
    monkeypatch.setattr(training, "augment", lambda images, generator: calls.append(images) or images)
    training.fit(model, split, epochs=3, lr=0.01)
    assert len(calls) == 3 and all(images is split.images for images in calls)
    training.fit(model, split, epochs=3, lr=0.01, augmented=False)
    assert len(calls) == 3


# --- judging ---

@pytest.mark.parametrize("fail", [False, True])
def test_evaluating_restores_the_mode_of_every_layer_even_after_an_error(model, fail):
    model.train()
    model[1].eval()                             # a frozen layer in a model that trains
    modes = [module.training for module in model.modules()]
    try:
        with training.evaluating(model) as borrowed:
            assert borrowed is model and not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            if fail:
                raise KeyError("inside")
    except KeyError:
        assert fail
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    assert torch.is_grad_enabled()


def test_evaluate_equals_scikit_learn(model, split):
    accuracy = training.evaluate(model, split)
    predicted = training.predict(model, split.images)
    assert predicted.dtype == torch.int64 and predicted.shape == (40,)
    assert torch.equal(predicted, model(split.images).argmax(1))
    assert accuracy.value == sklearn.metrics.accuracy_score(split.labels, predicted)
    assert accuracy.interval == intervals.wilson(accuracy.correct, 40)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 500])
def test_predictions_do_not_depend_on_the_batch_size(model, split, batch_size):
    assert torch.equal(training.predict(model, split.images, batch_size=batch_size), training.predict(model, split.images))


def test_an_accuracy_shows_its_interval():
    assert repr(training.Accuracy(900, 1000)) == "90.0% [88.0%, 91.7%] of 1,000 images"


def test_compare_predictions_by_hand():
    """Of six images the second model gains the third and fourth and loses the second."""
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    first = torch.tensor([0, 1, 0, 0, 0, 5])
    second = torch.tensor([0, 9, 2, 3, 9, 5])
    assert training.compare_predictions(first, second, labels) == intervals.paired_difference(2, 1, 6)
    assert training.compare_predictions(first, second, labels).value == pytest.approx(4 / 6 - 3 / 6)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=20))
@settings(max_examples=50)
def test_a_paired_difference_is_the_difference_of_the_two_accuracies(rows):
    first, second, labels = torch.tensor(rows).T
    expected = sklearn.metrics.accuracy_score(labels, second) - sklearn.metrics.accuracy_score(labels, first)
    assert training.compare_predictions(first, second, labels).value == pytest.approx(expected)
    assert training.compare_predictions(first, first, labels).value == 0


def test_set_seed_repeats_all_three_sources_of_random_numbers():
    import random

    import numpy as np

    def draw():
        training.set_seed(4)
        return random.random(), np.random.rand(), torch.rand(1).item()
    assert draw() == draw()


def test_a_model_that_gives_nan_is_not_judged():
    model, split = plain()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        training.evaluate(model, split)
