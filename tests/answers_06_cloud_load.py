"""Right and planted wrong answers to the exercises of book/06_cloud_load.ipynb, for test_exercises.py; see answers_quantization.py."""
import math

import numpy as np

OFFERS = {("CNN", 1): 1.0e-3, ("CNN", 8): 1.2e-3, ("CNN", 64): 3.0e-3,
          ("student", 1): 0.9e-3, ("student", 8): 1.0e-3, ("student", 64): 1.5e-3}


def two_servers(due, work, *, servers=2, latency=lambda end, moment, seconds: end - moment, waits=True):
    """Latencies of one queue before several servers, with each of its parts to be broken."""
    free, found = [0.0] * servers, []
    for moment, seconds in zip(due, work):
        first = free.index(min(free))
        free[first] = (max(free[first], moment) if waits else free[first]) + seconds
        found.append(latency(free[first], moment, seconds))
    return found


def in_turn(due, work):
    """Two queues, which take the requests in turn, whoever is free."""
    free, found = [0.0, 0.0], []
    for i, (moment, seconds) in enumerate(zip(due, work)):
        free[i % 2] = max(free[i % 2], moment) + seconds
        found.append(free[i % 2] - moment)
    return np.array(found)


def in_place(due, work):
    found = two_servers(due, work)
    work *= 0
    return found


def percentile(latencies, answered, q, *, failed=math.inf, rank=lambda x: math.ceil(x - 1e-9) - 1):
    ordered = sorted(x if ok else failed for x, ok in zip(latencies, answered))
    return ordered[min(max(rank(q * len(ordered)), 0), len(ordered) - 1)]


def replicas(rate, throughput, utilisation, *, whole=math.ceil, swap=False):
    low, high = throughput
    ends = whole(rate / (utilisation * high)), whole(rate / (utilisation * low))
    return ends[::-1] if swap else ends


RESULTS = {"06_cloud_load": {"offers": OFFERS}}

EXERCISES = [
    ("06_cloud_load", "check_1", [16, 16.0, 8 / 0.5], [4, 8, 32, 1 / 16, 0.5, "16"]),
    ("06_cloud_load", "check_2", [two_servers, lambda due, work: np.array(two_servers(due, work))],
     [lambda due, work: two_servers(due, work, servers=1),
      lambda due, work: two_servers(due, work, servers=3),
      lambda due, work: two_servers(due, work / 2, servers=1),              # one server that is twice as fast
      lambda due, work: two_servers(due, work, latency=lambda end, moment, seconds: seconds),       # a closed loop
      lambda due, work: two_servers(due, work, latency=lambda end, moment, seconds: end),           # when, not how long
      lambda due, work: two_servers(due, work, latency=lambda end, moment, seconds: end - moment - seconds),
      lambda due, work: two_servers(due, work, waits=False),                # starts before it is due
      in_turn, in_place, 0.5]),
    ("06_cloud_load", "check_3", [percentile, lambda x, ok, q: np.quantile(np.where(ok, x, np.inf), q, method="inverted_cdf")],
     [lambda x, ok, q: percentile(x[ok], ok[ok], q),                        # failures left out
      lambda x, ok, q: percentile(x, ok, q, failed=0.0),
      lambda x, ok, q: percentile(x, np.ones(len(x), dtype=bool), q),       # failures as if they were answers
      lambda x, ok, q: percentile(x, ok, q, rank=int),                      # off by one
      lambda x, ok, q: percentile(x, ok, 1 - q),
      lambda x, ok, q: float(np.where(ok, x, np.inf)[math.ceil(q * len(x) - 1e-9) - 1]),        # not sorted
      lambda x, ok, q: float(np.median(x)), 5.0]),
    ("06_cloud_load", "check_4", [("student", 8), tuple(["student", 8])],
     [("student", 64),                      # cheapest, but the first image waits for a third of a second
      ("student", 1), ("CNN", 8), ("CNN", 64), "student", 8]),
    ("06_cloud_load", "check_5", [replicas, lambda *a: tuple(map(int, replicas(*a)))],
     [lambda *a: replicas(*a, swap=True), lambda *a: replicas(*a, whole=math.floor), lambda *a: replicas(*a, whole=round),
      lambda rate, throughput, u: replicas(rate, throughput, 1.0),
      lambda rate, throughput, u: replicas(rate * u, throughput, 1.0),      # multiplied instead of divided
      lambda rate, throughput, u: replicas(rate, (sum(throughput) / 2,) * 2, u),
      lambda *a: tuple(1 + n for n in replicas(*a)), 4]),
]
