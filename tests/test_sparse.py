"""Sparse files hold the same model in the bytes that the formula says, and CSR computes what the mask does."""
import copy
import json
import math

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from course_lib import cost, declared, deploy, files, models, pruning, training
from helpers import IMAGE_SIZE, TINY, full_disk, random_split, run_python, same, state, tiny

DENSE = [name for name in sorted(TINY)]             # all builders end in a linear layer


def masked(name, share=0.7, **options):
    return pruning.prune(tiny(name, **options), amount=share)


def images(n=5, channels=1):
    return random_split(n, channels=channels).images


def bits(tensor):
    """The tensor's bytes, so that NaN equals itself."""
    return tensor.flatten().contiguous().view(torch.uint8)


def identical(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape
                                        and np.array_equal(bits(a[n]), bits(b[n])) for n in a)


@st.composite
def sparse_weights(draw, dtypes=(torch.float32, torch.float64)):
    """A matrix of any small shape with any share of zeros, empty rows and columns among them."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(draw(st.sampled_from(dtypes)))
    weight[torch.rand(rows, columns, generator=generator) < draw(st.floats(0, 1))] = 0
    return weight


def linear(weight, bias=True):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


# --- CSR: the arrays ---

def test_csr_by_hand():
    layer = pruning.to_csr(linear(torch.tensor([[0, 5.0, 0], [0, 0, 0], [-1.0, 0, 2.0]])))
    assert layer.starts.tolist() == [0, 1, 1, 3]
    assert layer.columns.tolist() == [1, 0, 2] and layer.values.tolist() == [5, -1, 2]
    assert (layer.starts.dtype, layer.columns.dtype, layer.values.dtype) == (torch.int32, torch.int32, torch.float32)


@given(sparse_weights())
@settings(max_examples=100)
def test_the_arrays_are_those_of_scipy(weight):
    layer, theirs = pruning.to_csr(linear(weight)), scipy.sparse.csr_matrix(weight.numpy())
    assert np.array_equal(layer.starts, theirs.indptr) and np.array_equal(layer.columns, theirs.indices)
    assert np.array_equal(layer.values, theirs.data) and layer.values.dtype == weight.dtype


def test_arrays_of_a_weight_that_lies_scattered_in_memory():
    weight = torch.tensor([[0, 5.0], [7, 0], [-1.0, 2.0]]).t()
    layer = pruning.to_csr(linear(weight))
    assert layer.values.tolist() == [7, -1, 5, 2] and layer.columns.tolist() == [1, 2, 0, 2]


# --- CSR: the product ---

@given(sparse_weights(), st.sampled_from([(), (1,), (3,), (0,), (2, 4)]), st.booleans())
@settings(max_examples=100)
def test_the_product_is_that_of_the_dense_layer(weight, shape, bias):
    dense = linear(weight, bias)
    x = torch.randn(*shape, weight.shape[1], dtype=weight.dtype)
    sparse = pruning.to_csr(dense)
    assert torch.allclose(sparse(x), dense(x), atol=1e-5) and sparse(x).shape == dense(x).shape


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_a_csr_model_gives_the_outputs_of_the_masked_one(name, share):
    model = masked(name, share, channels=3)
    sparse = pruning.to_csr(model)
    with torch.no_grad():
        assert torch.allclose(sparse(images(channels=3)), model(images(channels=3)), atol=1e-5)


def test_convolutions_stay_dense_and_every_linear_layer_changes():
    sparse = pruning.to_csr(masked("lenet5"))
    assert [type(layer) for layer in sparse if list(layer.parameters())] == [nn.Conv2d] * 2 + [pruning.SparseLinear] * 2
    assert torch.equal(sparse[0].weight, masked("lenet5")[0].weight)


def test_the_layer_really_multiplies_the_stored_values_only():
    """Change a stored value, and the product changes; there is no dense weight that it could use."""
    sparse = pruning.to_csr(linear(torch.tensor([[0, 5.0]]), bias=False))
    assert not any(p.dim() > 1 for p in sparse.parameters()) and not any(b.dim() > 1 for b in sparse.buffers())
    sparse.values.fill_(3)
    assert sparse(torch.tensor([[100.0, 2.0]])).item() == 6


def test_to_csr_leaves_its_argument_as_it_was():
    model = masked("cnn").train()
    before, text = state(model), repr(model)
    sparse = pruning.to_csr(model)
    assert same(state(model), before) and repr(model) == text and model.training and "changes" not in model.architecture
    assert sparse.training and sparse[7].training
    sparse[7].bias.data.add_(1)
    sparse[0].weight.data.add_(1)
    assert same(state(model), before)


def test_a_csr_model_can_be_copied_and_moved_to_double_precision():
    model = masked("mlp")
    sparse = pruning.to_csr(model)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(sparse)(images()), sparse(images()))
        twice = sparse.double()(images().double())
    assert torch.allclose(twice.float(), model(images()), atol=1e-5)


def test_no_warning_of_pytorch_is_heard():
    printed = run_python("import warnings; warnings.simplefilter('error')\n"
                         "import torch; from course_lib import models, pruning\n"
                         "print(pruning.to_csr(models.mlp())(torch.rand(2, 1, 28, 28)).shape)")
    assert printed.strip() == "torch.Size([2, 10])"


# --- CSR: the cost ---

def test_the_cost_counts_what_is_left():
    """LeNet-300-100's layers have 784·300, 300·100 and 100·10 weights."""
    model = models.lenet_300_100()
    sparse = pruning.to_csr(pruning.prune(model, amount=0.9))
    rows = cost.layer_costs(sparse, torch.rand(4, 1, 28, 28))
    left = [layer.left for layer in sparse if isinstance(layer, pruning.SparseLinear)]
    assert sum(left) == 266_200 - round(0.9 * 266_200)
    assert [row.macs for row in rows] == [row.ideal_macs for row in rows] == left
    assert [row.weight_bytes for row in rows] == [pruning.csr_bytes(n, r) for n, r in zip(left, (300, 100, 10))]
    assert {row.operands for row in rows} == {"float32"} and [row.layer for row in rows] == ["1", "3", "5"]
    assert cost.parameters(sparse) == cost.nonzeros(sparse) == sum(left) + 410
    assert isinstance(sparse[1], declared.DeclaresCost)


