"""k-means in one dimension finds what scikit-learn finds, and shared weights train by their summed gradients."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import nn

from course_lib import deploy, files, models, training
from course_lib.quantization.codebook import CodebookForm, assign, k_means, quantize_codebook
from course_lib.quantization.stored import StoredLayer, store
from helpers import TINY, random_split, same, saved_and_loaded, state, tiny

values_lists = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60)


def squared_error(values, table):
    """By the definition: each value to its nearest number of the table."""
    return float(((values.double().flatten()[:, None] - table.double()) ** 2).min(dim=1).values.sum())


def normal(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


# --- k-means ---

def test_six_numbers_by_hand():
    values = torch.tensor([0.0, 1.0, 2.0, 9.0, 10.0, 20.0])
    # From 0, 10 and 20 (linear): {0, 1, 2}, {9, 10}, {20}, and these stay.
    assert k_means(values, 3).tolist() == [1.0, 9.5, 20.0]
    # From 0 and 20: a value half-way, 10, goes down; means 4.4 and 20, and these stay.
    assert k_means(values, 2).tolist() == pytest.approx([4.4, 20.0])
    # One round from 0, 1 and 2: {0}, {1}, {2, 9, 10, 20} has the mean 10.25.
    assert k_means(values, 3, init=torch.tensor([2.0, 0.0, 1.0]), iterations=1).tolist() == [0.0, 1.0, 10.25]
    assert assign(values, torch.tensor([1.0, 9.0, 19.0])).tolist() == [0, 0, 0, 1, 1, 2]


def test_a_centroid_without_values_goes_to_the_value_that_is_farthest_from_all():
    values = torch.tensor([0.0, 0.0, 1.0, 10.0])
    start = torch.tensor([0.0, 5.0, 5.5])           # nothing is nearest to 5
    assert k_means(values, 3, init=start, iterations=1).tolist() == [pytest.approx(1 / 3), 1.0, 10.0]
    assert k_means(values, 3, init=start).tolist() == [0.0, 1.0, 10.0]
    # Two at once do not go to the same place: the mean is 4.5, farthest are 9.5 and then 0.
    values = torch.tensor([0.0, 4.0, 9.5])
    assert k_means(values, 3, init=torch.tensor([-9.0, 4.0, 99.0]), iterations=1).tolist() == [0.0, 4.5, 9.5]


@pytest.mark.parametrize("k", [2, 4, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn_from_the_same_start(k, seed):
    values = normal(3000, seed)
    column = values.numpy()[:, None].astype(float)
    for start in (np.linspace(-2, 2, k)[:, None], kmeans_plusplus(column, k, random_state=seed)[0]):
        theirs = KMeans(k, init=start, n_init=1, tol=0, max_iter=300).fit(column)
        ours = k_means(values, k, init=torch.from_numpy(start[:, 0]))
        np.testing.assert_allclose(ours, np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-5, atol=1e-6)
        ranks = np.argsort(np.argsort(theirs.cluster_centers_[:, 0]))
        assert (assign(values, ours).numpy() == ranks[theirs.labels_]).mean() > 0.999       # a value half-way may differ
        assert squared_error(values, ours) == pytest.approx(theirs.inertia_, rel=1e-6)


@given(values_lists, st.integers(1, 9), st.sampled_from(["linear", "k-means++"]), st.integers(0, 3))
def test_no_round_makes_it_worse(values, k, init, rounds):
    values = torch.tensor(values)
    before, after = (squared_error(values, k_means(values, k, init=init, seed=1, iterations=n)) for n in (rounds, rounds + 1))
    assert after <= before * (1 + 1e-5) + 1e-6 * float(values.abs().max()) ** 2


@given(values_lists, st.integers(1, 9), st.sampled_from(["linear", "k-means++"]))
def test_every_centroid_is_the_mean_of_its_values(values, k, init):
    values = torch.tensor(values)
    table = k_means(values, k, init=init)
    codes = assign(values, table)
    assert table.shape == (k,) and bool((table.diff() >= 0).all()) and bool(table.isfinite().all())
    for code in codes.unique():
        middle = values[codes == code].double().mean()
        # A value that lies half-way, but for float rounding, may be counted on either side.
        if not bool(((values.double() - (table[1:] + table[:-1])[:, None].double() / 2).abs() < 1e-4).any()):
            assert float(table[int(code)]) == pytest.approx(float(middle), rel=1e-5, abs=1e-4)


@given(values_lists)
def test_with_enough_centroids_nothing_is_lost(values):
    values = torch.tensor(values)
    table = k_means(values, len(set(values.tolist())), init="k-means++")
    assert squared_error(values, table) <= 1e-6 * float(values.abs().max()) ** 2 + 1e-12


@given(values_lists, st.integers(1, 9))
def test_assign_finds_the_nearest(values, k):
    values, table = torch.tensor(values), torch.linspace(-90, 90, k)
    distances = (values.double()[:, None] - table.double()).abs()
    assert torch.equal(distances.gather(1, assign(values, table).long()[:, None])[:, 0], distances.min(dim=1).values)


def test_a_constant_tensor_and_more_centroids_than_values():
    for init in ("linear", "k-means++"):
        table = k_means(torch.full((5,), 0.25), 4, init=init)
        assert table.tolist() == [0.25] * 4
        assert squared_error(torch.tensor([1.0, 2.0]), k_means(torch.tensor([1.0, 2.0]), 8, init=init)) == 0


def test_k_means_plus_plus_is_seeded_and_spreads():
    values = torch.cat([normal(500) * 0.01 + centre for centre in (-3, 0, 7, 9)])
    first, again, other = (k_means(values, 4, init="k-means++", seed=seed, iterations=0) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    far = [-70.0, 50.0, 100.0]          # few, but far: drawn from their distances, not from their number
    assert set(far) < set(k_means(torch.cat([normal(5000) * 0.01, torch.tensor(far)]), 4, init="k-means++", iterations=0).tolist())


@pytest.mark.parametrize("values, options, message", [
    (torch.empty(0), {}, "empty"), (torch.tensor([1.0, float("nan")]), {}, "NaN"), (torch.tensor([float("inf")]), {}, "infinity"),
    (torch.ones(3), {"k": 0}, "k >= 1"), (torch.ones(3), {"k": 2.0}, "k >= 1"), (torch.ones(3), {"iterations": -1}, "iterations"),
    (torch.ones(3), {"init": "random"}, "'linear', 'k-means\\+\\+' or 2 finite numbers"),
    (torch.ones(3), {"init": torch.ones(3)}, "2 finite numbers"), (torch.ones(3), {"init": torch.tensor([0, float("nan")])}, "finite")])
def test_bad_input_to_k_means(values, options, message):
    with pytest.raises(ValueError, match=message):
        k_means(values, **{"k": 2} | options)


# --- models with codebooks ---

@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_saved_and_loaded_with_the_bytes_that_are_reported(name, bits, tmp_path):
    model = tiny(name)
    before = state(model)
    small = quantize_codebook(model, bits)
    assert same(state(model), before)
    again = saved_and_loaded(small, tmp_path)
    weights = [layer.weight.numel() for layer in model.modules() if type(layer) in (nn.Linear, nn.Conv2d)]
    forms = [layer.form for layer in again.modules() if isinstance(layer, StoredLayer)]
    assert [form.stored_bytes() for form in forms] == [-(-n * bits // 8) + 4 * 2**bits for n in weights]
    others = sum(t.numel() * t.element_size() for t in before.values()) - 4 * sum(weights)
    assert files.payload_bytes(again) == others + sum(form.stored_bytes() for form in forms)


def test_the_weights_of_a_layer_are_the_nearest_of_the_table():
    layer = nn.Linear(40, 7)
    form = CodebookForm.of(layer.weight, 3)
    assert torch.equal(form.table.detach(), k_means(layer.weight, 8))
    distances = (layer.weight[..., None] - form.table).abs()
    assert torch.equal((layer.weight - form.decode()).abs(), distances.min(dim=-1).values)
    assert form.decode().unique().numel() == 8


def test_the_gradient_of_a_shared_value_is_the_sum_over_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 6), nn.ReLU(), nn.Linear(6, 10))
    shared = quantize_codebook(model, 2)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 6), nn.ReLU(), nn.Linear(6, 10))
    for i in (1, 3):
        dense[i].load_state_dict({"weight": shared[i].form.decode().detach(), "bias": shared[i].bias})
    split = random_split(20)
    for net in (shared, dense):
        nn.functional.cross_entropy(net(split.images), split.labels).backward()
    for i in (1, 3):
        codes = shared[i].form.codes
        sums = torch.stack([dense[i].weight.grad[codes == code].sum() for code in range(4)])
        torch.testing.assert_close(shared[i].form.table.grad, sums, rtol=1e-4, atol=1e-6)


def test_training_moves_the_shared_values_and_not_the_codes():
    shared = quantize_codebook(tiny("cnn"), 2)
    trained, history = training.fit(shared, random_split(), epochs=3, lr=1e-2, augmented=False)
    before, after = state(shared), state(trained)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(before[name], after[name]) == name.endswith("packed") for name in before)
    assert files.saved_bytes(trained) == files.saved_bytes(shared)


def test_layers_can_be_skipped():
    model = models.mlp(1, 16, hidden=(5,))
    assert [type(layer) for layer in quantize_codebook(model, 4, skip=("3",))] == [nn.Flatten, StoredLayer, nn.ReLU, nn.Linear]
    with pytest.raises(ValueError, match="no layer named"):
        quantize_codebook(model, 4, skip=("4",))


@pytest.mark.parametrize("bits", [0, 9, 2.0, True])
def test_bits_of_a_codebook_are_one_to_eight(bits):
    with pytest.raises(ValueError, match="from 1 to 8"):
        quantize_codebook(tiny("mlp"), bits)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        quantize_codebook(nn.Sequential(nn.ReLU()), 4)
    with pytest.raises(ValueError, match="finite"):
        model = tiny("mlp")
        model[1].weight.data[0, 0] = float("nan")
        quantize_codebook(model, 4)


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t["1.form.table"].fill_(float("nan")), "finite float32"),
    (lambda t: t.update({"1.form.table": t["1.form.table"].half()}), "finite float32"),
    (lambda t: t.update({"1.form.packed": t["1.form.packed"][:-1]}), "size mismatch"),
    (lambda t: t.update({"3.form.packed": t["3.form.packed"].int()}), "uint8")])
def test_a_damaged_file_is_refused(spoil, message, tmp_path):
    model = quantize_codebook(models.mlp(1, 4, hidden=(5,), classes=3), 3)
    tensors = state(model)
    spoil(tensors)
    files.save_form(model, tensors, tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path / "model")


def test_the_onnx_file_predicts_the_same():
    model, images = quantize_codebook(tiny("cnn"), 3), random_split(5).images
    run = deploy.load_onnx(deploy.onnx_bytes(model, images))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(images.numpy())), model(images), rtol=1e-4, atol=1e-5)


def test_several_forms_live_in_one_model(tmp_path):
    model = models.mlp(1, 16, hidden=(5,))
    mixed = store(model, {"1": CodebookForm.of(model[1].weight, 4), "3": CodebookForm.of(model[3].weight, 8)})
    files.save(mixed, tmp_path / "model")
    assert repr(files.load(tmp_path / "model")) == repr(mixed)
    assert "codebook" in repr(mixed)
