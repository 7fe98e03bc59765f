"""Looking inside a model: every image once, in evaluation mode, and nothing stays attached."""
import pytest
import torch
from torch import nn

from course_lib import watch
from helpers import HalfUsed, random_split, same, state, tiny

IMAGES = random_split(23).images


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_what_goes_in_and_comes_out_in_the_order_of_the_run():
    model, seen = tiny("mlp"), []
    watch.watch(model, ["3", "1"], IMAGES, lambda *call: seen.append(call), batch_size=10)
    assert [(name, len(x)) for name, _, x, _ in seen] == [("1", 10), ("3", 10), ("1", 10), ("3", 10), ("1", 3), ("3", 3)]
    name, layer, x, y = seen[0]
    assert layer is model[1] and torch.equal(x, IMAGES[:10].flatten(1)) and torch.equal(y, model[1](x))
    assert not any(y.requires_grad for _, _, _, y in seen)


def test_features_are_the_outputs_for_all_images():
    model = tiny("resnet")
    with torch.no_grad():
        expected = model[:4](IMAGES)
    torch.testing.assert_close(watch.features(model, "3", IMAGES, batch_size=7), expected)
    assert torch.equal(watch.features(model, "", IMAGES), model(IMAGES).detach())


def test_modes_and_numbers_stay_and_no_hook_is_left():
    model = tiny("resnet").train()
    model[3].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    watch.features(model, "7", IMAGES)
    assert same(state(model), before) and [m.training for m in model.modules()] == modes and hooks(model) == 0

    def fail(*_):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        raise KeyError("seen enough")
    with pytest.raises(KeyError):
        watch.watch(model, ["0", "7"], IMAGES, fail)
    assert hooks(model) == 0 and [m.training for m in model.modules()] == modes and torch.is_grad_enabled()


def test_a_layer_named_twice_is_seen_once():
    seen = []
    watch.watch(tiny("mlp"), iter(["1", "1"]), IMAGES, lambda name, *_: seen.append(name))
    assert seen == ["1"]


def test_features_are_not_changed_by_a_layer_that_works_in_place():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True))
    x = torch.randn(5, 4)
    assert torch.equal(watch.features(model, "0", x), model[0](x).detach()) and (model[0](x) < 0).any()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize("call, message", [
    (lambda: watch.features(tiny("mlp"), "fc", IMAGES), "the model has no layer named 'fc'; it has 0, 1, 2, 3"),
    (lambda: watch.features(tiny("mlp"), "1", IMAGES[:0]), "need images to see what occurs in the model; got none"),
    (lambda: watch.features(HalfUsed(), "unused", torch.rand(2, 4)), "the model never calls unused"),
    (lambda: watch.features(Twice(), "layer", torch.rand(3, 4)), "layer gives 6 outputs for 3 images; does it run more than once?"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