def test_the_cost_of_one_example_counts_all_its_places():
    sparse = pruning.to_csr(linear(torch.tensor([[0, 5.0], [1.0, 1.0]])))
    assert cost.macs(sparse, torch.rand(7, 2)) == 3 and cost.macs(sparse, torch.rand(7, 4, 2)) == 12


# --- CSR: the file ---

@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("index_bytes", [2, 4])
def test_a_saved_csr_model_comes_back(tmp_path, name, index_bytes):
    sparse = pruning.to_csr(masked(name, channels=3), index_bytes=index_bytes)
    files.save(sparse, tmp_path / "model")
    again = files.load(tmp_path / "model")
    assert identical(again, sparse) and repr(again) == repr(sparse)
    assert again.architecture == json.loads(json.dumps(sparse.architecture))
    with torch.no_grad():
        assert torch.equal(again(images(channels=3)), sparse(images(channels=3)))
    assert {b.dtype for b in again.buffers() if b.dim() and not b.is_floating_point()} == {torch.int32}
    files.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("index_bytes", [2, 4])
def test_the_numbers_in_the_file_take_the_bytes_of_the_formula(share, index_bytes):
    sparse = pruning.to_csr(masked("lenet_300_100", share), index_bytes=index_bytes)
    expected = sum(pruning.csr_bytes(layer.left, layer.out_features, index_bytes=index_bytes) + 4 * layer.out_features
                   for layer in sparse if isinstance(layer, pruning.SparseLinear))
    assert files.payload_bytes(sparse) == expected
    assert 0 < files.saved_bytes(sparse) - expected < 1500


