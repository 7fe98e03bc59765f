"""The load test: its arithmetic by hand and by laws, and its client against a small server whose every delay is known."""
import asyncio
import collections
import math
import os
import socket
import threading

import numpy as np
import pytest
import scipy.stats
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from course_lib.serving import load, open_loop
from helpers import run_python


@pytest.fixture(scope="module")
def server():
    """A server in this process: /echo, /json, /bad, /none, and three whose delays are known.

    /never: no answer within a test. /ten: none before there are ten requests. /queue: serves one at a time, and stalls for
    0.3 s at the first request numbered 5 or more: it answers none of those before.
    """
    seen, turn, ten, loop, runner = collections.Counter(), [], [], asyncio.new_event_loop(), None

    async def echo(request):
        seen[request.path] += 1
        return web.Response(body=await request.read(), content_type="application/json")

    async def answer(request):
        seen[request.path] += 1
        if request.path == "/bad":
            return web.json_response({"detail": "no"}, status=422)
        if request.path == "/never":
            await asyncio.sleep(30)
        if request.path == "/ten":
            if seen["/ten"] == 10:
                ten[0].set()
            await ten[0].wait()
        if request.path == "/none":
            request.transport.abort()
        return web.Response(text="not JSON")

    async def queue(request):
        number = int(await request.read())
        async with turn[0]:
            stalls = number >= 5 and not seen["stalls"]         # after a pause of the client, 6 may arrive before 5
            seen["stalls"] += stalls
            await asyncio.sleep(0.3 if stalls else 0.0005)
        return web.Response(text="{}")

    async def start():
        turn.append(asyncio.Lock())
        ten.append(asyncio.Event())
        app = web.Application()
        app.router.add_post("/echo", echo)
        app.router.add_post("/queue", queue)
        for path in ("/json", "/bad", "/never", "/ten", "/none"):
            app.router.add_post(path, answer)
        nonlocal runner
        runner = web.AppRunner(app, shutdown_timeout=0.1)       # does not wait for /never
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"http://127.0.0.1:{port}", seen
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def offered(url, bodies=(b"{}",), **options):
    return open_loop.load_test(url, list(bodies), **{"rate": 200, "seconds": 0.25, "poisson": False, "warm_up": 0, **options})


def made(status, latency, *, rate=4.0, seconds=1.0):
    """A result with requests due at 0, 1/rate, …"""
    due = np.arange(len(status)) / rate
    return load.Load(rate, seconds, due, due + np.array(latency, dtype=float), np.array(status), np.zeros(len(status)), {})


# --- when requests are due ---

def test_fixed_arrivals_by_hand():
    assert load.arrival_times(4, 1, poisson=False).tolist() == [0, 0.25, 0.5, 0.75]
    assert len(load.arrival_times(10, 0.3, poisson=False)) == 3         # 10 · 0.3 is a little more than 3
    assert len(load.arrival_times(0.5, 3, poisson=False)) == 2


def test_independent_arrivals_have_exponential_gaps():
    times = load.arrival_times(100, 100, seed=3)
    assert scipy.stats.kstest(np.diff(times), scipy.stats.expon(scale=1 / 100).cdf).pvalue > 0.01
    assert abs(len(times) - 10_000) < 4 * 100
    assert scipy.stats.kstest(times / 100, "uniform").pvalue > 0.01     # over the whole time, not only its beginning


@given(st.floats(1, 500), st.floats(1, 5), st.booleans(), st.integers(0, 5))
def test_arrivals_are_in_order_before_the_end_and_repeatable(rate, seconds, poisson, seed):
    times = load.arrival_times(rate, seconds, poisson=poisson, seed=seed)
    assert len(times) >= 1 and (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] <= seconds
    assert np.array_equal(times, load.arrival_times(rate, seconds, poisson=poisson, seed=seed))


def test_another_seed_gives_other_users():
    assert not np.array_equal(load.arrival_times(50, 1, seed=0)[:10], load.arrival_times(50, 1, seed=1)[:10])


@pytest.mark.parametrize("rate, seconds", [(0, 1), (-5, 1), (5, 0), (math.inf, 1), (5, math.nan), (0.5, 1)])
def test_a_load_of_nothing_is_refused(rate, seconds):
    with pytest.raises(ValueError, match="room for at least one request"):
        load.arrival_times(rate, seconds)


# --- percentiles ---

