"""The deployed file predicts as the model does, takes any batch, and carries no trace of its making."""
import logging
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from course_lib import deploy, files, models
from course_lib.quantization.calibration import calibrate
from course_lib.quantization.static import quantize_static
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


# --- integers ---

@pytest.fixture(scope="module")
def integers():
    """The article's network in integers, its file, and images."""
    torch.manual_seed(0)
    model, images = models.cnn(), random_split(40, image_size=28).images
    static = quantize_static(model, calibrate(model, images))
    return static, deploy.onnx_bytes(static, images), images


def optimised(content, folder):
    """The operations that ONNX Runtime runs in the end."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_an_integer_model_s_file_takes_a_byte_for_a_weight(integers):
    static, content, _ = integers
    assert 0 < len(content) - files.payload_bytes(static) < 5000
    kinds = {i.name: i.data_type for i in onnx.load_from_string(content).graph.initializer}
    assert [kinds[f"{n}.{kind}"] for n in (0, 3, 7) for kind in ("weight", "bias")] == [onnx.TensorProto.INT8, onnx.TensorProto.INT32] * 3


def test_an_integer_model_runs_on_integer_kernels(integers, tmp_path):
    operations = optimised(integers[1], tmp_path)
    assert operations.count("QLinearConv") == 2 and operations.count("QGemm") == 1
    assert not {"Conv", "Gemm", "MatMul", "Relu", "DequantizeLinear"} & set(operations)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_an_integer_model_s_file_takes_any_batch_and_gives_its_logits(integers, n):
    static, content, images = integers
    logits = deploy.load_onnx(content)(images[:n].numpy())
    assert logits.shape == (n, 10)
    np.testing.assert_allclose(logits, static(images[:n]).numpy(), atol=0.02 * float(static(images).abs().max()))


@pytest.mark.parametrize("wrong, accepted", [(0.02, True), (0.5, False), (np.nan, False)])
def test_an_integer_model_may_differ_by_steps_and_by_no_more(integers, monkeypatch, wrong, accepted):
    """A step here and there moves the logits a little; the file may differ by that much, which float models may not."""
    static, content, images = integers

    class Program:
        model_proto = onnx.load_from_string(content)
    right = deploy.load_onnx
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: Program)
    monkeypatch.setattr(deploy, "load_onnx", lambda content: lambda x: right(content)(x) + wrong * float(static(images).abs().max()))
    if accepted:
        assert deploy.onnx_bytes(static, images) == content
    else:
        with pytest.raises(ValueError, match="disagrees with the model by up to .*; on a processor without VNNI, use weights of 7 bits"):
            deploy.onnx_bytes(static, images)
    assert not any(module._forward_hooks for module in static.modules())


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """The content of the article's network, untrained, in float32."""
    torch.manual_seed(0)
    return deploy.onnx_bytes(models.cnn(), random_split(4, image_size=28).images)


IMAGES = random_split(60, image_size=28, seed=3).images


@pytest.mark.parametrize("mode, options, kernel", [
    ("dynamic", {}, "ConvInteger"), ("dynamic", {"per_channel": True, "reduce_range": True}, "ConvInteger"),
    ("static", {}, "QLinearConv"), ("static", {"per_channel": True}, "QLinearConv"), ("static", {"method": "entropy"}, "QLinearConv"),
    ("static", {"method": "percentile", "reduce_range": True}, "QLinearConv")], ids=str)
def test_onnx_runtime_quantizes_quietly_the_same_each_time_and_predicts_nearly_the_same(
        float_file, tmp_path, capfd, caplog, mode, options, kernel):
    images = IMAGES if mode == "static" else None
    content = deploy.quantize_onnx(float_file, images, mode=mode, **options)
    assert content == deploy.quantize_onnx(float_file, images, mode=mode, **options)
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    assert 34_826 < len(content) < 0.32 * len(float_file)
    assert kernel in optimised(content, tmp_path)
    expected = deploy.load_onnx(float_file)(IMAGES.numpy())
    np.testing.assert_allclose(deploy.load_onnx(content)(IMAGES.numpy()), expected, atol=0.1 * abs(expected).max())
    proto = onnx.load_from_string(content)
    weights = [numpy_helper.to_array(i) for i in proto.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1]
    assert len(weights) == 3 and max(int(abs(w.astype(int)).max()) for w in weights) == (64 if options.get("reduce_range") else 127)
    per_channel = [len(i.dims) == 1 and i.dims[0] > 1 for i in proto.graph.initializer if "weight" in i.name and "scale" in i.name]
    assert any(per_channel) == options.get("per_channel", False)
    assert not proto.doc_string and not any(node.doc_string or node.metadata_props for node in proto.graph.node)


def test_quantize_onnx_equals_onnx_runtime_s_own_function(float_file, tmp_path):
    from onnxruntime import quantization
    (tmp_path / "m.onnx").write_bytes(float_file)
    quantization.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=quantization.QuantType.QInt8)
    np.testing.assert_array_equal(deploy.load_onnx(tmp_path / "q.onnx")(IMAGES.numpy()),
                                  deploy.load_onnx(deploy.quantize_onnx(float_file, mode="dynamic"))(IMAGES.numpy()))


def test_the_static_ranges_come_from_all_images(float_file):
    """What only the last images hold must be seen as well."""
    bright = torch.cat([IMAGES[:55], 4 * IMAGES[55:]])
    few, all_of_them = (deploy.quantize_onnx(float_file, images, mode="static") for images in (bright[:50], bright))
    scale_few, scale_all = (next(float(numpy_helper.to_array(i)) for i in onnx.load_from_string(content).graph.initializer
                                 if i.name == "images_scale") for content in (few, all_of_them))
    assert scale_all > 3 * scale_few and scale_all == pytest.approx(float(bright.max()) / 255)


@pytest.mark.parametrize("images, options, message", [
    (None, {"mode": "static"}, "static quantization needs images"), (IMAGES[:0], {"mode": "static"}, "with 0 images"),
    (IMAGES, {"mode": "dynamic"}, "dynamic quantization takes none"), (IMAGES, {"mode": "both"}, "mode must be dynamic or static"),
    (IMAGES, {"mode": "static", "method": "mse"}, "method one of min-max, entropy, percentile; got 'static', 'mse'")])
def test_quantize_onnx_refuses_what_makes_no_sense(float_file, images, options, message):
    with pytest.raises(ValueError, match=message):
        deploy.quantize_onnx(float_file, images, **options)


def test_logging_is_as_before_after_quantizing_even_if_it_fails():
    before = logging.root.manager.disable
    with pytest.raises(Exception):
        deploy.quantize_onnx(b"no model", mode="dynamic")
    assert logging.root.manager.disable == before
