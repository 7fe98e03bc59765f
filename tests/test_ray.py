"""The predictor behind Ray Serve: the same answers and refusals as behind LitServe, and nothing left running."""
import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from course_lib.serving import json_body, raw_body, ray_app
from course_lib.serving.client import Client
from helpers import run_python
from serving_helpers import SHAPE, flat_model, wait_until_gone
from skips import extra


@pytest.fixture(scope="module")
def server():
    extra("ray", group="serve-ray")
    with ray_app.serve_on_ray(flat_model(), batch=8, wait_ms=200, replicas=2) as server:
        yield server
        pids = server.processes()
    assert wait_until_gone(pids) == []


@pytest.fixture
def client(server):
    with Client(server.url) as client:
        yield client


def image(largest: int) -> np.ndarray:
    """One image whose class is `largest`, since the scores of this model are its pixels."""
    return np.eye(4, dtype=np.float32)[[largest]].reshape(1, *SHAPE)


@pytest.mark.extra
@pytest.mark.parametrize("raw", [False, True])
def test_classes_and_probabilities_are_those_of_the_model(client, raw):
    answer = client.ask(np.concatenate([image(2), image(0), image(3)]), raw=raw)
    assert answer["classes"] == [2, 0, 3]
    scores = np.exp(np.eye(4)[[2, 0, 3]])
    assert np.allclose(answer["probabilities"], scores / scores.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.extra
@pytest.mark.parametrize("body, kind, status, reason", [
    (b"seven", "application/json", 400, "not JSON"), (b'{"image": 1}', "application/json", 422, '"images"'),
    (json_body(np.full((1, *SHAPE), np.nan))[0], "application/json", 422, "not a finite number"),
    (json_body(np.zeros((1, 1, 3, 2)))[0], "application/json", 422, "shape"), (b"", "text/plain", 415, "text/plain"),
    (b" " * 1_000_000, "application/json", 413, "larger than"), (raw_body(np.zeros((65, *SHAPE)))[0], "application/octet-stream", 422, "64"),
    (raw_body(np.full((1, *SHAPE), np.inf))[0], "application/octet-stream", 422, "finite")])
def test_a_bad_request_is_refused_with_the_reason(client, body, kind, status, reason):
    got, answer = client.post(body, kind)
    assert got == status and reason in answer["detail"]
    assert client.ask(image(1))["classes"] == [1]


@pytest.mark.extra
def test_other_paths_are_not_there(client):
    assert client.get("/predict")[0] == client.post(b"", path="/other")[0] == 404
    assert client.get("/health")[0] == 200


@pytest.mark.extra
def test_requests_that_come_together_run_together_and_each_gets_its_own(server):
    answers = {}

    def ask(which):
        with Client(server.url) as client:
            answers[which] = [client.ask(image(which % 4)) for _ in range(5)]
    clients = [threading.Thread(target=ask, args=(which,)) for which in range(8)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert all(answer["classes"] == [which % 4] for which, each in answers.items() for answer in each)
    assert max(answer["ran_with"] for each in answers.values() for answer in each) > 1


@pytest.mark.extra
def test_nobody_but_this_machine_is_asked_or_told(server):
    """It listens on 127.0.0.1, has no dashboard, and sends no statistics."""
    raylets = []
    for pid in server.processes():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"dashboard/dashboard.py" not in command or b"--disable-frontend" in command       # it also keeps statistics, or not
        raylets += [pid] if b"raylet/raylet" in command.split(b"\0")[0] else []
    assert raylets and all(b"RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in raylets)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert [address for address in listening if address.endswith(f":{server.port:04X}")] == [f"0100007F:{server.port:04X}"]


@pytest.mark.extra
def test_after_an_error_in_the_block_nothing_is_left():
    extra("ray", group="serve-ray")
    with pytest.raises(ZeroDivisionError), ray_app.serve_on_ray(flat_model()) as server:
        pids = server.processes()
        1 / 0
    assert len(pids) > 3 and wait_until_gone(pids) == []


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[serve-ray\]'"), ray_app.serve_on_ray(flat_model()):
        pass
    (tmp_path / "ray.py").write_text("raise ImportError('not installed')")
    answer = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom course_lib.serving import ray_app\n"
                        "try:\n    ray_app.application(b'')\nexcept ImportError as error:\n    print(error)")
    assert "pip install -e '.[serve-ray]'" in answer


@pytest.mark.parametrize("options", [{"batch": 0}, {"replicas": 0}, {"largest": 0}, {"wait_ms": -1.0}])
def test_numbers_that_make_no_sense_are_refused_before_anything_starts(options):
    with pytest.raises(ValueError, match="need batch"), ray_app.serve_on_ray(flat_model(), **options):
        pass


def test_the_module_is_imported_without_ray():
    assert "ray" not in run_python("import sys; import course_lib.serving.ray_app; print(*sorted(sys.modules))").split()
    assert sys.modules["course_lib.serving.ray_app"] is ray_app
