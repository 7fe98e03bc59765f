"""Costs equal counts by hand and PyTorch's own counter, and nothing that runs goes uncounted."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from course_lib import cost, models
from course_lib.declared import DeclaresCost, LayerCost
from helpers import IMAGE_SIZE, TINY, random_split, same, state, tiny


class Calls(nn.Module):
    """A layer around any function, holding other layers if need be."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def reference(model, example):
    """Multiply-accumulates per example according to PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() / 2 / len(example)


# --- counting ---

def test_a_small_network_by_hand():
    """Convolution 1→2, 3×3, on 5×5: 3·3 places, 2 channels of 9 products each. Dense 18→3: 54."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    rows = cost.layer_costs(model, torch.rand(4, 1, 5, 5))
    assert [(row.layer, row.macs, row.operands) for row in rows] == [("0", 162, "float32"), ("3", 54, "float32")]
    assert cost.macs(model, torch.rand(1, 1, 5, 5)) == 216
    assert cost.parameters(model) == 2 * 9 + 2 + 18 * 3 + 3


@pytest.mark.parametrize("name, macs", [("mlp", 784 * 128 + 128 * 10), ("lenet_300_100", 784 * 300 + 300 * 100 + 100 * 10),
                                        ("lenet5", 24**2 * 20 * 25 + 8**2 * 50 * 20 * 25 + 800 * 500 + 500 * 10),
                                        ("cnn", 26**2 * 32 * 9 + 11**2 * 64 * 32 * 9 + 1600 * 10)])
def test_the_default_models_by_hand(name, macs):
    assert cost.macs(models.BUILDERS[name](), torch.rand(1, 1, 28, 28)) == macs


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("n", [1, 3])
def test_every_model_costs_half_of_what_pytorch_counts(name, n):
    model, example = tiny(name, channels=3), torch.rand(n, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert cost.macs(model, example) == reference(model, example) > 0


@st.composite
def stacks(draw):
    """One to three convolutions, plain or transposed, then pooling and a dense layer; an input for it."""
    channels, layers = draw(st.sampled_from([2, 4])), []
    shape = (draw(st.integers(1, 3)), channels, draw(st.integers(7, 9)), draw(st.integers(7, 9)))
    for _ in range(draw(st.integers(1, 3))):
        n_out, groups = draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 2]))
        kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d]))
        layers += [kind(channels, n_out, draw(st.sampled_from([1, 3])), stride=draw(st.sampled_from([1, 2])),
                        padding=1, groups=groups, bias=draw(st.booleans())), nn.ReLU()]
        channels = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, draw(st.integers(1, 4)))), shape


@given(stacks())
@settings(max_examples=40)
def test_random_networks_cost_half_of_what_pytorch_counts(stack):
    """Groups, strides, padding, transposition and batch size."""
    model, shape = stack
    assert cost.macs(model, torch.rand(shape)) == reference(model, torch.rand(shape))


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20)
def test_products_written_as_functions_are_counted(m, k, n, batch):
    """A matrix product m×k times k×n is m·k·n, however it is written."""
    left, right = torch.rand(batch, m, k), torch.rand(batch, k, n)
    start = torch.zeros(batch, m, n)
    for function in (lambda _, x: x @ right, lambda _, x: torch.einsum("bik,bkj->bij", x, right),
                     lambda _, x: torch.bmm(x, right), lambda _, x: torch.baddbmm(start, x, right)):
        assert cost.macs(Calls(function), left) == m * k * n
    assert cost.macs(Calls(lambda _, x: F.linear(x, right[0].t())), left) == m * k * n


def test_the_count_does_not_depend_on_the_batch():
    model = tiny("resnet")
    rows = [cost.layer_costs(model, torch.rand(n, 1, IMAGE_SIZE, IMAGE_SIZE)) for n in (1, 2, 5)]
    assert rows[0] == rows[1] == rows[2]


def test_a_layer_that_runs_twice_counts_twice():
    shared = nn.Linear(4, 4, bias=False)
    rows = cost.layer_costs(nn.Sequential(shared, nn.ReLU(), shared), torch.rand(2, 4))
    assert [(row.layer, row.macs) for row in rows] == [("0", 32)]


