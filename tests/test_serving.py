"""Servers as processes: started, asked, and stopped with nothing left, however it ends."""
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from course_lib.serving import (BadRequest, Client, Predictor, capacity, dissect, guard, json_body, litserve_app, process, raw_body,
                                running, serve)
from serving_helpers import SHAPE, flat_model, running_still, wait_for, wait_until_gone

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((60, *SHAPE), dtype=np.float32)
EXPECTED = IMAGES.reshape(60, -1).argmax(1).tolist()

# A server of a few lines. "late": is never ready. "late start": not at once. "stubborn": ignores being asked to stop. "family": starts a process in a group
# of its own, which starts another and ends.
SCRIPT = """
import http.server, signal, subprocess, sys, time
print("I am the server, at", sys.argv[1])
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "late start" in sys.argv:
    time.sleep(0.3)
if "broken" in sys.argv:
    raise SystemExit("I cannot go on")
if "family" in sys.argv:
    sleep = "import time; time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "late" in sys.argv else 200)
        self.end_headers()
        self.wfile.write(b"[]")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def small(*ways):
    return [sys.executable, "-c", SCRIPT, "{port}", *ways]


def all_of(server):
    return [server._guard.pid, *server.processes()]


# --- started and stopped ---

@linux
def test_a_server_runs_inside_the_with_and_not_after():
    with running(small()) as server:
        pids = all_of(server)
        assert server.alive() and server.pid in pids and running_still(pids) == pids
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert Client(server.url).get("/anything") == (200, {})
        assert server.log().startswith(f"I am the server, at {server.port}\n")
    assert not server.alive() and running_still(pids) == []


@linux
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_is_left_after_an_error_or_an_interrupt(error):
    with pytest.raises(error):
        with running(small()) as server:
            pids = all_of(server)
            raise error
    assert running_still(pids) == []


@linux
@pytest.mark.parametrize("how", ["stubborn", "family"])
def test_neither_the_stubborn_nor_the_grandchildren_are_left(how):
    with running(small(how), grace=0.2) as server:
        pids = all_of(server)
        assert len(pids) == (3 if how == "family" else 2)
        end = time.monotonic()
    assert running_still(pids) == [] and time.monotonic() - end < 8         # not by the last resort, which waits ten seconds longer


# A job in the background of a shell ignores SIGINT, and so do the processes that it starts.
PARENT = """
import signal, sys, time
from course_lib.serving import running
signal.signal(signal.SIGINT, signal.default_int_handler)
with running({command!r}) as server:
    print(server._guard.pid, *server.processes(), flush=True)
    time.sleep(600)
