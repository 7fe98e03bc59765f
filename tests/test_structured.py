"""Units go from every layer that knows of them: the small model computes what the masked one does."""
import copy
import math

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from course_lib import deploy, files, models, pruning, training
from helpers import IMAGE_SIZE, TINY, random_split, same, state, tiny

IMAGES = random_split(3, channels=3).images.double()


class Block(nn.Module):
    """What a random net is made of: convolution, normalisation, activation, pooling, shortcut, depthwise."""

    def __init__(self, n_in, n_out, norm, shortcut, depthwise, pool, activation):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(n_out) if norm else nn.Identity()
        self.depthwise = nn.Conv2d(n_out, n_out, 3, padding=1, groups=n_out) if depthwise else None
        self.shortcut = {"none": None, "same": nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1),
                         "projected": nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.BatchNorm2d(n_out))}[shortcut]
        self.pool, self.activation = pool, activation

    def forward(self, x):
        y = self.activation(self.norm(self.conv(x)))
        if self.depthwise is not None:
            y = self.depthwise(y)
        if self.shortcut is not None:
            y += self.shortcut(x)
        return self.pool(F.leaky_relu(y))


POOLS = st.sampled_from([nn.Identity(), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, padding=1, stride=1),
                         lambda x: F.max_pool2d(x, 3, 1, 1)])
ACTIVATIONS = st.sampled_from([nn.ReLU(), nn.Tanh(), nn.GELU(), F.silu, torch.relu, nn.Dropout(0.5), nn.ReLU6(inplace=True)])