def test_a_layer_that_never_runs_costs_nothing():
    model = Calls(lambda self, x: self.used(x), used=nn.Linear(3, 2), unused=nn.Linear(3, 100))
    assert [(row.layer, row.macs) for row in cost.layer_costs(model, torch.rand(1, 3))] == [("used", 6)]


def test_work_between_the_layers_belongs_to_the_model():
    model = Calls(lambda self, x: self.layer(x) @ x.t(), layer=nn.Linear(3, 3))
    assert [(row.layer, row.macs) for row in cost.layer_costs(model, torch.rand(1, 3))] == [("layer", 9), ("(model)", 3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_operands_are_those_that_are_multiplied(dtype):
    row, = cost.layer_costs(nn.Linear(3, 2).to(dtype), torch.rand(1, 3, dtype=dtype))
    assert (row.macs, row.operands) == (6, str(dtype).removeprefix("torch."))


# --- bytes ---

def test_the_bytes_of_a_small_network_by_hand():
    """Per example: 25 numbers in, 18 out; 18 in, 3 out. Weights are read once, whatever the batch."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    for n in (1, 4):
        rows = cost.layer_costs(model, torch.rand(n, 1, 5, 5))
        assert [(row.weight_bytes, row.activation_bytes) for row in rows] == [(4 * 18, 4 * 43), (4 * 54, 4 * 21)]
    half, = cost.layer_costs(nn.Linear(18, 3).bfloat16(), torch.rand(2, 18, dtype=torch.bfloat16))
    assert (half.weight_bytes, half.activation_bytes) == (2 * 54, 2 * 21)


def test_a_layer_that_runs_twice_moves_its_bytes_twice():
    shared = nn.Linear(4, 4, bias=False)
    row, = cost.layer_costs(nn.Sequential(shared, nn.ReLU(), shared), torch.rand(2, 4))
    assert (row.weight_bytes, row.activation_bytes) == (2 * 64, 2 * 32)
    row, = cost.layer_costs(nn.Sequential(declared := Declared(), nn.Linear(2, 3, bias=False), declared), torch.rand(1, 3))[:1]
    assert (row.macs, row.activation_bytes) == (12, 40)


@pytest.mark.parametrize("n", [1, 3])
def test_a_product_of_two_activations_reads_no_weight(n):
    """2×3 times 3×4 for each example: 6 and 12 numbers in, 8 out."""
    right = torch.rand(n, 3, 4)
    row, = cost.layer_costs(Calls(lambda _, x: torch.bmm(x, right)), torch.rand(n, 2, 3))
    assert (row.macs, row.weight_bytes, row.activation_bytes) == (24, 0, 4 * 26)


def test_an_error_inside_a_declared_layer_is_the_one_that_is_seen():
    class Fails(Declared):
        def cost_per_example(self, x):
            raise KeyError("its own")
    with pytest.raises(KeyError, match="its own"):
        cost.layer_costs(nn.Sequential(Fails()), torch.rand(1, 3))


# --- zeros ---

def test_a_zero_weight_is_executed_but_not_ideal():
    """A quarter of the weights of each layer is zero: the machine multiplies them all the same."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.Linear(36, 2))
    example, dense = torch.rand(2, 1, 5, 5), copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight[0], model[2].weight[:, :9] = 0, 0
    before, after = cost.layer_costs(dense, example), cost.layer_costs(model, example)
    assert [row.macs for row in after] == [row.macs for row in before] == [324, 72]
    assert [row.ideal_macs for row in before] == [324, 72]
    assert [row.ideal_macs for row in after] == [243, 54]
    assert (cost.parameters(model), cost.nonzeros(model)) == (110, 110 - 9 - 18)


def test_a_layer_without_any_weight_costs_nothing():
    """All inputs or outputs of a layer may have been removed."""
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
    assert [row.macs for row in cost.layer_costs(model, torch.rand(2, 3))] == [0, 0]


# --- what cannot be counted ---

square = torch.rand(2, 4, 4)
UNCOUNTED = {
    "lstm": (nn.LSTM(4, 3, batch_first=True), square),
    "gru with a state": (Calls(lambda self, x: self.layer(x, torch.rand_like(x[:1, :2, :3]))[0],
                               layer=nn.GRU(4, 3, batch_first=True)), square),
    "multi-head attention": (Calls(lambda self, x: self.layer(x, x, x)[0],
                                   layer=nn.MultiheadAttention(4, 2, batch_first=True)), square),
    "attention": (Calls(lambda _, x: F.scaled_dot_product_attention(x, x, x)), square[:, None]),
    "transformer": (nn.TransformerEncoderLayer(4, 2, batch_first=True), square),
    "matrix times vector": (Calls(lambda _, x: x[0] @ x[0, 0]), square),
    "dot product": (Calls(lambda _, x: torch.dot(x[0, 0], x[0, 0])), square),
    "distances": (Calls(lambda _, x: torch.cdist(x, x)), square),
    "fourier": (Calls(lambda _, x: torch.fft.fft(x)), square),
    "resizing": (nn.Upsample(scale_factor=2, mode="bilinear"), square[:, None]),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_cannot_be_counted_is_an_error_never_a_silent_zero(name):
    model, example = UNCOUNTED[name]
    with pytest.raises(ValueError, match="cannot count the operation '.+' in layer '.+'; .*declared"):
        cost.layer_costs(model, example)


def test_the_error_names_the_operation_and_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Calls(lambda _, x: torch.cumsum(x, 1))))
    with pytest.raises(ValueError, match="cannot count the operation 'cumsum' in layer '1.1'"):
        cost.layer_costs(model, torch.rand(1, 4))


def test_an_operation_of_somebody_else_is_not_free_because_of_its_name():
    with torch.library._scoped_library("course_test", "DEF") as library:
        library.define("mul(Tensor a, Tensor b) -> Tensor")
        library.impl("mul", lambda a, b: a @ b, "CPU")
        with pytest.raises(ValueError, match="cannot count the operation 'course_test.mul' in layer"):
            cost.layer_costs(Calls(lambda _, x: torch.ops.course_test.mul(x, x)), torch.rand(3, 3))


# --- layers that declare their own cost ---

class Declared(nn.Module):
    """Multiplies whole numbers, in a way that PyTorch's operations do not show."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def cost_per_example(self, x):
        return LayerCost("", 2 * x.shape[1], x.shape[1], "int8", 6)

    def forward(self, x):
        return torch.cumsum(self.inner(x), 1)


def test_a_layer_that_declares_its_cost_is_counted_by_its_own_word():
    """Its inside, which has a dense layer and an operation that is unknown, is not counted again."""
    model = nn.Sequential(nn.Linear(3, 3), Declared(), nn.Linear(2, 2))
    assert isinstance(model[1], DeclaresCost) and not isinstance(model[0], DeclaresCost)
    assert cost.layer_costs(model, torch.rand(5, 3)) == [
        LayerCost("0", 9, 9, "float32", 36, 24), LayerCost("1", 6, 3, "int8", 6, 20), LayerCost("2", 4, 4, "float32", 16, 16)]


def test_a_declared_layer_inside_a_declared_layer_is_not_counted_again():
    class Outer(Declared):
        def __init__(self):
            super().__init__()
            self.inner = Declared()
    rows = cost.layer_costs(nn.Sequential(Outer(), nn.Linear(2, 1)), torch.rand(1, 3))
    assert rows == [LayerCost("0", 6, 3, "int8", 6, 20), LayerCost("1", 2, 2, "float32", 8, 12)]


# --- side effects ---

@pytest.mark.parametrize("fails", [False, True])
def test_counting_leaves_the_model_as_it_was_even_after_an_error(fails):
    model = nn.Sequential(tiny("student").train(), Calls(lambda _, x: torch.cumsum(x, 1)) if fails else nn.ReLU())
    model[0][1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    if fails:
        with pytest.raises(ValueError, match="cumsum"):
            cost.layer_costs(model, random_split().images)
    else:
        cost.layer_costs(model, random_split().images)
    assert same(state(model), before) and [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled() and torch.rand(2).cumsum(0).shape == (2,)        # nothing counts any more


def test_an_outer_product_written_with_broadcasting_is_an_error_not_a_zero():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.rand(5, 3))

        def forward(self, x):
            return (x[:, None, :] * self.w).sum(-1)
    with pytest.raises(ValueError, match="cannot count the operation 'mul'"):
        cost.macs(Broadcast(), torch.rand(2, 3))
