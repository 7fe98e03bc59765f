"""The deployed file predicts as the model does, takes any batch, and carries no trace of its making."""
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from course_lib import deploy, files, models
from helpers import IMAGE_SIZE, random_split, same, state, tiny

NAMES = ("mlp", "cnn", "resnet")        # dense, pooled, and residual with batch normalisation


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Model, file, size as reported, state and mode before the export, for each name."""
    folder, result = tmp_path_factory.mktemp("onnx"), {}
    for name in NAMES:
        model, path = tiny(name), folder / f"{name}.onnx"
        model.train()[0].eval()
        before = state(model), [module.training for module in model.modules()]
        result[name] = model, path, deploy.export_onnx(model, path, random_split(6).images), before
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_file_gives_the_logits_of_the_model_for_any_batch(exported, name, n):
    model, path, _, _ = exported[name]
    images = random_split(n, seed=5).images
    logits = deploy.load_onnx(path)(images.numpy())
    assert logits.shape == (n, 10) and logits.dtype == np.float32
    with torch.no_grad():
        expected = tiny(name)(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_a_model_made_by_hand_takes_any_batch_too(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    deploy.export_onnx(model, tmp_path / "model.onnx", torch.rand(2, 1, 2, 2))
    run = deploy.load_onnx(tmp_path / "model.onnx")
    assert [run(torch.rand(n, 1, 2, 2).numpy()).shape for n in (1, 2, 9)] == [(1, 3), (2, 3), (9, 3)]


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_is_the_only_size_that_is_open(exported, name):
    graph = onnx.load(exported[name][1]).graph
    (given,), (result,) = graph.input, graph.output
    assert (given.name, result.name) == ("images", "logits")
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str) and sizes[1:] == [1, IMAGE_SIZE, IMAGE_SIZE]


@pytest.mark.parametrize("name", NAMES)
def test_the_reported_size_is_that_of_the_file_and_near_that_of_the_numbers(exported, name):
    model, path, size, _ = exported[name]
    assert size == path.stat().st_size == len(path.read_bytes())
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".onnx")] == []     # and no second file
    assert 0 < size - 4 * sum(p.numel() for p in model.parameters()) < 8000


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_no_comment_and_no_trace_of_the_machine(exported, name):
    path = exported[name][1]
    proto, content = onnx.load(path), path.read_bytes()
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        assert not item.doc_string and not item.metadata_props
    assert not proto.functions and not proto.graph.value_info
    folders = [os.fsencode(folder) for folder in (Path.cwd(), Path.home()) if len(folder.parts) > 1]
    for trace in (b".py", b"site-packages", b"Traceback", b"nn_module", *folders):
        assert trace not in content


@pytest.mark.parametrize("name", NAMES)
def test_exporting_leaves_the_model_as_it_was(exported, name):
    model, _, _, (before, modes) = exported[name]
    assert same(state(model), before) and [module.training for module in model.modules()] == modes


# --- what goes wrong (with an export that costs nothing) ---

@pytest.fixture
def quick(exported, monkeypatch):
    """Let the exporter return the file made above; gives its model and some images."""
    model, path, _, _ = exported["mlp"]

    class Program:
        model_proto = onnx.load(path)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: Program)
    return model, random_split(6).images


@pytest.mark.parametrize("wrong", [
    lambda logits: logits + 0.05 * np.abs(logits).max(), lambda logits: -logits, lambda logits: np.full_like(logits, np.nan),
    lambda logits: logits + (len(logits) == 1), lambda logits: logits[::-1],
], ids=["shifted", "negated", "not a number", "wrong for one image only", "in another order"])
def test_a_file_that_disagrees_with_the_model_is_refused_and_not_written(quick, monkeypatch, tmp_path, wrong):
    model, images = quick
    right = deploy.load_onnx
    monkeypatch.setattr(deploy, "load_onnx", lambda content: lambda x: np.ascontiguousarray(wrong(right(content)(x))))
    with pytest.raises(ValueError, match="the ONNX file disagrees with the model by up to"):
        deploy.export_onnx(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(quick, monkeypatch, tmp_path):
    model, images = quick
    (tmp_path / "model.onnx").write_bytes(b"old")

    def fail(source, target):
        raise OSError("No space left on device")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        deploy.export_onnx(model, tmp_path / "model.onnx", images)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.onnx", b"old")]


def test_a_file_that_is_there_already_is_replaced(quick, tmp_path):
    model, images = quick
    (tmp_path / "model.onnx").write_bytes(b"old")
    size = deploy.export_onnx(model, tmp_path / "model.onnx", images)
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [size]


def test_a_file_can_be_opened_from_its_content_with_any_number_of_threads(exported):
    _, path, _, _ = exported["cnn"]
    images = random_split(2).images.numpy()
    expected = deploy.load_onnx(path)(images)
    for run in (deploy.load_onnx(path.read_bytes()), deploy.load_onnx(str(path), threads=2)):
        np.testing.assert_allclose(run(images), expected, rtol=1e-5, atol=1e-6)


def test_the_deployed_and_the_saved_file_hold_the_same_numbers(exported):
    """About one file's overhead apart: neither stores anything twice."""
    model, _, size, _ = exported["cnn"]
    assert abs(size - files.payload_bytes(model)) < 8000


def test_onnx_runtime_gets_one_thread_unless_told_otherwise(monkeypatch, tmp_path):
    import onnxruntime
    seen, real = [], onnxruntime.InferenceSession

    def session(source, options, **more):
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads))
        return real(source, options, **more)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    deploy.export_onnx(models.mlp(1, 8), tmp_path / "m.onnx", torch.rand(2, 1, 8, 8))
    deploy.load_onnx(tmp_path / "m.onnx")
    deploy.load_onnx(tmp_path / "m.onnx", threads=2)
    assert seen == [(1, 1), (1, 1), (2, 2)]