@st.composite
def nets(draw, depthwise=st.booleans()):
    """A random net for IMAGES, in double precision, with batch statistics that are not the initial ones."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    widths = [3, *draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))]
    blocks = [Block(n_in, n_out, draw(st.booleans()), draw(st.sampled_from(["none", "same", "projected"])), draw(depthwise),
                    draw(POOLS), draw(ACTIVATIONS)) for n_in, n_out in zip(widths, widths[1:])]
    body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(draw(st.integers(1, 3))), nn.Flatten())
    features = body(IMAGES.float()).shape[1]
    hidden = draw(st.integers(1, 4))
    norm = [nn.BatchNorm1d(features)] if draw(st.booleans()) else []
    net = nn.Sequential(body, *norm, nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double().train()
    net(torch.rand(8, *IMAGES.shape[1:]).double())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):        # a shift of zero would hide mistakes
                module.weight.uniform_(0.5, 1.5), module.bias.uniform_(-1, 1)
    return net.eval()


def random_plan(draw, groups):
    return {g.name: sorted(draw(st.sets(st.integers(0, g.size - 1), max_size=g.size - 1))) for g in groups if draw(st.booleans())}


def by_torch_pruning(model, example, plan):
    """A copy of the model from which Torch-Pruning has removed the same units."""
    model = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    for name, gone in plan.items():
        if gone:
            graph.get_pruning_group(*root_of(model, name), idxs=list(gone)).prune()
    return model


def root_of(model, name):
    layer = model.get_submodule(name)
    linear = isinstance(layer, nn.Linear)
    return layer, torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels


# --- groups ---

def test_the_groups_of_the_cnn_by_hand():
    """A channel of the last convolution is 5 × 5 features of the dense layer; the 10 outputs are fixed."""
    assert pruning.unit_groups(models.cnn(), torch.rand(2, 1, 28, 28)) == [
        pruning.Group("0", 32, makers=("0",), norms=(), readers=(("3", 1),)),
        pruning.Group("3", 64, makers=("3",), norms=(), readers=(("7", 25),))]


def test_the_groups_of_the_residual_net_by_hand():
    """What is added hangs together: the stem and the first block's end, the second block's end and its shortcut."""
    assert pruning.unit_groups(models.resnet(), torch.rand(2, 1, 28, 28)) == [
        pruning.Group("0", 16, ("0", "3.body.3"), (("1", 1), ("3.body.4", 1)),
                      (("3.body.0", 1), ("4.body.0", 1), ("4.shortcut.0", 1))),
        pruning.Group("3.body.0", 16, ("3.body.0",), (("3.body.1", 1),), (("3.body.3", 1),)),
        pruning.Group("4.body.0", 32, ("4.body.0",), (("4.body.1", 1),), (("4.body.3", 1),)),
        pruning.Group("4.body.3", 32, ("4.body.3", "4.shortcut.0"), (("4.body.4", 1), ("4.shortcut.1", 1)), (("7", 1),))]


def test_a_group_lists_its_layers_once():
    group = pruning.unit_groups(tiny("resnet"), torch.rand(2, 1, 16, 16))[0]
    assert group.layers == ("0", "3.body.3", "1", "3.body.4", "3.body.0", "4.body.0", "4.shortcut.0")


class Added(nn.Module):
    """What is added to the input keeps its size; only the layer between can be thinned."""

    def __init__(self, last):
        super().__init__()
        self.inside, self.back, self.last = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1), last

    def forward(self, x):
        return self.last(torch.add(self.back(self.inside(x).relu()), x))


@pytest.mark.parametrize("last", [nn.Conv2d(3, 2, 1), nn.Softmax(1)], ids=["convolution", "softmax"])
def test_units_tied_to_the_input_are_fixed_and_an_output_may_meet_a_softmax(last):
    model, example = Added(last), torch.rand(2, 3, 4, 4)
    groups = pruning.unit_groups(model, example)
    assert groups == [pruning.Group("inside", 5, ("inside",), (), (("back", 1),))]
    with pytest.raises(ValueError, match="'back' is no group of its own, or one tied to the model's input or output"):
        pruning.remove_units(model, groups, {"back": [0]})


@pytest.mark.parametrize("mode", [True, False])
def test_finding_groups_changes_nothing(mode):
    model = tiny("resnet").train(mode)
    model[2].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    pruning.unit_groups(model, torch.rand(2, 1, 16, 16))
    assert same(before, state(model)) and modes == [m.training for m in model.modules()]


# --- what cannot be followed is refused ---

class Calls(nn.Module):
    """Applies a function to the units of a first layer and gives the result to a second one."""

    def __init__(self, function, first=None, second=None, **layers):
        super().__init__()
        self.function = function
        self.first, self.second = first or nn.Conv2d(3, 4, 3, padding=1), second or nn.Conv2d(4, 2, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.second(self.function(self, self.first(x)))


def tied_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def pruned_by_torch():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def by_its_input(self, x):
    return x if x.sum() > 0 else -x


FLAT = torch.rand(2, 4)             # for the models whose first weight reads 4 features
REFUSED = [
    ("a slice", Calls(lambda _, x: x[:, :4]), "operation getitem on (2, 4, 16, 16): units cannot be followed through it. Known are"),
    ("concatenation", Calls(lambda _, x: torch.cat([x, x], 1), second=nn.Conv2d(8, 2, 1)), "operation cat on (2, 4, 16, 16)"),
    ("view", Calls(lambda _, x: x.view(-1, 4, 16, 16)), "operation view on (2, 4, 16, 16)"),
    ("size", Calls(lambda _, x: x.reshape(x.size(0), -1, 16, 16)), "operation size gives no tensor with channels"),
    ("product", Calls(lambda _, x: x * x.tanh()), "operation mul on (2, 4, 16, 16)"),
    ("a number added", Calls(lambda _, x: x + 1), "operation add on (2, 4, 16, 16)"),
    ("sum with broadcasting", Calls(lambda self, x: x + self.extra(x), extra=nn.AdaptiveAvgPool2d(1)),
     "operation add on (2, 4, 16, 16), (2, 4, 1, 1)"),
    ("sigmoid", Calls(lambda _, x: x.sigmoid()), "operation sigmoid does not map 0 to 0"),
    ("softmax", Calls(lambda _, x: F.softmax(x, 1)), "operation softmax does not map 0 to 0"),
    ("an activation with an offset", Calls(lambda self, x: self.extra(x), extra=nn.Hardtanh(1, 2)),
     "layer extra (Hardtanh) does not map 0 to 0"),
    ("prelu", Calls(lambda self, x: self.extra(x), extra=nn.PReLU(4)), "layer extra (PReLU) on (2, 4, 16, 16)"),
    ("group norm", Calls(lambda self, x: self.extra(x), extra=nn.GroupNorm(2, 4)), "layer extra (GroupNorm) on"),
    ("layer norm", Calls(lambda self, x: self.extra(x), extra=nn.LayerNorm(16)), "layer extra (LayerNorm) on"),
    ("batch norm without scale", Calls(lambda self, x: self.extra(x), extra=nn.BatchNorm2d(4, affine=False)),
     "layer extra (BatchNorm2d) on"),
    ("grouped convolution", Calls(lambda self, x: self.extra(x), extra=nn.Conv2d(4, 4, 3, groups=2)),
     "layer extra (Conv2d) on (2, 4, 16, 16)"),
    ("transposed convolution", Calls(lambda self, x: self.extra(x), extra=nn.ConvTranspose2d(4, 4, 1)), "(ConvTranspose2d) on"),
    ("a subclass", Calls(lambda self, x: self.extra(x), extra=type("Odd", (nn.Conv2d,), {"__module__": "torch.nn"})(4, 4, 1)),
     "layer extra (Odd) on"),
    ("linear on more dimensions", Calls(lambda self, x: self.extra(x), extra=nn.Linear(16, 16)),
     "layer extra (Linear) on (2, 4, 16, 16)"),
    ("attention",
     Calls(lambda self, x: self.extra(x, x, x)[0], nn.Linear(4, 4), nn.Linear(4, 2), extra=nn.MultiheadAttention(4, 1)),
     "layer extra (MultiheadAttention) gives no tensor"),
    ("pooling over channels", Calls(lambda self, x: self.extra(x), nn.Linear(4, 4), nn.Linear(2, 2), extra=nn.MaxPool1d(2)),
     "layer extra (MaxPool1d) on (2, 4)"),
    ("a parameter", Calls(lambda self, x: x + self.bias, bias=nn.Parameter(torch.ones(2, 4, 16, 16))),
     "parameter or buffer bias, used outside a layer"),
    ("a bare layer", nn.Linear(4, 2), "parameter or buffer weight, used outside a layer"),
    ("a layer that runs twice", Calls(lambda self, x: self.extra(self.extra(x)), extra=nn.Conv2d(4, 4, 1)),
     "layer extra (Conv2d) runs more than once"),
    ("a layer with two names",
     Calls(lambda self, x: self.again(self.extra(x)), **dict.fromkeys(["extra", "again"], nn.Conv2d(4, 4, 1))),
     "extra.weight and again.weight are one and the same parameter"),
    ("a shared weight", tied_weight(), "0.weight and 2.weight are one and the same parameter"),
    ("a layer that does not run", Calls(lambda _, x: x, extra=nn.Conv2d(4, 4, 1)), "layer extra has parameters but is not called"),
    ("torch's pruning, not made permanent", pruned_by_torch(), "0 has hooks, which may change what it computes"),
    ("a decision by the input", Calls(by_its_input), "the flow of data cannot be followed"),
    ("a layer that nobody reads", Calls(lambda self, x: (self.extra(x), x)[1], extra=nn.Conv2d(4, 4, 1)),
     "nothing reads what layer extra makes"),
    ("two inputs", nn.Bilinear(4, 4, 2), "operation input2 does not run on the example"),
    ("features of unequal width", Calls(lambda self, x: torch.flatten(x, 1) + self.dense(self.extra(x).flatten(1)),
                                        second=nn.Linear(1024, 2), extra=nn.AdaptiveAvgPool2d(1), dense=nn.Linear(4, 1024)),
     "operation add adds features of which 256 belong to one unit to others of which 1 do"),
    ("flattened across the batch", nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(0, 2), nn.Linear(16, 2)), "layer 1 (Flatten) on"),
    ("only an output layer", nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), "nothing to remove"),
    ("no layer at all", nn.Sequential(nn.ReLU()), "nothing to remove"),
    ("shapes that do not fit", nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)),
     "layer 2 (Conv2d) does not run on the example"),
]


@pytest.mark.parametrize("model, message", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(model, message):
    before, flat = state(model), next((p for p in model.parameters()), FLAT[0]).shape[1:] in [(4,), (4, 4)]
    with pytest.raises(ValueError) as error:
        pruning.unit_groups(model, FLAT if flat else torch.rand(2, 3, 16, 16))
    assert message in str(error.value)
    assert same(before, state(model))


def test_a_half_removed_residual_branch_is_refused():
    """By hand, one channel goes from a block but not from the shortcut that is added to it."""
    model = tiny("resnet")
    model[4].body[3] = nn.Conv2d(4, 3, 3, padding=1)
    model[4].body[4] = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match=r"operation add does not run on the example: .*size"):
        pruning.unit_groups(model, torch.rand(2, 1, 16, 16))


# --- masked and removed ---

@given(st.data())
@settings(max_examples=60)
def test_the_small_model_computes_what_the_masked_one_does(draws):
    """On random nets with residual sums, depthwise convolutions, pooling and flattening; in training mode too."""
    net = draws.draw(nets())
    groups = pruning.unit_groups(net, IMAGES)
    plan = random_plan(draws.draw, groups)
    before = state(net)
    masked, small = pruning.mask_units(net, groups, plan), pruning.remove_units(net, groups, plan)
    assert same(before, state(net))
    torch.testing.assert_close(small(IMAGES), masked(IMAGES), rtol=1e-10, atol=1e-12)
    for module in [*masked.modules(), *small.modules()]:
        module.train(not isinstance(module, nn.Dropout))
    torch.testing.assert_close(small(IMAGES), masked(IMAGES), rtol=1e-8, atol=1e-10)


@given(st.data())
@settings(max_examples=40)
def test_removal_equals_torch_pruning_on_random_nets(draws):
    net = draws.draw(nets())
    groups = pruning.unit_groups(net, IMAGES)
    plan = random_plan(draws.draw, groups)
    small, theirs = pruning.remove_units(net, groups, plan), by_torch_pruning(net, IMAGES, plan)
    assert same(state(small), state(theirs))
    assert torch.equal(small(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize("name", sorted(TINY))
@given(data=st.data())
@settings(max_examples=8)
def test_every_model_of_the_course_can_be_thinned(name, data):
    model = tiny(name, channels=3).double()
    groups = pruning.unit_groups(model, IMAGES)
    plan = random_plan(data.draw, groups)
    masked, small = pruning.mask_units(model, groups, plan), pruning.remove_units(model, groups, plan)
    torch.testing.assert_close(small(IMAGES), masked(IMAGES), rtol=1e-10, atol=1e-12)
    assert same(state(small), state(by_torch_pruning(model, IMAGES, plan)))


def test_the_mask_covers_the_shift_of_the_batch_normalisation():
    """Without its weights alone, a channel would go on emitting a constant."""
    model = tiny("student").double()
    with torch.no_grad():
        model[1].bias.fill_(3.0)
    groups = pruning.unit_groups(model, IMAGES[:, :1])
    masked = pruning.mask_units(model, groups, {"0": [1]})
    assert masked[0].weight[1].count_nonzero() == 0 and masked[1].weight[1] == masked[1].bias[1] == 0
    assert masked[:3](IMAGES[:, :1])[:, 1].count_nonzero() == 0
    weights_only = copy.deepcopy(model)
    with torch.no_grad():
        weights_only[0].weight[1] = 0
    assert not torch.allclose(weights_only(IMAGES[:, :1]), masked(IMAGES[:, :1]))


@pytest.mark.parametrize("wide, narrow", [(models.cnn(widths=(4, 6)), models.cnn(widths=(2, 3))),
                                          (models.resnet(width=4), models.resnet(width=2)),
                                          (models.student(widths=(4, 6, 4)), models.student(widths=(2, 3, 2))),
                                          (models.mlp(hidden=(6, 4)), models.mlp(hidden=(3, 2)))],
                         ids=["cnn", "resnet", "student", "mlp"])
def test_half_of_the_units_leaves_the_layers_of_the_half_as_wide_model(wide, narrow):
    groups = pruning.unit_groups(wide, torch.rand(2, 1, 28, 28))
    small = pruning.remove_units(wide, groups, pruning.choose_units(groups, pruning.unit_random(groups, seed=0), amount=0.5))
    assert repr(small) == repr(narrow)
    assert {n: t.shape for n, t in small.state_dict().items()} == {n: t.shape for n, t in narrow.state_dict().items()}


def test_removal_keeps_the_chosen_numbers_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1))
        model[2].weight.copy_(torch.arange(6.0)[None])
    small = pruning.remove_units(model, pruning.unit_groups(model, torch.rand(2, 1, 1, 2)), {"0": [1]})
    assert small[0].weight.flatten().tolist() == [1, 3] and small[2].weight.tolist() == [[0, 1, 4, 5]]
    assert small[0].out_channels == 2 and small[2].in_features == 4


def test_copies_share_nothing_with_the_model_and_keep_what_is_frozen():
    model = tiny("cnn").train()
    model[0].weight.requires_grad_(False)
    groups, before = pruning.unit_groups(model, torch.rand(2, 1, 16, 16)), state(model)
    for copied in (pruning.remove_units(model, groups, {"0": [1]}), pruning.mask_units(model, groups, {"0": [1]}),
                   pruning.remove_units(model, groups, {})):
        assert copied.training and [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.fill_(7)
    assert same(before, state(model)) and "changes" not in model.architecture


# --- saved, loaded, deployed, trained on ---

@pytest.mark.parametrize("name", sorted(TINY))
def test_a_thinned_model_is_saved_loaded_and_deployed(tmp_path, name):
    """Twice in a row, as in repeated pruning."""
    small, images = tiny(name), random_split(4).images
    for _ in range(2):
        groups = pruning.unit_groups(small, images)
        plan = {g.name: [0] for g in groups if g.size > 1}
        small = pruning.remove_units(small, groups, plan)
        files.save(small, tmp_path / "small.safetensors")
        loaded = files.load(tmp_path / "small.safetensors")
        assert same(state(small), state(loaded)) and torch.equal(small(images), loaded(images))
        assert loaded.architecture["changes"] == small.architecture["changes"]
    deploy.export_onnx(small, tmp_path / "small.onnx", images)


def test_a_depthwise_layer_is_saved_too(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2))
    groups = pruning.unit_groups(model, torch.rand(2, 1, 3, 3))
    assert groups == [pruning.Group("0", 4, ("0", "1"), (), (("3", 1),))]
    small = pruning.remove_units(model, groups, {"0": [0, 2]})
    assert repr(small[1]) == "Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1), groups=2)"
    again = pruning.resize(model, sizes={"0": [1, 2], "1": [2, 2], "3": [2, 2]})
    assert repr(again) == repr(small)
    assert [t.shape for t in again.state_dict().values()] == [t.shape for t in small.state_dict().values()]


def test_sizes_of_a_layer_that_does_not_exist_are_refused():
    with pytest.raises(ValueError, match="the model has no layer 99"):
        pruning.resize(tiny("mlp"), sizes={"99": [1, 1]})


def test_a_thinned_model_can_be_trained():
    model = tiny("resnet")
    groups = pruning.unit_groups(model, torch.rand(2, 1, 16, 16))
    small = pruning.remove_units(model, groups, {"0": [0], "4.body.3": [1, 2]})
    trained, history = training.fit(small, random_split(), epochs=1, lr=0.01)
    assert math.isfinite(history[0]["loss"]) and repr(trained) == repr(small)


# --- scores ---

@given(st.data())
@settings(max_examples=30)
def test_magnitudes_equal_torch_prunings(draws):
    """Without depthwise convolutions, whose weights Torch-Pruning does not count."""
    net, p = draws.draw(nets(depthwise=st.just(False))), draws.draw(st.sampled_from([1, 2]))
    groups = pruning.unit_groups(net, IMAGES)
    ours = pruning.unit_magnitude(net, groups, p=p)
    graph = torch_pruning.DependencyGraph().build_dependency(copy.deepcopy(net), example_inputs=IMAGES)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=p)
    for group in groups:
        layer, cut = root_of(graph.model, group.name)
        theirs = importance(graph.get_pruning_group(layer, cut, idxs=list(range(group.size))))
        torch.testing.assert_close(ours[group.name].float(), theirs, rtol=1e-4, atol=1e-6)
        by_score = theirs[ours[group.name].argsort()]
        assert (by_score.diff() >= -1e-5).all()                 # the same order


def test_magnitudes_by_hand():
    """Σ |w| over own weights, scale and readers, over the mean 15: 1 + 1 + (1 + 2), and 5 + 3 + (3 + 14)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-1.0, 5]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([1.0, -3]))
        model[3].weight.copy_(torch.tensor([[1.0, 2, -3, 14]]))
    groups = pruning.unit_groups(model, torch.rand(2, 1, 1, 2))
    assert pruning.unit_magnitude(model, groups)["0"].tolist() == pytest.approx([5 / 15, 25 / 15])


