"""The file for a phone computes what the model does, within what is stated; its plan is the one that can be worked out by hand."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from course_lib import mobile, models
from helpers import IMAGE_SIZE, full_disk, random_split, run_python, same, state, tiny

NAMES = ("cnn", "student", "resnet")        # a chain, batch normalisation to be folded, a branch
IMAGES = random_split(12, seed=3).images


@pytest.fixture(scope="module")
def exported():
    """Model, float file for two images, int8 file for one image (not of the last), and the state before."""
    result = {}
    for name in NAMES:
        model = tiny(name)
        model.train()[0].eval()
        before = state(model), [module.training for module in model.modules()]
        result[name] = (model, mobile.pte_bytes(model, IMAGES[:2]),
                        b"" if name == "resnet" else mobile.pte_bytes(model, IMAGES[:1], calibration=IMAGES), before)
    return result


@pytest.fixture(scope="module")
def cnn_file():
    """A float file for two images."""
    return mobile.pte_bytes(tiny("cnn"), IMAGES[:2])


@pytest.mark.parametrize("name", NAMES)
def test_the_float_file_gives_the_logits_of_the_model(exported, name):
    images = random_split(2, seed=5).images
    logits = mobile.load_pte(exported[name][1])(images.numpy())
    assert logits.shape == (2, 10) and logits.dtype == np.float32
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), tiny(name)(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "student"])
def test_the_int8_file_gives_logits_on_one_grid_near_those_of_the_model(exported, name):
    run = mobile.load_pte(exported[name][2])
    got = np.concatenate([run(image[None]) for image in IMAGES.numpy()])
    with torch.no_grad():
        expected = tiny(name)(IMAGES).numpy()
    assert 0 < np.abs(got - expected).max() < 0.25 * np.abs(expected).max()
    steps = np.diff(np.unique(got)) / np.diff(np.unique(got)).min()
    assert np.abs(steps - steps.round()).max() < 1e-2


def test_int8_takes_about_a_byte_for_a_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(IMAGE_SIZE**2, 400), nn.ReLU(), nn.Linear(400, 10))
    weights = 400 * (IMAGE_SIZE**2 + 10)
    assert 4 * weights < len(mobile.pte_bytes(model, IMAGES[:1])) < 4.1 * weights
    assert weights < len(mobile.pte_bytes(model, IMAGES[:1], calibration=IMAGES)) < 1.2 * weights


@pytest.mark.parametrize("name", NAMES)
def test_the_model_stays_as_it_was(exported, name):
    model, _, _, (before, modes) = exported[name]
    assert same(state(model), before) and [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_no_trace_of_the_machine(exported, name):
    for content in exported[name][1:3]:
        assert not any(trace in content for trace in (b".py", b"site-packages", b"Traceback", os.fsencode(os.getcwd())))


def test_calibration_decides_the_grids():
    """Whole batches of the example's size are used: images beyond them change nothing, those inside do."""
    model, bright = tiny("cnn"), IMAGES.clone()
    bright[-1] *= 100
    one = mobile.pte_bytes(model, IMAGES[:5], calibration=IMAGES)
    assert one == mobile.pte_bytes(model, IMAGES[:5], calibration=bright)
    bright[7] *= 100
    assert one != mobile.pte_bytes(model, IMAGES[:5], calibration=bright)


@pytest.mark.parametrize("model, n, expected", [
    (nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)), 1, 4 * (256 + 32)),
    (nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)), 3, 4 * 3 * (256 + 32)),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)), 1, 4 * (2 * 4 * 14 * 14)),
    (models.student(1, IMAGE_SIZE, widths=(16, 8)), 1, 4 * (2 * 16 * 8 * 8))])
def test_the_plan_by_hand(model, n, expected):
    """Two neighbours in a chain, and no copy of the weights."""
    assert mobile.planned_bytes(model, IMAGES[:n]) == expected


def test_a_branch_is_planned_for_as_long_as_it_is_needed():
    class Late(nn.Module):
        def forward(self, x):
            y = torch.relu(x + 1)
            for _ in range(3):
                y = torch.relu(y * 2)
            return (x + y).flatten(1)[:, :10]
    assert mobile.planned_bytes(Late(), IMAGES[:1]) >= 3 * 4 * IMAGE_SIZE**2        # x, and two that change hands


def test_portable_kernels_give_the_same_and_have_no_int8(cnn_file):
    content = mobile.pte_bytes(tiny("cnn"), IMAGES[:2], kernels="portable")
    fast = mobile.load_pte(cnn_file)(IMAGES[:2].numpy())
    np.testing.assert_allclose(mobile.load_pte(content)(IMAGES[:2].numpy()), fast, rtol=1e-4, atol=1e-5)
    assert content != cnn_file and b"XnnpackBackend" in cnn_file and b"Xnnpack" not in content
    with pytest.raises(ValueError, match="int8 needs the kernels 'XNNPACK' .* got 'portable' and 12 images"):
        mobile.pte_bytes(tiny("cnn"), IMAGES[:2], kernels="portable", calibration=IMAGES)


def test_the_file_is_written_whole_or_not_at_all(cnn_file, tmp_path, monkeypatch):
    size = mobile.export_pte(tiny("cnn"), tmp_path / "model.pte", IMAGES[:2])
    assert size == (tmp_path / "model.pte").stat().st_size and os.listdir(tmp_path) == ["model.pte"]
    assert (tmp_path / "model.pte").read_bytes() == cnn_file
    logits = mobile.load_pte(tmp_path / "model.pte")(IMAGES[:2].numpy())
    np.testing.assert_array_equal(logits, mobile.load_pte(cnn_file)(IMAGES[:2].numpy()))
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        mobile.export_pte(tiny("cnn"), tmp_path / "other.pte", IMAGES[:2])
    assert os.listdir(tmp_path) == ["model.pte"]