def test_percentiles_by_hand():
    latencies = np.random.default_rng(0).permutation(np.arange(1, 101))
    assert [load.percentile(latencies, q).value for q in (0.5, 0.95, 0.99)] == [50, 95, 99]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_percentiles_equal_numpy_s_inverted_distribution(latencies, q):
    e = load.percentile(latencies, q)
    assert e.value == np.quantile(latencies, q, method="inverted_cdf")
    assert e.low <= e.value <= e.high


def test_failed_requests_count_as_infinitely_slow():
    """Two of a hundred fail: the p99 is infinite, the p95 is not; a server must not gain by losing requests."""
    latencies = [0.01] * 98 + [math.inf] * 2
    assert load.percentile(latencies, 0.99).value == math.inf
    assert load.percentile(latencies, 0.95).value == 0.01


def test_few_requests_cannot_tell_a_p99():
    assert load.percentile(np.linspace(1, 2, 100), 0.99).high == math.inf
    assert load.percentile(np.linspace(1, 2, 100), 0.5).high < 2
    mixed = np.random.default_rng(0).permutation(np.linspace(1, 2, 5000))
    assert load.percentile(mixed, 0.99).high < 2
    # In rising order the run does not agree with itself: a queue grows, and no run of any length has "the" p99.
    assert load.percentile(np.sort(mixed), 0.99).high == math.inf


def test_the_interval_narrows_with_the_root_of_the_number():
    rng = np.random.default_rng(1)
    few, many = (load.percentile(rng.exponential(size=n), 0.5) for n in (500, 50_000))
    assert 5 < (few.high - few.low) / (many.high - many.low) < 20
    assert many.high - many.low < 2 * 2 * 1.96 * math.sqrt(0.25 / 50_000) / 0.5     # at most twice that of chance; density 1/2


def covered(runs, truth, q=0.9):
    return np.mean([e.low <= truth <= e.high for e in (load.percentile(run, q) for run in runs)])


def test_intervals_of_independent_latencies_cover_the_truth_as_often_as_they_say():
    runs = np.random.default_rng(2).exponential(size=(400, 400))
    assert covered(runs, math.log(10)) > 0.93       # the exponential's p90 is ln 10


def test_intervals_of_requests_that_queue_are_wide_enough():
    """A queue at 70 % utilisation: its p90 is ln(10) / (1 − 0.7); chance alone would cover it in half of the runs."""
    rng, n = np.random.default_rng(3), 2000
    gaps, work, latency = rng.exponential(1 / 0.7, (n, 200)), rng.exponential(1, (n, 200)), np.zeros((n, 200))
    latency[0] = work[0]
    for i in range(1, n):
        latency[i] = np.maximum(0, latency[i - 1] - gaps[i]) + work[i]
    assert covered(latency.T, math.log(10) / 0.3) > 0.8


@pytest.mark.parametrize("latencies, q", [([], 0.5), ([-1.0], 0.5), ([math.nan], 0.5), ([1.0], 0), ([1.0], 1), ([1.0], 99),
                                          ([[1.0]], 0.5)])
def test_percentiles_of_nothing_are_refused(latencies, q):
    with pytest.raises(ValueError, match="need latencies of 0 or more"):
        load.percentile(latencies, q)


# --- what became of the requests ---

def test_a_result_by_hand():
    result = made([200, 200, 503, load.TIMED_OUT], [0.1, 0.9, 0.1, 0.5])
    assert result.good.tolist() == [True, True, False, False]
    assert result.latency.tolist() == pytest.approx([0.1, 0.9, math.inf, math.inf])
    assert result.throughput == 1.0                 # the second answer came after a second, when arrivals had ended
    assert result.failures == {"timed out": 1, "status 503": 1}
    assert result.percentile(0.5).value == pytest.approx(0.9) and result.percentile(0.75).value == math.inf


def test_a_server_that_keeps_up_leaves_no_queue_behind():
    assert made([200] * 20, [0.01] * 20, rate=20).keeps_up
    assert made([200] * 20, [0.01] * 19 + [0.9], rate=20).keeps_up              # one of twenty late: 95 %
    assert not made([200] * 20, [0.01] * 18 + [0.9] * 2, rate=20).keeps_up
    assert not made([200] * 18 + [load.UNANSWERED] * 2, [0.01] * 20, rate=20).keeps_up
    assert made([204, 200], [0.01] * 2).failures == {}
    assert made([302, load.UNANSWERED], [0.01] * 2).failures == {"no answer": 1, "status 302": 1}


