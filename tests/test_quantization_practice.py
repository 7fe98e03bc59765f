"""The field's own int8 tools behind the course's form, and the study that compiles them."""
import copy
import io
import platform
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from skips import skip
from course_lib import models, results, training
from course_lib.quantization import ready_made
from course_lib.quantization.ready_made import LEGACY, SUCCESSOR, dynamic_int8, exported_int8, torchao_int8
from torch import nn

STUDIES = Path(__file__).resolve().parent.parent / "studies"
sys.path.insert(0, str(STUDIES))
import quantization_compiled as study  # noqa: E402

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
needs_legacy = pytest.mark.skipif(not ready_made._has_legacy(), reason="this PyTorch has no quantize_dynamic")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.mlp(image_size=8, hidden=(16,)).eval()


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    return models.cnn(image_size=12, widths=(2, 3)).eval()


def weight_codes(model: nn.Module, row_scale: torch.Tensor) -> torch.Tensor:
    """The weights of the first linear layer as whole numbers, symmetric, round half to even."""
    return torch.round(model[1].weight.detach() / row_scale[:, None]).clamp(-128, 127)


def logits(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


# --- the article's call ---

@needs_legacy
def test_dynamic_is_pytorchs_own_where_it_exists(model):
    made, api = dynamic_int8(model)
    assert api == LEGACY
    assert torch.equal(logits(made), logits(torch.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)))
    weight = made[1].weight()
    assert weight.dtype == torch.qint8 and weight.q_scale() == pytest.approx(float(model[1].weight.abs().max()) / 127.5)


def without_the_function(patch):
    patch.delattr(torch.quantization, "quantize_dynamic")


def without_the_module(patch):
    patch.delattr(torch, "quantization")


def without_the_data_type(patch):
    patch.delattr(torch, "qint8")


def without_an_engine(patch):
    patch.setattr(torch.backends, "quantized", SimpleNamespace(engine="none"))


@pytest.mark.parametrize("gone", [without_the_function, without_the_module, without_the_data_type, without_an_engine])
def test_where_the_api_is_gone_torchaos_equivalent_is_used_and_named(model, monkeypatch, gone):
    expected = logits(torchao_int8(model))
    with monkeypatch.context() as patch:
        gone(patch)
        made, api = dynamic_int8(model)
        got = logits(made)
    assert api == SUCCESSOR and torch.equal(got, expected)
    assert (got - logits(model)).abs().max() < 0.05 * logits(model).abs().max()


def test_the_successor_is_not_imported_where_it_is_not_needed(model, monkeypatch):
    if not ready_made._has_legacy():
        pytest.skip("this PyTorch has no quantize_dynamic")
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert dynamic_int8(model)[1] == LEGACY
    with pytest.raises(ModuleNotFoundError):
        torchao_int8(model)


# --- torchao ---

def test_torchao_holds_int8_with_a_scale_for_each_output(model):
    weight = torchao_int8(model)[1].weight
    scale = weight.scale.flatten()
    assert weight.qdata.dtype == torch.int8 and scale.shape == (16,)
    assert (weight.qdata - weight_codes(model, scale)).abs().max() <= 1
    assert torch.allclose(scale, model[1].weight.detach().abs().amax(1) / 127.5, rtol=0.005)


def test_weights_only_leaves_the_activations_alone(model):
    made = torchao_int8(model, weights_only=True)
    decoded = copy.deepcopy(model)
    with torch.no_grad():
        for i in (1, 3):
            decoded[i].weight.copy_(made[i].weight.dequantize())
    assert torch.allclose(logits(made), logits(decoded), atol=1e-5)
    both = torchao_int8(model)
    assert not torch.allclose(logits(both), logits(decoded), atol=1e-5)


# --- PT2E ---

def activation_grids(graph: nn.Module) -> list[tuple[float, int]]:
    """Scale and zero point of each quantize operation on activations, in order."""
    return [node.args[1:3] for node in graph.graph.nodes if "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target)]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="other processors get another quantizer")
def test_the_exported_graph_is_rounding_by_hand(model):
    made = exported_int8(model, IMAGES)
    x = IMAGES.flatten(1)
    for layer, (s, z) in zip((model[1], model[3]), activation_grids(made), strict=True):
        assert 0.5 * x.amax() < 255 * s <= 1.01 * x.amax() and z == 0       # a histogram chose it, and may clip a little
        x = (torch.round(x / s) + z).clamp(0, 255) * s
        scale = layer.weight.detach().abs().amax(1) / 127.5
        weight = torch.round(layer.weight.detach() / scale[:, None]).clamp(-128, 127) * scale[:, None]
        x = torch.relu(nn.functional.linear(x, weight, layer.bias.detach())) if layer is model[1] else \
            nn.functional.linear(x, weight, layer.bias.detach())
    assert torch.allclose(logits(made), x, atol=0.01 * float(x.abs().max()))


def test_the_exported_graph_takes_any_batch_and_the_courses_own_evaluation(convolutional):
    images = torch.rand(9, 1, 12, 12)
    made = exported_int8(convolutional, images)
    assert torch.equal(logits(made, images[:1]), logits(made, images)[:1])
    assert training.predict(made, images).shape == (9,)
    assert (logits(made, images) - logits(convolutional, images)).abs().max() < 0.1 * logits(convolutional, images).abs().max()


def test_the_exported_graph_holds_each_weight_once_and_can_be_saved(model):
    made = exported_int8(model, IMAGES)
    floats = [t for t in made.state_dict().values() if t.dtype == torch.float32]
    assert max(t.numel() for t in floats) == 16             # biases and scales
    program, content = torch.export.export(made, (IMAGES[:2].clone(),)), io.BytesIO()
    torch.export.save(program, content)
    assert len(content.getvalue()) < 100_000
    content.seek(0)
    assert torch.equal(logits(torch.export.load(content).module(), IMAGES[:2]), logits(made, IMAGES[:2]))


@pytest.mark.parametrize("machine, name", [("x86_64", "X86InductorQuantizer"), ("AMD64", "X86InductorQuantizer"),
                                           ("arm64", "ArmInductorQuantizer"), ("aarch64", "ArmInductorQuantizer")])
def test_the_quantizer_is_that_of_the_processor(monkeypatch, machine, name):
    monkeypatch.setattr(ready_made.platform, "machine", lambda: machine)
    assert type(ready_made._quantizer()).__name__ == name


# --- all of them ---

WAYS = {"dynamic": lambda model: dynamic_int8(model)[0], "torchao": torchao_int8,
        "weights only": lambda model: torchao_int8(model, weights_only=True), "PT2E": lambda model: exported_int8(model, IMAGES)}


@pytest.mark.parametrize("way", WAYS)
def test_the_argument_stays_as_it_was(model, way):
    kept = copy.deepcopy(model)
    model.train()
    WAYS[way](model)
    assert model.training and repr(model) == repr(kept)
    assert all(type(a) is type(b) and torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters()))


