"""Right and planted wrong answers to the exercises of book/06_cloud_ray.ipynb, for test_exercises.py; see answers_quantization.py."""
import math
from types import SimpleNamespace


def machines(rate, core_seconds, utilisation, per_machine, *, spare=1):
    return math.ceil(math.ceil(rate * core_seconds / utilisation) / per_machine) + spare


RESULTS = {"06_cloud_ray": {
    "timed": SimpleNamespace(seconds={"LitServe": 0.001, "Ray Serve": 0.004}.__getitem__)}}

EXERCISES = [
    ("06_cloud_ray", "check_1", [3, math.ceil(450 * 0.003 / 0.5)], [2, 450 * 0.003 / 0.5, 1, 6, "3"]),
    ("06_cloud_ray", "check_2", [machines, lambda r, c, u, n: 1 + -(-math.ceil(r * c / u) // n)],
     [lambda *a: machines(*a, spare=0), lambda r, c, u, n: math.ceil(r * c / u) + 1,
      lambda r, c, u, n: math.floor(r * c / u / n) + 1, lambda r, c, u, n: math.ceil(r * c * u / n) + 1,
      lambda r, c, u, n: math.ceil((math.ceil(r * c / u) + 1) / n), 4]),
    ("06_cloud_ray", "check_3", ["LitServe", "".join(["Lit", "Serve"])], ["Ray Serve", "litserve", 0.001]),
]