# --- the client ---

def test_every_request_is_sent_once_and_gets_its_own_answer(server):
    url, seen = server
    before = seen["/echo"]
    bodies = [b'{"who": %d}' % i for i in range(7)]
    result = offered(url + "/echo", bodies, warm_up=3, collect=["who", "nothing"])
    assert result.answers["who"] == [i % 7 for i in range(50)] and result.answers["nothing"] == [None] * 50
    assert (result.status == 200).all() and (result.finished > result.due).all() and not result.failures
    assert seen["/echo"] - before == 50 + 3         # the warm-up is sent and does not count
    assert np.array_equal(result.due, load.arrival_times(200, 0.25, poisson=False))
    assert len(result.late) == 50 and (result.late >= 0).all() and result.late.min() < 0.02


def test_latency_counts_from_when_a_request_was_due(server):
    """One stall of 0.3 s makes all requests wait that were due in it: a closed loop would count one of them."""
    url, seen = server
    numbers = [b"%d" % i for i in range(50)]
    expected = 0.3 - 0.01 * np.arange(21)           # at least: the stall begins when number 5 is due, or later
    for connections in (200, 1):                    # with 1: not from when a connection was free
        seen["stalls"] = 0
        result = offered(url + "/queue", numbers, rate=100, seconds=0.5, connections=connections, timeout=20)
        assert not result.failures and (result.latency[5:26] > expected - 0.02).all()


def test_a_bad_status_is_no_answer(server):
    result = offered(server[0] + "/bad", collect=["detail"])
    assert result.failures == {"status 422": 50} and result.throughput == 0 and not result.keeps_up
    assert np.isinf(result.latency).all() and result.answers["detail"] == [None] * 50


def test_who_waits_too_long_is_gone(server):
    result = offered(server[0] + "/never", timeout=0.1)
    assert result.failures == {"timed out": 50}
    waited = result.finished - result.due           # a busy machine may stall for a while: never less, and not all of them more
    assert (waited > 0.099).all() and waited.min() < 1.5
    patient = offered(server[0] + "/ten", timeout=20, rate=40)
    assert not patient.failures and len(patient.status) == 10           # all ten wait side by side, not in a row


def test_a_connection_that_is_cut_off_and_a_server_that_is_not_there_are_counted(server):
    assert offered(server[0] + "/none").failures == {"no answer": 50}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert offered(f"http://127.0.0.1:{port}/", warm_up=1).failures == {"no answer": 50}


def test_answers_that_are_not_json_are_none(server):
    result = offered(server[0] + "/json", collect=["x"])
    assert result.answers == {"x": [None] * 50} and not result.failures
    assert offered(server[0] + "/echo", [b"[1]"], collect=["x"]).answers["x"] == [None] * 50


@pytest.mark.parametrize("options, message", [
    ({"bodies": []}, "at least one body"), ({"bodies": ["text"]}, "each of bytes"), ({"timeout": 0}, "timeout > 0"),
    ({"connections": 0}, "connections >= 1"), ({"warm_up": -1}, "warm_up >= 0"), ({"rate": 0}, "rate and seconds above 0")])
def test_bad_arguments_are_refused_before_anything_is_sent(server, options, message):
    before = dict(server[1])
    with pytest.raises(ValueError, match=message):
        offered(server[0] + "/echo", **options)
    assert dict(server[1]) == before


def test_a_client_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(open_loop.sys, "executable", "/bin/false" if os.path.exists("/bin/false") else "/usr/bin/false")
    with pytest.raises(RuntimeError, match="the client of the load test failed"):
        offered("http://127.0.0.1:9/")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a process choose its cores")
def test_cores_are_borrowed_and_given_back():
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with pytest.raises(KeyError), load.on_cores(one):
        assert os.sched_getaffinity(0) == one
        assert run_python("import os; print(os.sched_getaffinity(0))").strip() == str(one)      # and so does a child
        raise KeyError
    assert os.sched_getaffinity(0) == before
    with load.on_cores(None):
        assert os.sched_getaffinity(0) == before
    theirs, ours = load.separate_cores()
    if len(before) == 1:
        assert (theirs, ours) == (None, None)
    else:
        assert theirs | ours == before and not theirs & ours and len(theirs) == 1


def test_the_client_loads_no_pytorch():
    assert run_python("import sys; from course_lib.serving import open_loop; print('torch' in sys.modules)").strip() == "False"