def gate_gradients(model, groups, images, labels):
    """The same by autograd: a factor of 1 on what each unit's readers get, and the loss's derivative by it."""
    model, gates = copy.deepcopy(model), {g.name: torch.ones(g.size, dtype=images.dtype, requires_grad=True) for g in groups}
    for group in groups:
        for name, repeat in group.readers:
            def gate(_, inputs, factor=gates[group.name], repeat=repeat):
                factor = factor.repeat_interleave(repeat)
                return inputs[0] * factor.view(1, -1, *[1] * (inputs[0].dim() - 2))
            model.get_submodule(name).register_forward_pre_hook(gate)
    F.cross_entropy(model(images), labels).backward()
    return {name: gate.grad for name, gate in gates.items()}


@pytest.mark.parametrize("name", sorted(TINY))
def test_taylor_scores_are_squared_derivatives_of_the_loss_by_a_gate(name):
    model, split = tiny(name, channels=3).double(), random_split(7, channels=3)
    images, groups = split.images.double(), pruning.unit_groups(tiny(name, channels=3).double(), IMAGES)
    scores = pruning.unit_taylor(model, groups, images, split.labels, batch_size=3)
    for group, gradient in gate_gradients(model, groups, images, split.labels).items():
        torch.testing.assert_close(scores[group], gradient**2, rtol=1e-8, atol=1e-14)


