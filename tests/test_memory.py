"""Peak memory: a known amount is found, what is given back counts, and what was there before does not."""
import sys

import numpy as np
import pytest

from course_lib import deploy, intervals, memory
from helpers import IMAGE_SIZE, random_split, run_python, tiny

MB = 10**6
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")


def filled(megabytes: int) -> str:
    return f"bytearray(b'1') * ({megabytes} * 10**6)"


@linux
def test_a_known_amount_is_found_though_it_is_given_back():
    found = memory.peak_bytes(f"x = {filled(40)}; del x", repeats=2)
    assert isinstance(found, intervals.Estimate) and found.low <= found.value <= found.high
    assert 39.5 * MB < found.value < 41 * MB


@linux
def test_the_most_at_one_moment_counts_not_the_sum():
    found = memory.peak_bytes(f"x = {filled(20)}; del x; x = {filled(30)}; del x", repeats=2)
    assert 29.5 * MB < found.value < 31 * MB


@linux
def test_what_the_setup_holds_or_held_does_not_count():
    found = memory.peak_bytes("y = len(x)", setup=f"x = {filled(60)}; del x; x = {filled(20)}", repeats=2)
    assert 0 <= found.value < 0.5 * MB
    again = memory.peak_bytes(filled(10), setup=f"x = {filled(60)}; del x", repeats=2)
    assert 9.5 * MB < again.value < 11 * MB             # though the setup's peak was higher


@linux
def test_the_median_of_the_processes_is_reported(monkeypatch):
    peaks = iter([10, 70, 20])
    monkeypatch.setattr(memory, "_one_peak", lambda code, setup: next(peaks))
    assert memory.peak_bytes("pass", repeats=3).value == 20


def test_the_measured_code_may_print():
    assert memory.peak_bytes("print('12345678901', end='')", repeats=2).value < 10**7


def test_code_that_fails_says_why():
    with pytest.raises(RuntimeError, match="the measured code failed: ZeroDivisionError: division by zero"):
        memory.peak_bytes("1 / 0", repeats=2)
    with pytest.raises(RuntimeError, match="the measured code failed: NameError: name 'nothing' is not defined"):
        memory.peak_bytes("pass", setup="nothing", repeats=2)
    with pytest.raises(ValueError, match="at least 2 repeats, got 1"):
        memory.peak_bytes("pass", repeats=1)


@linux
@pytest.mark.parametrize("prelude, expected", [
    ("sys.platform = 'darwin'; import resource, types; values = iter([70, 100]); "
     "resource.getrusage = lambda who: types.SimpleNamespace(ru_maxrss=next(values))", 30),
    ("sys.platform = 'freebsd'; import resource, types; values = iter([70, 100]); "
     "resource.getrusage = lambda who: types.SimpleNamespace(ru_maxrss=next(values))", 30 * 1024),
    ("sys.platform = 'win32'; import types; values = iter([70, 100]); "
     "info = lambda: types.SimpleNamespace(peak_wset=next(values)); "
     "sys.modules['psutil'] = types.SimpleNamespace(Process=lambda: types.SimpleNamespace(memory_info=info))", 30)])
def test_other_systems_give_what_rose_above_the_peak_so_far(prelude, expected):
    """Rehearsed: macOS counts bytes and the other Unixes kilobytes."""
    assert run_python(f"import sys; sys.argv = ['', 'pass', 'pass']; {prelude}; exec({memory._CHILD!r})").split() == [str(expected)]


@linux
def test_a_model_file_with_more_weights_takes_more(tmp_path):
    """ONNX Runtime, once from a path and once from its content."""
    images, floor = random_split(2).images, {}
    for name in ("student", "lenet_300_100"):
        content = deploy.onnx_bytes(tiny(name), images)
        (tmp_path / name).write_bytes(content)
        floor[name] = memory.file_peak(tmp_path / name if name == "student" else content, images.numpy(), repeats=2).value
    weights = 4 * (IMAGE_SIZE**2 * 300 + 300 * 100)
    assert floor["student"] > MB and 0.5 * weights < floor["lenet_300_100"] - floor["student"] < 5 * weights


@linux
def test_executorch_files_are_opened_by_executorch():
    from course_lib import mobile
    images = random_split(2).images
    found = memory.file_peak(mobile.pte_bytes(tiny("student"), images), images.numpy(), runtime="ExecuTorch", repeats=2)
    assert MB < found.value < 20 * MB
    with pytest.raises(RuntimeError, match="the measured code failed: ValueError: this is not a whole ExecuTorch program"):
        memory.file_peak(b"no program", images.numpy(), runtime="ExecuTorch", repeats=2)


def test_another_runtime_is_refused():
    with pytest.raises(ValueError, match="one of ONNX Runtime, ExecuTorch; got 'Core ML'"):
        memory.file_peak(b"", np.zeros((1, 1, 2, 2), np.float32), runtime="Core ML")