def test_csr_bytes_by_hand():
    """A 2 by 3 matrix with 4 numbers left: 4 values and 4 columns, and 3 starts."""
    assert pruning.csr_bytes(4, 2) == 16 + 16 + 12 and pruning.csr_bytes(4, 2, index_bytes=2) == 16 + 8 + 12


def test_csr_after_removal_is_saved_too(tmp_path):
    """Two changes of one model, repeated in their order."""
    model = masked("cnn")
    groups = pruning.unit_groups(model, images())
    sparse = pruning.to_csr(pruning.remove_units(model, groups, {groups[0].name: [0]}))
    files.save(sparse, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path / "model")(images()), sparse(images()))


@pytest.mark.parametrize("name, damage", [
    ("1.columns", lambda t: t + 1000), ("1.columns", lambda t: -1 - t), ("1.starts", lambda t: t.flip(0)),
    ("1.starts", lambda t: t + 1), ("1.starts", lambda t: t.long()), ("1.values", lambda t: t[1:]), ("1.columns", None),
], ids=["a column outside", "a negative column", "starts that fall", "starts off by one", "other types", "a value less",
        "no columns"])
def test_a_csr_file_that_would_read_outside_its_matrix_is_refused(tmp_path, name, damage):
    """Its product would crash Python, or take numbers from anywhere."""
    path = tmp_path / "model.safetensors"
    files.save(pruning.to_csr(masked("mlp")), path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    part = tensors.pop(name)
    tensors |= {name: damage(part)} if damage else {}
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        files.load(path)


# --- CSR: bad input ---

def shared_layers():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def with_hooks():
    model = models.mlp()
    torch_prune.l1_unstructured(model[1], "weight", amount=0.5)
    return model


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_csr_refuses_weights_that_are_not_finite(bad):
    model = models.mlp()
    with torch.no_grad():
        model[3].weight[1, 1] = bad
    with pytest.raises(ValueError, match="weights must be finite; got NaN or infinity"):
        pruning.to_csr(model)


@pytest.mark.parametrize("call, message", [
    (lambda: pruning.to_csr(nn.Conv2d(1, 2, 3)), "the model has no linear layer, and PyTorch has no sparse convolution"),
    (lambda: pruning.to_csr(nn.ReLU()), "nothing to prune"),
    (lambda: pruning.to_csr(pruning.to_csr(models.mlp())), "nothing to prune"),
    (lambda: pruning.to_csr(models.mlp().half()), "CSR in float32 and float64 only; 1 is torch.float16"),
    (lambda: pruning.to_csr(shared_layers()), "0.weight and 2.weight are one and the same weight"),
    (lambda: pruning.to_csr(with_hooks()), r"layer 1 has hooks.*prune.remove"),
    (lambda: pruning.to_csr(models.mlp(), index_bytes=3), "index_bytes must be 4, or 2 for at most 65,536 inputs; got 3"),
    (lambda: pruning.to_csr(nn.Linear(65_537, 1), index_bytes=2), "got 2 and 65,537 inputs"),
    (lambda: pruning.empty_csr(models.mlp(), nonzeros={"7": 3}), "no linear layer named '7'"),
    (lambda: pruning.empty_csr(models.mlp(), nonzeros={"2": 3}), "no linear layer named '2'"),
])
def test_a_bad_call_says_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_two_bytes_are_enough_for_the_last_of_65536_inputs(tmp_path):
    layer = nn.Linear(65_536, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()[0, -1] = 2
    sparse = pruning.to_csr(layer, index_bytes=2)
    assert sparse.state_dict()["columns"].dtype == torch.uint16 and sparse.state_dict()["columns"].int().item() == 65_535
    empty = pruning.empty_csr(layer, nonzeros={"": 1}, index_bytes=2)
    empty.load_state_dict(sparse.state_dict())
    assert empty.columns.tolist() == [65_535] and empty.columns.dtype == torch.int32


def test_a_csr_model_cannot_be_exported_and_leaves_no_file(tmp_path, capfd):
    """ONNX has no sparse product that ONNX Runtime would execute."""
    with pytest.raises(Exception, match="export"):
        deploy.export_onnx(pruning.to_csr(models.mlp()), tmp_path / "model.onnx", torch.rand(2, 1, 28, 28))
    assert not list(tmp_path.iterdir())


# --- the bitmap ---

def test_bitmap_by_hand(tmp_path):
    """Ten weights of the first layer: places 0, 3 and 9 are left, so bits 0 and 3 of one byte and bit 1 of the next."""
    model = models.mlp(1, 1, classes=1, hidden=(10,))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([7, 0, 0, -2, 0, 0, 0, 0, 0, 1.0]).view(10, 1))
    pruning.save_bitmap(model, tmp_path / "model")
    tensors = safetensors.torch.load_file(tmp_path / "model")
    assert tensors["1.weight.bits"].tolist() == [0b1001, 0b10] and tensors["1.weight.values"].tolist() == [7, -2, 1]
    assert tensors.keys() == {"1.weight.bits", "1.weight.values", "3.weight.bits", "3.weight.values", "1.bias", "3.bias"}


@given(st.integers(1, 3), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000),
       st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
@settings(max_examples=80, deadline=None)
def test_any_model_comes_back_from_its_bitmap_bit_for_bit(tmp_path_factory, side, hidden, share, seed, dtype):
    path = tmp_path_factory.mktemp("bitmap") / "model"
    torch.manual_seed(seed)
    model = pruning.prune(models.mlp(2, side, hidden=(hidden,)), amount=share).to(dtype)
    size = pruning.save_bitmap(model, path)
    assert identical(pruning.load_bitmap(path), model) and size == path.stat().st_size


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_builder_comes_back_from_its_bitmap(tmp_path, name):
    """Convolutions too; batch statistics, biases and the architecture are there as they were."""
    model = masked(name, channels=3)
    before = state(model)
    pruning.save_bitmap(model, tmp_path / "model")
    again = pruning.load_bitmap(tmp_path / "model")
    assert identical(again, model) and same(state(model), before) and not again.training
    assert again.architecture == json.loads(json.dumps(model.architecture))
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("share", [0, 0.5, 0.9, 1])
def test_a_bitmap_takes_the_bytes_of_the_formula(tmp_path, share):
    model = masked("lenet_300_100", share)
    size = pruning.save_bitmap(model, tmp_path / "model")
    weights = pruning.prunable(model).values()
    expected = sum(pruning.bitmap_bytes(int(w.count_nonzero()), w.numel()) for w in weights) + 4 * 410
    tensors = safetensors.torch.load_file(tmp_path / "model")
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == expected
    assert 0 < size - expected < 1000


def test_bitmap_bytes_by_hand():
    """Nine weights need two bytes of marks; three are left."""
    assert pruning.bitmap_bytes(3, 9) == 2 + 12 and pruning.bitmap_bytes(0, 8) == 1


def test_minus_zero_takes_no_room_and_nan_is_kept(tmp_path):
    model = models.mlp(1, 1, classes=1, hidden=(3,))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-0.0], [math.nan], [-math.inf]]))
    pruning.save_bitmap(model, tmp_path / "model")
    assert len(safetensors.torch.load_file(tmp_path / "model")["1.weight.values"]) == 2
    weight = pruning.load_bitmap(tmp_path / "model")[1].weight
    assert weight[0] == 0 and weight[1].isnan() and weight[2] == -math.inf