def test_taylor_scores_equal_the_gate_of_the_batch_normalisation():
    """Molchanov's gate: scale times its gradient plus shift times its gradient. A ReLU lets a positive factor through."""
    model, split = tiny("student").double(), random_split(7)
    with torch.no_grad():
        model[1].bias.uniform_(-1, 1), model[4].bias.uniform_(-1, 1)
    groups = pruning.unit_groups(model, split.images.double())
    F.cross_entropy(model(split.images.double()), split.labels).backward()
    scores = pruning.unit_taylor(model, groups, split.images.double(), split.labels)
    for group in groups:
        norm = model.get_submodule(group.norms[0][0])
        gate = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
        torch.testing.assert_close(scores[group.name], gate.detach()**2)


def test_a_small_step_of_the_gate_changes_the_loss_as_the_taylor_score_says():
    model, split = tiny("cnn").double(), random_split(5)
    images, groups = split.images.double(), pruning.unit_groups(tiny("cnn").double(), split.images.double())
    score = pruning.unit_taylor(model, groups, images, split.labels)["3"][1]
    shrunk, step = copy.deepcopy(model), 1e-5
    with torch.no_grad():
        shrunk[7].weight[:, 4:8] *= 1 - step                    # the reader of channel 1, which has 2 × 2 features
        change = (F.cross_entropy(shrunk(images), split.labels) - F.cross_entropy(model(images), split.labels)) / step
    assert float(change**2) == pytest.approx(float(score), rel=1e-3)


