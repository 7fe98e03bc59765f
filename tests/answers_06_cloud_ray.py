"""Right and planted wrong answers to the exercises of book/06_cloud_ray.ipynb, for test_exercises.py; see answers_quantization.py."""
import math
from types import SimpleNamespace

import numpy as np
from answers_06_cloud import shown


def machines(rate, core_seconds, utilisation, per_machine, *, spare=1):
    return math.ceil(math.ceil(rate * core_seconds / utilisation) / per_machine) + spare


def cut(classes, requests):
    return np.split(classes, np.cumsum([len(images) for images in requests])[:-1])


def replica(answers, *, keep=lambda make, content: make(content)):
    """A class of replicas that keeps something at the start and answers with it."""
    class Replica:
        def __init__(self, make, content):
            self.make, self.content, self.kept = make, content, keep(make, content)

        def __call__(self, requests):
            return answers(self, requests)
    return Replica


def in_closure(make, content):
    """A right one that is no class."""
    predict = make(content).predict

    def answer(requests):
        found, classes = [], predict(np.concatenate(requests))
        for images in requests:
            found, classes = [*found, classes[:len(images)]], classes[len(images):]
        return found
    return answer


def shared():
    """All replicas with the predictor of the first."""
    one = []

    def keep(make, content):
        one[:] = one or [make(content)]
        return one[0]
    return replica(together, keep=keep)


def together(self, requests):
    return cut(self.kept.predict(np.concatenate(requests)), requests)


RESULTS = {"06_cloud_ray": {
    **shown("06_cloud_ray", "shifts"),
    "timed": SimpleNamespace(seconds={"LitServe": 0.001, "Ray Serve": 0.004}.__getitem__)}}

EXERCISES = [
    ("06_cloud_ray", "check_1", [3, math.ceil(450 * 0.003 / 0.5)], [2, 450 * 0.003 / 0.5, 1, 6, "3"]),
    ("06_cloud_ray", "check_2", [machines, lambda r, c, u, n: 1 + -(-math.ceil(r * c / u) // n)],
     [lambda *a: machines(*a, spare=0), lambda r, c, u, n: math.ceil(r * c / u) + 1,
      lambda r, c, u, n: math.floor(r * c / u / n) + 1, lambda r, c, u, n: math.ceil(r * c * u / n) + 1,
      lambda r, c, u, n: math.ceil((math.ceil(r * c / u) + 1) / n), 4]),
    ("06_cloud_ray", "check_3", ["LitServe", "".join(["Lit", "Serve"])], ["Ray Serve", "litserve", 0.001]),
    ("06_cloud_ray", "check_4", [replica(together), in_closure],
     [replica(lambda self, requests: [self.kept.predict(images) for images in requests]),           # a run for each request
      replica(lambda self, requests: cut(self.make(self.content).predict(np.concatenate(requests)), requests), keep=lambda *_: None),
      shared(),
      replica(lambda self, requests: self.kept.predict(np.concatenate(requests))),                  # not taken apart
      replica(lambda self, requests: np.array_split(self.kept.predict(np.concatenate(requests)), len(requests))),    # equal parts
      replica(lambda self, requests: np.split(self.kept.predict(np.concatenate(requests)), np.cumsum([len(x) for x in requests]))),
      replica(lambda self, requests: np.split(self.kept.predict(np.concatenate(requests)), [len(x) for x in requests][:-1])),
      replica(lambda self, requests: together(self, requests[::-1])),                               # in another order
      replica(lambda self, requests: requests.sort(key=len) or together(self, requests)), "Predictor"]),
]