def test_the_masked_weights_of_a_fine_tuned_model_take_no_room(tmp_path):
    """Training leaves −0.0 where the mask holds."""
    model = masked("mlp", 0.8)
    tuned, _ = training.fit(model, random_split(), epochs=1, lr=0.01, callbacks=[pruning.Masks(model)])
    pruning.save_bitmap(tuned, tmp_path / "model")
    again = pruning.load_bitmap(tmp_path / "model")
    assert same(state(again), state(tuned)) and torch.equal(again(images()), tuned(images()))
    values = [t for n, t in safetensors.torch.load_file(tmp_path / "model").items() if n.endswith("values")]
    assert sum(map(len, values)) == sum(int(w.count_nonzero()) for w in pruning.prunable(tuned).values())


def test_a_csr_model_with_convolutions_can_be_saved_as_bitmap(tmp_path):
    sparse = pruning.to_csr(masked("cnn"), index_bytes=2)
    pruning.save_bitmap(sparse, tmp_path / "model")
    assert identical(pruning.load_bitmap(tmp_path / "model"), sparse)


# --- the bitmap: damaged and foreign files ---

@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    pruning.save_bitmap(masked("mlp"), path)
    return path


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_bitmap_is_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="model.safetensors is damaged or not a safetensors file.*save the model again"):
        pruning.load_bitmap(saved)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        pruning.save_bitmap(masked("student"), saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name, damage", [
    ("1.weight.bits", lambda t: t ^ 1), ("1.weight.bits", lambda t: t[1:]), ("1.weight.bits", lambda t: t.float()),
    ("1.weight.values", lambda t: t[1:]), ("1.weight.values", lambda t: torch.cat([t, t[:1]])),
    ("1.weight.values", lambda t: t[:, None].repeat(1, 2)), ("1.weight.values", lambda t: t.int()),
    ("1.weight.bits", None), ("1.weight.values", None), ("1.bias", None), ("1.bias", lambda t: t[1:]),
])
def test_a_bitmap_whose_parts_do_not_fit_is_refused(saved, name, damage):
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    part = tensors.pop(name)
    tensors |= {name: damage(part).contiguous()} if damage else {}
    safetensors.torch.save_file(tensors, saved, metadata=metadata)
    with pytest.raises(ValueError, match="model.safetensors is damaged: its architecture and its numbers do not belong together"):
        pruning.load_bitmap(saved)