@pytest.mark.parametrize("reader", [[nn.Flatten(), nn.Linear(8, 1)], [nn.Conv2d(2, 1, 1)]], ids=["linear", "convolution"])
def test_activations_by_hand(reader):
    """One channel emits 1 and −1 in turn, the other 3; the mean magnitude is 2."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), *reader)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0]).view(2, 1, 1, 1)), model[0].bias.copy_(torch.tensor([0.0, 3]))
    images = torch.tensor([1.0, -1, 1, -1]).view(1, 1, 2, 2).repeat(5, 1, 1, 1)
    scores = pruning.unit_activation(model, pruning.unit_groups(model, images), images, batch_size=2)
    assert scores["0"].tolist() == pytest.approx([0.5, 1.5])


def test_activations_of_a_residual_net_are_those_that_readers_see():
    model, images = tiny("resnet"), random_split(6).images
    stem = model[:3](images)
    block = model[:4](images)
    expected = stem.abs().mean((0, 2, 3)) + 2 * block.abs().mean((0, 2, 3))     # one reader sees the stem, two see the block
    scores = pruning.unit_activation(model, pruning.unit_groups(model, images), images, batch_size=4)["0"]
    torch.testing.assert_close(scores.float(), (expected / expected.mean()).detach())


def test_random_scores_depend_on_the_seed_only():
    groups = pruning.unit_groups(tiny("cnn"), torch.rand(2, 1, 16, 16))
    first, again, other = (pruning.unit_random(groups, seed=s) for s in (0, 0, 1))
    assert same(first, again) and not same(first, other) and {n: len(s) for n, s in first.items()} == {"0": 2, "3": 3}


def test_scoring_changes_nothing():
    model, split = tiny("resnet").train(), random_split(6)
    groups, before = pruning.unit_groups(model, split.images), state(model)
    pruning.unit_magnitude(model, groups)
    pruning.unit_taylor(model, groups, split.images, split.labels)
    pruning.unit_activation(model, groups, split.images)
    assert same(before, state(model)) and model.training and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_of_weights_that_are_not_finite_are_refused(bad):
    model = tiny("cnn")
    groups = pruning.unit_groups(model, torch.rand(2, 1, 16, 16))
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="weights must be finite; group 0 has NaN or infinity"):
        pruning.unit_magnitude(model, groups)
    with pytest.raises(ValueError, match="scores must be finite"):
        pruning.choose_units(groups, {"0": torch.ones(2), "3": torch.tensor([1, bad, 2])}, amount=0.5)


# --- which units ---

def grouped(*sizes):
    return [pruning.Group(str(i), size, (str(i),), (), ((str(i + 1), 1),)) for i, size in enumerate(sizes)]


def test_the_choice_by_hand():
    """10 units, 30 %: the three lowest go. With round_to=4 the 7 that are left become 8, so two go."""
    groups, scores = grouped(10), {"0": torch.tensor([5.0, 1, 9, 3, 8, 2, 7, 6, 4, 10])}
    assert pruning.choose_units(groups, scores, amount=0.3) == {"0": [1, 3, 5]}
    assert pruning.choose_units(groups, scores, amount=0.3, round_to=4) == {"0": [1, 5]}
    assert pruning.choose_units(groups, scores, amount=0.2, round_to=4) == {"0": [1, 5]}        # 8 are left already
    assert pruning.choose_units(groups, scores, amount=0.1, round_to=4) == {"0": []}            # 9: the whole group stays
    assert pruning.choose_units(groups, scores, amount=0) == {"0": []}


def test_the_global_choice_by_hand():
    groups, scores = grouped(3, 2), {"0": torch.tensor([1.0, 2, 6]), "1": torch.tensor([3.0, 5])}
    assert pruning.choose_units(groups, scores, amount=0.6, scope="global") == {"0": [0, 1], "1": [0]}
    assert pruning.choose_units(groups, scores, amount={"0": 0, "1": 0.5}) == {"0": [], "1": [0]}


def test_of_tied_units_the_first_goes():
    assert pruning.choose_units(grouped(4), {"0": torch.ones(4)}, amount=0.5) == {"0": [0, 1]}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.floats(0, 1), st.integers(1, 9), st.integers(0, 99),
       st.sampled_from(["layer", "global"]))
@settings(max_examples=150)
def test_what_is_left_is_a_multiple_and_never_less_than_asked_for(sizes, amount, round_to, seed, scope):
    groups = grouped(*sizes)
    scores = pruning.unit_random(groups, seed=seed)
    try:
        exact = pruning.choose_units(groups, scores, amount=amount, scope=scope)
        plan = pruning.choose_units(groups, scores, amount=amount, scope=scope, round_to=round_to)
    except ValueError as error:
        assert "this removes all" in str(error)
        return
    if scope == "layer":
        assert [len(gone) for gone in exact.values()] == [round(amount * n) for n in sizes]
    assert sum(len(gone) for gone in exact.values()) == (
        round(amount * sum(sizes)) if scope == "global" else sum(round(amount * n) for n in sizes))
    for group in groups:
        gone, left = plan[group.name], group.size - len(plan[group.name])
        asked = group.size - len(exact[group.name])
        assert left % round_to == 0 or left == group.size
        assert asked <= left < asked + round_to and set(gone) <= set(exact[group.name]) and gone == sorted(set(gone))
        kept = [i for i in range(group.size) if i not in gone]
        assert not gone or scores[group.name][gone].max() <= scores[group.name][kept].min()


GROUPS, SCORES = grouped(4, 2), {"0": torch.arange(4.0), "1": torch.arange(2.0) + 9}
RESNET = tiny("resnet")


def resnet_groups():
    return pruning.unit_groups(RESNET, torch.rand(2, 1, 16, 16))


def remove(plan):
    return lambda: pruning.remove_units(RESNET, resnet_groups(), plan)


BAD = [
    ("removal of every channel", lambda: pruning.choose_units(GROUPS, SCORES, amount=1), "this removes all 4 units of group 0"),
    ("removal of almost every channel", lambda: pruning.choose_units(GROUPS, SCORES, amount=0.9), "this removes all 4 units"),
    ("removal of a whole layer among others", lambda: pruning.choose_units(GROUPS, SCORES, amount=0.67, scope="global"),
     "this removes all 4 units of group 0, and nothing would pass; use a smaller amount, or scope='layer'"),
    ("a percentage", lambda: pruning.choose_units(GROUPS, SCORES, amount=50), "amount must be a fraction from 0 to 1"),
    ("no number", lambda: pruning.choose_units(GROUPS, SCORES, amount=math.nan), "amount must be a fraction from 0 to 1"),
    ("blocks of nothing", lambda: pruning.choose_units(GROUPS, SCORES, amount=0.5, round_to=0), "round_to must be a whole number >= 1"),
    ("a broken block", lambda: pruning.choose_units(GROUPS, SCORES, amount=0.5, round_to=1.5), "such as 8; got 1.5"),
    ("an unknown scope", lambda: pruning.choose_units(GROUPS, SCORES, amount=0.5, scope="model"), "scope must be 'layer' or 'global'"),
    ("amounts of some groups", lambda: pruning.choose_units(GROUPS, SCORES, amount={"0": 0.5}), "one for each group (0, 1)"),
    ("amounts by group, but global", lambda: pruning.choose_units(GROUPS, SCORES, amount={"0": 0, "1": 0}, scope="global"),
     "in scope 'layer' one for each group"),
    ("scores of other groups", lambda: pruning.choose_units(GROUPS, {"0": torch.ones(4)}, amount=0.5),
     "scores must have one number for each unit of each group, {'0': 4, '1': 2}; got the shapes {'0': (4,)}"),
    ("one branch of a sum", remove({"4.shortcut.0": [0]}), "'4.shortcut.0' is no group of its own: its units go only together "
     "with those of 4.body.3, 4.shortcut.0, 4.body.4, 4.shortcut.1, 7; name the group '4.body.3'"),
    ("two branches, unequally", remove({"4.body.3": [0], "4.shortcut.0": [1]}), "name the group '4.body.3'"),
    ("the output layer", remove({"8": [0]}), "'8' is no group of its own, or one tied to the model's input or output; "
     "the groups are 0, 3.body.0, 4.body.0, 4.body.3"),
    ("an index too large", remove({"4.body.3": [4]}), "group 4.body.3 has 4 units: a plan names some of 0 to 3"),
    ("a negative index", remove({"4.body.3": [-1]}), "got [-1]"),
    ("an index twice", remove({"4.body.3": [1, 1]}), "each once and not all of them; got [1, 1]"),
    ("every index", remove({"4.body.3": [0, 1, 2, 3]}), "not all of them; got [0, 1, 2, 3]"),
    ("a truth value", remove({"4.body.3": [True]}), "got [True]"),
    ("every index, masked", lambda: pruning.mask_units(RESNET, resnet_groups(), {"0": [0, 1]}), "not all of them; got [0, 1]"),
    ("groups of another model", lambda: pruning.remove_units(tiny("cnn"), resnet_groups(), {"0": [0]}),
     "layer 3.body.3 has not the 2 × 1 units or features that its group says"),
    ("groups of the model before it was thinned",
     lambda: pruning.mask_units(pruning.remove_units(RESNET, resnet_groups(), {"4.body.3": [0]}), resnet_groups(), {"4.body.3": [1]}),
     "layer 4.body.3 has not the 4 × 1 units"),
]


@pytest.mark.parametrize("call, message", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_plans_are_refused_and_nothing_changes(call, message):
    before = state(RESNET)
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
    assert same(before, state(RESNET))
