"""A door in a network: who leaves, what both halves give, how a threshold is chosen, and files that hold it all."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course_lib import cost, deploy, early_exit, files, training
from helpers import IMAGE_SIZE, random_split, same, state, tiny


def network(threshold: float = 0.2, *, model: nn.Module | None = None, **options) -> early_exit.EarlyExit:
    """A tiny network with a door whose weights are large enough to be confident about something."""
    net = early_exit.add_exit(model or tiny("cnn"), **{"after": 3, "pool": 2, **options})
    with torch.no_grad():
        net.door[-1].weight.mul_(20)
    net.threshold.fill_(threshold)
    return net


IMAGES = torch.rand(40, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name, after", [("cnn", 3), ("cnn", 2), ("lenet5", 2), ("student", 3), ("resnet", 3)])
def test_stem_and_rest_are_the_old_network(name, after):
    model = tiny(name)
    before = state(model)
    net = network(float("inf"), model=model, after=after, pool=1)
    with torch.no_grad():
        early, final = net.exits(IMAGES)
        assert torch.equal(final, model(IMAGES)) and torch.equal(net(IMAGES), final)
    assert early.shape == final.shape and same(before, state(model))
    net.stem[0].weight.data.zero_()
    assert same(before, state(model))               # a copy, not a view


def test_in_evaluation_each_image_gets_the_answer_of_its_own_exit():
    net = network()
    with torch.no_grad():
        early, final = net.exits(IMAGES)
    sure = early.softmax(1).amax(1)
    net.threshold.fill_(sure.median())
    with torch.no_grad():
        got = net(IMAGES)
    leave = sure >= net.threshold
    assert 0 < leave.sum() < len(IMAGES)
    assert torch.equal(got[leave], early[leave]) and torch.allclose(got[~leave], final[~leave], atol=1e-6)
    assert not torch.allclose(early, final)


def test_the_rest_is_not_run_for_those_who_left():
    net = network()
    with torch.no_grad():
        sure = early_exit.confidence(net.exits(IMAGES)[0])
    net.threshold.fill_(sure.sort().values[10])
    seen = []
    net.rest.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    with torch.no_grad():
        net(IMAGES)
        assert seen == [10]
        net.threshold.fill_(0.0)
        net(IMAGES)
    assert seen == [10]


def test_in_training_it_gives_both_exits_and_the_loss_weighs_them():
    net, labels = network().train(), torch.arange(40) % 10
    outputs = net(IMAGES)
    assert outputs.shape == (2, 40, 10)
    early, final = (F.cross_entropy(each, labels) for each in outputs)
    for weight in (0.0, 0.3, 1.0):
        assert torch.allclose(early_exit.both_losses(weight)(outputs, labels), weight * early + (1 - weight) * final)
    with pytest.raises(ValueError, match="fraction"):
        early_exit.both_losses(1.5)


def test_a_door_trained_alone_leaves_the_rest_as_it_was():
    net, split = network(), random_split(60)
    for part in (net.stem, net.rest):
        part.requires_grad_(False)
    trained, history = training.fit(net, split, epochs=5, lr=0.05, loss=early_exit.both_losses(1.0), augmented=False)
    assert same(state(trained.stem), state(net.stem)) and same(state(trained.rest), state(net.rest))
    assert not same(state(trained.door), state(net.door)) and history[-1]["loss"] < history[0]["loss"]


def brute_force(early, final, labels, lose):
    """Try every confidence that occurs as the threshold; keep the lowest one that is good enough."""
    sure, n = early_exit.confidence(early), len(labels)
    alone, best = (final.argmax(1) == labels).sum(), float("inf")
    for threshold in sorted(set(sure.tolist()), reverse=True):
        leave = sure >= threshold
        right = torch.where(leave, early.argmax(1) == labels, final.argmax(1) == labels).sum()
        if right - alone >= -lose * n - 1e-9:
            best = threshold
    return best


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([-0.1, 0.0, 0.05, 0.2, 1.0]))
def test_the_threshold_is_the_lowest_that_brute_force_finds(seed, n, lose):
    generator = torch.Generator().manual_seed(seed)
    early, final = (torch.randint(-2, 3, (n, 3), generator=generator).float() for _ in range(2))       # with ties
    labels = torch.randint(3, (n,), generator=generator)
    assert early_exit.choose_threshold(early, final, labels, lose=lose) == brute_force(early, final, labels, lose)


def test_an_example_of_the_threshold_by_hand():
    """Confidences fall from row to row. The door is right, right, wrong, right; the last exit is right, wrong, right, right.

    Gained if the first k leave: 0, 1, 0, 0. Losing nothing, all may leave; to gain an image, two.
    """
    labels = torch.tensor([0, 0, 0, 0])
    early = torch.tensor([[4.0, 0], [3.0, 0], [0, 2.0], [1.0, 0]])
    final = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0], [1.0, 0]])
    sure = early_exit.confidence(early)
    assert early_exit.choose_threshold(early, final, labels) == float(sure[3])
    assert early_exit.choose_threshold(early, final, labels, lose=-0.25) == float(sure[1])
    assert early_exit.choose_threshold(early, final, labels, lose=-0.5) == float("inf")


def test_confidence_is_the_largest_probability_also_of_large_logits():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 0.0]])
    assert early_exit.confidence(logits).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("threshold", [0.0, "median", float("inf")])
def test_two_files_give_what_the_network_gives(threshold):
    net = network()
    with torch.no_grad():
        sure = early_exit.confidence(net.exits(IMAGES)[0])
        net.threshold.fill_(sure.sort().values[19:21].mean() if threshold == "median" else threshold)
        expected, maps = net(IMAGES), net.stem(IMAGES)
    front = deploy.load_onnx(deploy.onnx_bytes(early_exit.Front(net), IMAGES))
    back = deploy.load_onnx(deploy.onnx_bytes(early_exit.Back(net, maps.shape[1:]), maps.flatten(1)))
    asked = []
    run = early_exit.cascade(front, lambda x: (asked.append(len(x)), back(x))[1], classes=10, threshold=float(net.threshold))
    images = IMAGES.numpy().copy()
    assert np.allclose(run(images), expected.numpy(), atol=1e-4) and (images == IMAGES.numpy()).all()
    assert asked == {0.0: [], "median": [20], float("inf"): [40]}[threshold]
    for one in range(3):
        assert np.allclose(run(images[one:one + 1]), expected[one:one + 1].numpy(), atol=1e-4)


def test_saved_and_loaded_it_predicts_the_same_at_the_same_threshold(tmp_path):
    net = network(0.37)
    files.save(net, tmp_path / "exit.safetensors")
    again = files.load(tmp_path / "exit.safetensors")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES)) and float(again.threshold) == float(net.threshold)
    assert again.architecture["changes"] == [["early_exit", "exit", {"after": 3, "pool": 2}]]


def test_the_parts_can_be_counted():
    net, model = network(), tiny("cnn")
    maps = net.stem(IMAGES).detach()
    assert cost.macs(net.stem, IMAGES) + cost.macs(net.rest, maps) == cost.macs(model, IMAGES)
    assert cost.macs(net.door, maps) == net.door[-1].weight.numel()


@pytest.mark.parametrize("model, options, message", [
    (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"after": 1}, "made by course_lib.models"), (tiny("cnn"), {"after": 0}, "after"),
    (tiny("cnn"), {"after": 99}, "after"), (tiny("mlp"), {"after": 2}, "must give maps"), (tiny("cnn"), {"after": 3, "pool": 50}, "pool"),
    (tiny("cnn"), {"after": 3, "pool": 0}, "pool"), (tiny("cnn"), {"after": 3, "pool": 2.0}, "pool")])
def test_a_door_that_does_not_fit_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        early_exit.add_exit(model, **options)


@pytest.mark.parametrize("early, final, labels", [
    (torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2)),
    (torch.zeros(3), torch.zeros(3), torch.zeros(3)), (torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))])
def test_logits_and_labels_that_do_not_belong_together_are_refused(early, final, labels):
    with pytest.raises(ValueError, match="need logits"):
        early_exit.choose_threshold(early, final, labels)