def test_results_of_earlier_calls_stay_as_they_are(cnn_file):
    run = mobile.load_pte(cnn_file)
    first = run(IMAGES[:2].numpy())
    kept = first.copy()
    assert not np.array_equal(run(IMAGES[2:4].numpy()), kept)
    np.testing.assert_array_equal(first, kept)
    turned = np.asfortranarray(IMAGES[:2].numpy())          # another order in memory
    np.testing.assert_allclose(run(turned), kept, rtol=1e-6)


@pytest.mark.parametrize("change, message", [
    (lambda x: x[:1], r"for float32 images of shape \(2, 1, 16, 16\); got float32, \(1, 1, 16, 16\)"),
    (lambda x: x.astype(np.float64), "got float64"), (lambda x: x[:, 0], r"got float32, \(2, 16, 16\)")])
def test_images_of_another_shape_or_type_are_refused(cnn_file, change, message):
    with pytest.raises(ValueError, match=message):
        mobile.load_pte(cnn_file)(change(IMAGES[:2].numpy()))


def test_what_is_no_program_is_refused(cnn_file, tmp_path):
    for content in (b"", b"no program" * 20, cnn_file[:-100], cnn_file[:len(cnn_file) // 2]):
        with pytest.raises(ValueError, match="not a whole ExecuTorch program"):
            mobile.load_pte(content)
    with pytest.raises(FileNotFoundError, match="no model file at .*missing.pte"):
        mobile.load_pte(tmp_path / "missing.pte")


@pytest.mark.parametrize("arguments, message", [
    ({"example": IMAGES[:0]}, "at least one example image"), ({"kernels": "fast"}, "kernels among XNNPACK, portable; .*'fast'"),
    ({"calibration": IMAGES[:1]}, "at least 2 calibration images, one batch; got 'XNNPACK' and 1 images"),
    ({"example": IMAGES[:2, :, :3]}, "ExecuTorch cannot export this model: ")])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mobile.pte_bytes(**{"model": tiny("cnn"), "example": IMAGES[:2], **arguments})


class Confused(nn.Module):
    """Computes something else whenever it is exported."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(IMAGE_SIZE**2, 10)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y + 0.01 * y.abs().max() if torch.compiler.is_exporting() else y


def test_a_file_that_disagrees_is_refused():
    with pytest.raises(ValueError, match="disagrees with the model by up to .*, more than "):
        mobile.pte_bytes(Confused(), IMAGES[:2])
    mobile.pte_bytes(nn.Sequential(nn.Flatten(), Confused().layer), IMAGES[:2])


def test_an_int8_file_that_disagrees_by_more_than_two_steps_is_refused(monkeypatch):
    right = mobile.load_pte
    for steps, fine in ((1, True), (3.2, False)):
        def wrong(source, *, threads):
            def run(images):
                logits = right(source, threads=threads)(images)
                return logits + np.float32(steps * np.diff(np.unique(logits)).min())
            return run
        monkeypatch.setattr(mobile, "load_pte", wrong)
        if fine:
            mobile.pte_bytes(tiny("cnn"), IMAGES, calibration=IMAGES)
        else:
            with pytest.raises(ValueError, match="disagrees"):
                mobile.pte_bytes(tiny("cnn"), IMAGES, calibration=IMAGES)


def test_without_executorch_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, mobile._RUNTIME, None)
    for call in (lambda: mobile.pte_bytes(tiny("mlp"), IMAGES[:1]), lambda: mobile.load_pte(b"")):
        with pytest.raises(ImportError, match="pip install executorch torchao"):
            call()


FRESH = """
import numpy, sys, torch
from torch import nn
from course_lib import mobile
print([name for name in ("executorch", "torchao") if name in sys.modules])
model, images = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(4, 1, 3, 3)
content = mobile.pte_bytes(model, images, calibration=images)
run = mobile.load_pte(content)
run(images.numpy())
import executorch.extension.pybindings._portable_lib as runtime
print(runtime._threadpool_get_thread_count())
try:
    mobile.load_pte(content, threads=2)
except RuntimeError as error:
    print(error)
try:
    mobile.load_pte(content, threads=0)
except ValueError as error:
    print(error)
print("seen", file=sys.stderr)
"""


def test_a_fresh_process_sees_no_noise_imports_late_and_takes_one_thread():
    child = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, encoding="utf-8")
    assert child.returncode == 0, child.stderr
    assert child.stderr.split() == ["seen"]             # and what comes after is heard again
    before, threads, refused, none = child.stdout.splitlines()
    assert (before, threads, none) == ("[]", "1", "threads must be at least 1, got 0")
    assert refused == "ExecuTorch has one pool of threads in a process, here of 1; for 2 start a fresh process"


def test_a_process_that_asks_for_three_threads_first_gets_them(cnn_file, tmp_path):
    (tmp_path / "model.pte").write_bytes(cnn_file)
    printed = run_python(f"""
import numpy
from course_lib import mobile
run = mobile.load_pte({str(tmp_path / 'model.pte')!r}, threads=3)
import executorch.extension.pybindings._portable_lib as runtime
print(runtime._threadpool_get_thread_count(), run(numpy.zeros((2, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), numpy.float32)).shape)
""")
    assert printed.split(maxsplit=1) == ["3", "(2, 10)\n"]


def test_silence_ends_also_after_an_error(capfd):
    with pytest.raises(KeyError):
        with mobile._silence():
            os.write(2, b"hidden")
            print("hidden")
            raise KeyError
    os.write(2, b"heard")
    print("heard")
    assert capfd.readouterr() == ("heard\n", "heard")