@pytest.mark.parametrize("way", WAYS)
def test_a_model_without_layers_to_quantize_is_refused(way):
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        WAYS[way](nn.Sequential(nn.Flatten(), nn.ReLU()))


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_not_finite_are_refused(model, way):
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        WAYS[way](model)


@pytest.mark.parametrize("count", [0, 1])
def test_calibration_needs_two_images(model, count):
    with pytest.raises(ValueError, match="at least two images"):
        exported_int8(model, IMAGES[:count])


# --- the study ---

@pytest.fixture
def uncompiled(monkeypatch):
    """No compiler runs; the small network stands for the study's two."""
    monkeypatch.setattr(study, "compiled", lambda model, images: (model, 1.5))
    monkeypatch.setitem(study.NETWORKS, "small", lambda: models.mlp(hidden=(4,)))


def test_a_process_run_has_each_way_as_written_and_compiled(uncompiled):
    rows = study.process_run("small", 0, batches=(1, 3), blocks=2)
    assert [row["batch"] for row in rows] == 9 * [1] + 9 * [3]
    for part in (rows[:9], rows[9:]):
        assert [(row["way"], row["form"]) for row in part][:2] == [("float32", "as written"), ("float32", "compiled")]
        assert len({row["way"] for row in part}) == 5 and part[0]["cpu_ratio"] == 1
        assert {row["way"] for row in part if row["form"] == "as written"} - {r["way"] for r in part if r["form"] == "compiled"} \
            == {study.LEGACY}
        for row in part:
            assert row["cpu_seconds"] > 0 and row["cpu_ratio"] > 0
            assert (row["form"] == "compiled") == ("compile_seconds" in row) == ("same_class" in row)


def test_a_unit_is_a_fresh_process_with_its_own_compiler_cache(monkeypatch):
    seen = {}
    monkeypatch.setattr(study, "fresh_process", lambda script, function, **kw: seen.update(script=script, function=function, **kw))
    study.unit("CNN 32-64", 2)
    assert seen == {"script": study.SCRIPT, "function": "process_run", "network": "CNN 32-64", "seed": 2}
    monkeypatch.setitem(study.NETWORKS, "small", lambda: models.mlp(hidden=(4,)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the reader's own")
    monkeypatch.setattr(study, "compared", lambda *_: [{"cache": study.os.environ["TORCHINDUCTOR_CACHE_DIR"]}])
    first, second = (study.process_run("small", 0, batches=(2,))[0]["cache"] for _ in range(2))
    assert len({first, second, "the reader's own"}) == 3 and not Path(first).exists()
    assert study.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the reader's own"


def test_what_is_timed_was_compiled_with_the_weights_fixed(monkeypatch):
    """Forgetting the models that were compiled before would compile them again while they are timed, and otherwise."""
    import torch._inductor.config as inductor
    log = []

    def recorder(graph, inputs):
        log.append(inductor.freezing)
        return graph.forward

    def compiled(model, images):
        fast = torch.compile(model, dynamic=False, backend=recorder)
        fast(images)
        return fast, 1.0

    monkeypatch.setattr(study, "compiled", compiled)
    monkeypatch.setitem(study.NETWORKS, "small", lambda: models.mlp(hidden=(8,)))
    study.process_run("small", 0, batches=(1, 3), blocks=2)
    assert len(log) >= 2 * 4 and all(log)


def test_the_compiled_model_computes_the_same(model):
    if not (shutil.which("g++") or shutil.which("clang++")):
        skip("there is no C++ compiler: install g++")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast, seconds = study.compiled(model, IMAGES)
    assert torch.allclose(logits(fast), logits(model), atol=1e-5) and seconds > 0


def test_the_stored_rows_are_complete():
    stored = results.load("quantization_compiled")
    assert len(stored.seeds) >= 3 and {row["configuration"] for row in stored.rows} == set(study.NETWORKS) - {"small"}
    assert len(stored.rows) == len(stored.seeds) * 2 * len(study.BATCHES) * 9
    for row in stored.rows:
        assert row.get("same_class", 1) > 0.95 and "torchao" in stored.provenance["versions"]