@pytest.mark.parametrize("marks", [0b1111, 0b1011])
def test_a_bit_behind_the_last_weight_is_refused(tmp_path, marks):
    path = tmp_path / "model"
    pruning.save_bitmap(models.mlp(1, 1, classes=1, hidden=(3,)), path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    tensors["1.weight.bits"] = torch.tensor([marks], dtype=torch.uint8)
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="the bitmap of 1.weight does not fit its 3 values"):
        pruning.load_bitmap(path)


def test_each_form_is_loaded_by_its_own_function(saved, tmp_path):
    with pytest.raises(ValueError, match="model.safetensors holds a model in the form 'bitmap', not 'plain'"):
        files.load(saved)
    files.save(tiny("mlp"), tmp_path / "plain")
    with pytest.raises(ValueError, match="plain holds a model in the form 'plain', not 'bitmap'"):
        pruning.load_bitmap(tmp_path / "plain")


def test_foreign_and_missing_bitmaps_are_named(tmp_path):
    safetensors.torch.save_file({"weight": torch.rand(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no architecture"):
        pruning.load_bitmap(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no model file at .*nowhere"):
        pruning.load_bitmap(tmp_path / "nowhere")


def test_a_model_that_could_not_be_built_again_is_not_saved(tmp_path):
    model = models.mlp()
    model[2] = nn.Sigmoid()
    for bad, message in ((model, "other layers than its `architecture` says"), (nn.Linear(2, 2), "has no `architecture`"),
                         (nn.ReLU(), "nothing to prune")):
        with pytest.raises(ValueError, match=message):
            pruning.save_bitmap(bad, tmp_path / "model")
    assert not list(tmp_path.iterdir())