"""


@linux
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_we_are_killed(sign):
    code = PARENT.format(command=small("family"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3 and running_still(pids) == pids
        parent.send_signal(sign)
        try:
            parent.wait(60)
        finally:
            parent.kill()
    assert wait_until_gone(pids) == []


@linux
def test_nothing_is_left_when_the_guard_is_killed():
    with running(small()) as server:
        os.kill(server._guard.pid, signal.SIGKILL)
        assert wait_until_gone([server.pid]) == []
    assert not server.alive()


@linux
def test_an_interrupt_while_it_starts_leaves_nothing():
    code = PARENT.format(command=small("late"))         # is never ready, so `running` waits when the interrupt comes
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        try:
            assert wait_for(lambda: len(guard.processes_below(parent.pid)) == 2), "the guard and the server"
            pids = guard.processes_below(parent.pid)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(50) == -signal.SIGINT and parent.stdout.read() == b""        # before it gave up by itself
        finally:
            parent.kill()
    assert wait_until_gone(pids) == []


# --- what does not start ---

def test_a_server_that_ends_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 1 before it was ready.*I cannot go on"):
        with running(small("broken")):
            pass


def test_a_server_that_is_not_ready_in_time_is_stopped():
    with pytest.raises(RuntimeError, match="not ready in time"):        # perhaps before it could print anything
        with running(small("late"), seconds=2):
            pass


def test_a_program_that_does_not_exist_is_named():
    with pytest.raises(RuntimeError, match="no-such-program"):
        with running(["no-such-program"]):
            pass


def test_a_port_that_somebody_takes_is_given_up_for_another(monkeypatch):
    free = process._free_port
    with running(small()) as first:
        ports = iter([first.port, free()])
        monkeypatch.setattr(process, "_free_port", lambda: next(ports))
        with running(small("late start")) as second:        # meanwhile the first one answers at that port
            assert second.port != first.port and second.alive() and first.alive()


def test_the_port_is_added_where_the_command_has_no_place_for_it():
    code = SCRIPT.replace("sys.argv[1]", "sys.argv[2]")
    with running([sys.executable, "-c", code], environment={"COLOUR": "blue"}) as server:
        assert server.alive()


@linux
def test_the_processor_time_of_all_its_processes_is_counted():
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    with running([sys.executable, "-c", work + SCRIPT, "{port}"]) as server:
        first = server.cpu_seconds()
        time.sleep(0.6)                         # it has nothing to do: this is time, and no processor time
        assert 0.3 <= first <= server.cpu_seconds() < first + 0.5


# --- LitServe ---

@pytest.fixture(scope="module")
def server():
    with serve(flat_model(), batch=16, wait_ms=20, largest=8) as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.url) as client:
        yield client


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_the_server_answers_as_the_predictor_does(client, raw, n):
    answer = client.ask(IMAGES[:n], raw=raw)
    assert answer["classes"] == EXPECTED[:n] and answer["ran_with"] == n and answer["model_seconds"] > 0
    assert np.array(answer["probabilities"]) == pytest.approx(
        Predictor(flat_model()).predict(IMAGES[:n]).probabilities, abs=1e-6)


BAD = {"not JSON": (b"seven", "application/json", 400), "no content type": (b"{}", "", 415),
       "too large": (b" " * 100_000, "application/json", 413), "wrong type": (b'{"images": "x"}', "application/json", 422),
       "wrong shape": (*json_body(IMAGES[:1, :, :1]), 422), "none": (*json_body(IMAGES[:0]), 422),
       "too many": (*raw_body(IMAGES[:9]), 422), "NaN": (*raw_body(np.full((1, *SHAPE), np.nan)), 422),
       "overflow": (*raw_body(np.array([[[[3e38, -3e38], [0, 0]]]])), 200)}     # of this model the scores are still finite


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_the_clients_fault_and_the_server_goes_on(client, what):
    body, content_type, status = BAD[what]
    said, answer = client.post(body, content_type)
    assert said == status and (status == 200 or len(answer["detail"]) > 10)
    assert client.ask(IMAGES[:1])["classes"] == EXPECTED[:1]


def test_a_refusal_reaches_the_clients_program_as_an_exception(client):
    with pytest.raises(BadRequest, match="may hold 8 images; got 9") as refused:
        client.ask(IMAGES[:9])
    assert refused.value.status == 422


def test_a_body_without_a_declared_size_is_cut_off_too(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", iter([b" " * 50_000] * 20), {"Content-Type": "application/json"}, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413 and "larger than" in json.loads(response.read())["detail"]


def together(url, ask, n=8, rounds=5):
    """Many clients at the same time; what each `ask(client, which, round)` gives, by client."""
    def one(which):
        with Client(url) as client:
            return [ask(client, which, i) for i in range(rounds)]
    with ThreadPoolExecutor(n) as clients:
        return list(clients.map(one, range(n)))


def test_requests_run_together_and_bad_ones_disturb_nobody():
    bad = [value for value in BAD.values() if value[2] != 200]

    def ask(client, which, i):
        if which >= 5:
            body, content_type, status = bad[(i + which) % len(bad)]
            return client.post(body, content_type)[0] == status
        begin, n = 5 * which + i, 1 + which % 3
        answer = client.ask(IMAGES[begin:begin + n], raw=i % 2 == 0)
        return answer["ran_with"] if answer["classes"] == EXPECTED[begin:begin + n] else "wrong"
    with serve(flat_model(), batch=16, wait_ms=500, largest=8) as server:       # long enough to meet on a busy machine
        answers = together(server.url, ask)
    assert all(all(each) for each in answers[5:])
    ran_with = [number for each in answers[:5] for number in each]
    assert "wrong" not in ran_with and max(ran_with) > 3        # more than one request can hold


def test_the_careless_server_breaks_its_neighbours():
    good, bad = (json.dumps({"image": IMAGES[0].tolist()}).encode(), json.dumps({"image": [[[0.0]]]}).encode())
    with serve(flat_model(name="images"), wait_ms=500, program="course_lib.serving.careless") as server:
        with Client(server.url) as alone:
            assert alone.post(good, "application/json") == (200, {"class": EXPECTED[0]})
        answers = together(server.url, lambda client, which, i: client.post(bad if which >= 5 else good, "application/json")[0])
        assert 500 in sum(answers[:5], [])


@linux
def test_litserve_leaves_no_process_and_no_folder():
    with serve(flat_model(), batch=1, largest=2) as server:
        pids = all_of(server)
        assert len(pids) > 3                    # the guard, LitServe, its HTTP process and the model's
        with Client(server.url) as client, Client(server.url) as other:
            assert client.ask(IMAGES[:2])["ran_with"] == 2
            anatomy = dissect({"first": client, "second": other}, IMAGES[:2], blocks=3, max_blocks=3)
    assert running_still(pids) == []
    rows = anatomy.parts()
    assert [(row["server"], row["body"]) for row in rows] == [
        ("first", "JSON"), ("second", "JSON"), ("first", "raw"), ("second", "raw")]
    for row in rows:
        assert row["model"] + row["messages"] + row["rest"] == pytest.approx(row["all"]) and row["images"] == 2
        assert row["share"] == pytest.approx(capacity.gain(row["all"], 0, 0) * row["model"] / row["all"]) and row["share"] > 0
    assert anatomy.ratio("first, raw", to="first, raw").value == 1


class Recorder(Client):
    """A client that asks nobody and notes what it would send."""

    def __init__(self):
        super().__init__("http://127.0.0.1:9")
        self.sent = []

    def _request(self, method, path, body, headers):
        self.sent.append((method, path, body, headers.get("Content-Type")))
        return 200, {"model_seconds": 0.001}


def test_a_raw_and_a_json_body_are_what_the_client_sends():
    client = Recorder()
    client.ask(IMAGES[:2])
    client.ask(IMAGES[:2], raw=True)
    assert client.sent == [("POST", "/predict", *json_body(IMAGES[:2])), ("POST", "/predict", *raw_body(IMAGES[:2]))]


def test_dissect_asks_each_server_in_both_ways():
    first, second = Recorder(), Recorder()
    dissect({"first": first, "second": second}, IMAGES[:2], blocks=2, max_blocks=2)
    for client in (first, second):
        assert {kind for method, *_, kind in client.sent if method == "POST"} == {"application/json", "application/octet-stream"}
    assert "GET" in {method for method, *_ in first.sent} and "GET" not in {method for method, *_ in second.sent}


def test_a_server_by_name_of_its_file_and_bad_calls(tmp_path):
    with pytest.raises(ValueError, match="ONNX Runtime cannot open"):
        with serve(b"no model"):
            pass
    with pytest.raises(FileNotFoundError):
        with serve(tmp_path / "none.onnx"):
            pass
    for wrong in ({"batch": 0}, {"largest": 0}, {"wait_ms": 0}, {"wait_ms": -1}):
        with pytest.raises(ValueError, match="need batch >= 1, largest >= 1"):
            with serve(flat_model(), **wrong):
                pass
    with pytest.raises(ValueError, match="no server to ask"):
        dissect({}, IMAGES)


def test_without_litserve_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(ImportError, match="pip install litserve"):
        with serve(flat_model()):
            pass


def test_the_command_line(capsys):
    told = litserve_app.options(["m.onnx", "--port", "8123", "--wait-ms", "0.5"])
    assert (told.model, told.port, told.batch, told.wait_ms, told.largest) == ("m.onnx", 8123, 16, 0.5, 64)
    with pytest.raises(SystemExit):
        litserve_app.options(["m.onnx", "--port", "eighty"])
    assert "invalid int value" in capsys.readouterr().err


def test_a_client_whose_server_is_gone_says_so():
    with running(small()) as gone:
        client = Client(gone.url, seconds=2)
        assert client.get()[0] == 200
    with pytest.raises(OSError):
        client.ask(IMAGES[:1])


def test_an_answer_that_is_no_success_is_an_error():
    with running(small()) as other, Client(other.url) as client:
        with pytest.raises(OSError, match="answered 501"):         # it knows no POST
            client.ask(IMAGES[:1])
