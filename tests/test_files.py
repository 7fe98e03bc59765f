"""A saved model comes back with the same predictions, or the error says what is wrong with the file."""
import json

import pytest
import safetensors.torch
import torch

from course_lib import files, models
from helpers import IMAGE_SIZE, TINY, full_disk, same, state, tiny


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_model_comes_back_with_equal_predictions(tmp_path, name, dtype):
    """Every builder; batch statistics and data types come back too."""
    model = tiny(name, channels=3).to(dtype)
    images = torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE).to(dtype)
    size = files.save(model, tmp_path / "model.safetensors")
    again = files.load(tmp_path / "model.safetensors")
    assert size == (tmp_path / "model.safetensors").stat().st_size
    assert same(state(again), state(model)) and again.architecture == json.loads(json.dumps(model.architecture))
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert not any(module.training for module in again.modules())
    assert all(p.requires_grad for p in again.parameters())


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = tiny("resnet").train()
    before = state(model)
    files.save(model, tmp_path / "model.safetensors")
    assert same(state(model), before) and model.training


def test_weights_that_lie_scattered_in_memory_are_saved_too(tmp_path):
    model = tiny("mlp")
    model[1].weight.data = model[1].weight.data.t().contiguous().t()
    assert not model[1].weight.is_contiguous()
    files.save(model, tmp_path / "model.safetensors")
    assert same(state(files.load(tmp_path / "model.safetensors")), state(model))


def test_the_bytes_do_not_depend_on_the_place(tmp_path):
    (tmp_path / "a folder").mkdir()
    first, second = tmp_path / "a.safetensors", tmp_path / "a folder" / "a-much-longer-name.safetensors"
    sizes = files.save(tiny("resnet"), first), files.save(tiny("resnet"), second)
    assert first.read_bytes() == second.read_bytes() and sizes[0] == sizes[1] == files.saved_bytes(tiny("resnet"))


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_container_adds_little_to_the_numbers(name):
    """A header of at most some 100 bytes a tensor."""
    model = tiny(name)
    overhead = files.saved_bytes(model) - files.payload_bytes(model)
    assert 0 < overhead < 300 + 100 * len(model.state_dict())


def test_a_model_of_ones_own_takes_the_file_of_its_weights(tmp_path):
    """Buffers, such as the means of batch normalisation, included."""
    own = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3))
    safetensors.torch.save_file(own.state_dict(), tmp_path / "own")
    assert files.saved_bytes(own) == (tmp_path / "own").stat().st_size
    assert files.saved_bytes(tiny("mlp")) > files.payload_bytes(tiny("mlp"))


def test_payload_by_hand():
    """MLP 4-3-2 has 23 numbers of 4 bytes; in half precision 2 bytes each."""
    model = models.mlp(1, 2, 2, hidden=(3,))
    assert files.payload_bytes(model) == 92 and files.payload_bytes(model.half()) == 46


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    files.save(tiny("mlp"), path)
    return path


def test_saving_again_replaces_the_file(saved):
    files.save(tiny("student"), saved)
    assert files.load(saved).architecture["builder"] == "student"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        files.save(tiny("student"), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="model.safetensors is damaged or not a safetensors file.*save the model again"):
        files.load(saved)


def test_a_pickled_file_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the file ran code",)
    torch.save(Trap(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt is damaged or not a safetensors file"):
        files.load(tmp_path / "model.pt")


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.rand(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no architecture: it was not written by course_lib.files.save"):
        files.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("metadata, tensors", [
    ({"builder": "mlp", "hidden": [5]}, {"weight": torch.rand(3)}),
    ({"builder": "transformer"}, {}), ({"builder": "mlp", "depth": 3}, {}),
], ids=["other tensors", "an unknown builder", "an unknown argument"])
def test_a_file_whose_description_and_numbers_do_not_fit_is_refused(tmp_path, metadata, tensors):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"architecture": json.dumps(metadata)})
    with pytest.raises(ValueError, match="is damaged: its architecture and its numbers do not belong together"):
        files.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file at .*nowhere.safetensors"):
        files.load(tmp_path / "nowhere.safetensors")


def test_a_model_that_was_rebuilt_by_hand_is_refused(tmp_path):
    model = models.mlp()
    model[2] = torch.nn.Sigmoid()
    with pytest.raises(ValueError, match="other layers than its `architecture` says"):
        files.save(model, tmp_path / "model.safetensors")


def test_a_loaded_model_does_not_depend_on_its_file_any_more(tmp_path):
    path = tmp_path / "model.safetensors"
    files.save(models.mlp(), path)
    loaded = files.load(path)
    before = [p.clone() for p in loaded.parameters()]
    with open(path, "r+b") as file:
        file.seek(2000)
        file.write(b"\x01" * 10_000)
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.parameters()))


def test_saving_draws_no_random_numbers(tmp_path):
    """Otherwise a model that is put on the ruler would change the next one's first weights."""
    model = models.student()
    before = torch.get_rng_state()
    files.save(model, tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
