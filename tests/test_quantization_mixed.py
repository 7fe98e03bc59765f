"""The scan tries one layer at a time, and the search respects its budget and takes the cheapest step."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import files, models
from course_lib.quantization.affine import fake_quantize, grid_for
from course_lib.quantization.codebook import CodebookForm
from course_lib.quantization.mixed import allocate, per_channel, quantize_mixed, scan
from course_lib.quantization.stored import StoredLayer
from helpers import same, state, tiny


def three_layers():
    torch.manual_seed(0)
    return models.mlp(1, 4, hidden=(8, 4))          # 16·8, 8·4 and 4·10 weights


def weight_bytes(model):
    """Bytes of the codes alone, so that they can be worked out by hand; 4 a weight in float32."""
    return sum(layer.form.packed.numel() if isinstance(layer, StoredLayer) else 4 * layer.weight.numel()
               for layer in model.children() if isinstance(layer, (StoredLayer, nn.Linear)))


# --- scan ---

def test_the_scan_quantizes_one_layer_at_a_time():
    model, seen = three_layers(), []

    def judge(candidate):
        widths = tuple(layer.form.bits if isinstance(layer, StoredLayer) else 32 for layer in candidate[1::2])
        seen.append(widths)
        return float(sum(widths))

    loss = scan(model, judge, bits=(8, 2))
    assert seen == [(32,) * 3, (8, 32, 32), (2, 32, 32), (32, 8, 32), (32, 2, 32), (32, 32, 8), (32, 32, 2)]
    assert loss == {name: {8: 24.0, 2: 30.0} for name in ("1", "3", "5")}


def test_the_scan_leaves_the_model_as_it_was_and_can_use_another_form():
    model = tiny("cnn")
    before = state(model)
    kinds = []
    scan(model, lambda m: kinds.extend(type(layer.form) for layer in m.modules() if isinstance(layer, StoredLayer)) or 0.0,
         bits=(4,), form=CodebookForm.of)
    assert same(state(model), before) and kinds == [CodebookForm] * 3


def test_the_usual_form_is_a_symmetric_grid_for_each_channel():
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    form = per_channel(weight, 3)
    grid = grid_for(weight, 3, symmetric=True, axis=0)
    assert form.grid.scale.shape == (3,) and torch.equal(form.decode(), fake_quantize(weight, grid))


# --- allocate ---

LOSS = {"1": {8: 0.0, 4: 0.1, 2: 1.0}, "3": {8: 0.0, 4: 0.4, 2: 0.5}, "5": {8: 0.0, 4: 0.01, 2: 0.3}}


def test_steps_by_hand():
    """Codes in bytes at 8, 4, 2 bits: layer 1 has 128, 64, 32; layer 3 has 32, 16, 8; layer 5 has 40, 20, 10."""
    model = three_layers()
    cheapest = {200: {"1": 8, "3": 8, "5": 8}, 199: {"1": 8, "3": 8, "5": 4},   # 0.01 for 20 bytes
                179: {"1": 4, "3": 8, "5": 8},                                 # 0.1, where 5 and then 1 would lose 0.11
                135: {"1": 4, "3": 8, "5": 4}, 115: {"1": 4, "3": 8, "5": 2}, 105: {"1": 4, "3": 4, "5": 4}}
    for budget, bits in cheapest.items():
        assert weight_bytes(quantize_mixed(model, bits)) <= budget
        assert allocate(model, LOSS, budget=budget, cost_of=weight_bytes) == bits


def test_the_step_that_is_cheapest_for_each_byte_goes_first():
    """Layer 1 loses most, but saves 64 bytes for it; the others save 16 and 20. To lower all three would lose 0.45."""
    loss = {"1": {8: 0.0, 4: 0.2}, "3": {8: 0.0, 4: 0.1}, "5": {8: 0.0, 4: 0.15}}
    assert allocate(three_layers(), loss, budget=116, cost_of=weight_bytes) == {"1": 4, "3": 8, "5": 4}


def test_a_loss_that_falls_by_chance_is_made_flat():
    lucky = {"1": {8: -0.2, 4: -0.5, 2: -0.4}, "3": {8: 0.3, 4: 0.1, 2: 0.2}, "5": {8: 0.0, 4: 0.0, 2: 0.1}}
    # Layer 1 loses nothing: the most bytes go first. Layer 3 lost 0.3 with 8 bits already: the rest is free.
    assert allocate(three_layers(), lucky, budget=199, cost_of=weight_bytes) == {"1": 4, "3": 8, "5": 8}
    assert allocate(three_layers(), lucky, budget=60, cost_of=weight_bytes) == {"1": 2, "3": 2, "5": 4}


losses = st.fixed_dictionaries({name: st.tuples(*[st.floats(-0.1, 1)] * 3).map(lambda t: dict(zip((8, 4, 2), t)))
                                for name in ("1", "3", "5")})


@settings(max_examples=25)
@given(losses, st.integers(50, 220))
def test_the_budget_holds_and_the_last_step_was_needed(loss, budget):
    model = three_layers()
    bits = allocate(model, loss, budget=budget, cost_of=weight_bytes)
    assert bits == allocate(model, loss, budget=budget, cost_of=weight_bytes)
    cost = weight_bytes(quantize_mixed(model, bits))
    assert cost <= budget
    raised = [{**bits, name: row[row.index(bits[name]) - 1]} for name in bits if bits[name] != 8 for row in [[8, 4, 2]]]
    if raised:              # one of the layers took the last step, before which the model was too large
        assert max(weight_bytes(quantize_mixed(model, other)) for other in raised) > budget


def test_mixed_is_better_than_uniform_where_one_layer_needs_bits(tmp_path):
    """Layer 1 has tiny weights: what the model computes hardly depends on them."""
    model = three_layers()
    with torch.no_grad():
        model[1].weight *= 0.01
    images = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(images)

    def judge(candidate):
        with torch.no_grad():
            return -float(((candidate(images) - wanted) ** 2).mean())

    uniform = quantize_mixed(model, dict.fromkeys(("1", "3", "5"), 4))
    bits = allocate(model, scan(model, judge, bits=(8, 6, 4, 3, 2)), budget=files.saved_bytes(uniform), cost_of=files.saved_bytes)
    mixed = quantize_mixed(model, bits)
    assert files.save(mixed, tmp_path / "model") <= files.saved_bytes(uniform)
    assert judge(mixed) > judge(uniform) and bits["1"] < bits["5"]
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path / "model")(images), mixed(images))


@pytest.mark.parametrize("act, message", [
    (lambda m: scan(m, lambda _: 1.0, bits=(2, 4)), "bits must fall"), (lambda m: scan(m, lambda _: 1.0, bits=()), "bits must fall"),
    (lambda m: scan(m, lambda _: 1.0, bits=(4, 4)), "bits must fall"),
    (lambda m: scan(m, lambda _: float("nan"), bits=(4,)), "finite score"),
    (lambda m: scan(m, lambda _: 1.0, bits=(17,)), "from 1 to 16"),
    (lambda m: scan(nn.Sequential(nn.ReLU()), lambda _: 1.0, bits=(4,)), "no linear layer"),
    (lambda m: allocate(m, {"1": {8: 0.0}}, budget=1e9, cost_of=weight_bytes), "of other layers"),
    (lambda m: allocate(m, LOSS, budget=49, cost_of=weight_bytes), "still costs 50 with"),
    (lambda m: allocate(m, LOSS, budget=100, cost_of=lambda _: 200.0), "more than the budget of 100"),
    (lambda m: quantize_mixed(m, {"2": 4}), "no layer named"), (lambda m: quantize_mixed(m, {"1": 0}), "from 1 to 16")])
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act(three_layers())


def test_layers_that_are_not_named_stay_float():
    assert [type(layer) for layer in quantize_mixed(three_layers(), {"3": 4})[1::2]] == [nn.Linear, StoredLayer, nn.Linear]
