"""Right and planted wrong answers to the exercises of 04_low_rank_ranks, for test_exercises.py."""
import torch

NAME = "04_low_rank_ranks"
RESULTS = {NAME: {"judged": {"one rank, whitened": 0.948, "energy": 0.936, "energy, whitened": 0.954, "greedy, whitened": 0.958}}}


def whitened(w, s, r, before=lambda w, s: w * s, after=lambda w, s: w / s):
    u, sigma, vh = torch.linalg.svd(before(w, s), full_matrices=False)
    return after(u[:, :r] * sigma[:r] @ vh[:r], s)


def with_matrices(w, s, r):
    u, sigma, vh = torch.linalg.svd(w @ torch.diag(s), full_matrices=False)
    return u[:, :r] @ torch.diag(sigma[:r]) @ vh[:r] @ torch.diag(1 / s)


def step(table):
    return sorted(table, key=lambda n: (max(0.0, table[n][0]) / table[n][1], -table[n][1]))[0]


def step_by_loop(table):
    free = [n for n, (loss, _) in table.items() if loss <= 0]
    if free:
        return max(free, key=lambda n: table[n][1])
    return min(table, key=lambda n: table[n][0] / table[n][1])


EXERCISES = [
    (NAME, "check_1", [3, 3.0, torch.tensor(3)], [2, 4, 1, 0.96, "3", lambda: 3]),
    (NAME, "check_2", [whitened, with_matrices, lambda w, s, r: whitened(w, 2 * s, r)],
     [lambda w, s, r: whitened(w, torch.ones_like(s), r),                               # the weights, not the outputs
      lambda w, s, r: whitened(w, s, r, after=lambda w, s: w),                          # not taken back
      lambda w, s, r: whitened(w, s, r, after=lambda w, s: w * s),
      lambda w, s, r: whitened(w, s**2, r),                                             # moments, not their root
      lambda w, s, r: whitened(w, 1 / s, r),                                            # the wrong way round
      lambda w, s, r: whitened(w, s, r + 1), lambda w, s, r: whitened(w, s, len(s)),    # not cut
      lambda w, s, r: torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)]),
    (NAME, "check_3", [step, step_by_loop],
     [lambda t: min(t, key=lambda n: t[n][0]),                                          # the saving is forgotten
      lambda t: max(t, key=lambda n: t[n][1]),                                          # the loss is
      lambda t: min(t, key=lambda n: t[n][0] / t[n][1]),                                # a gain counts
      lambda t: max(t, key=step_key(t)), lambda t: min(t, key=lambda n: max(0, t[n][0]) / t[n][1]),     # ties by order
      lambda t: min(t, key=lambda n: (max(0, t[n][0]), -t[n][1])), lambda t: step(t).upper(), "c"]),
    (NAME, "check_4", ["one rank, whitened", "".join(["one rank", ", whitened"])],
     ["greedy, whitened", "energy", "energy, whitened", 0.948, "One rank, whitened"]),
]


def step_key(table):
    return lambda name: max(0, table[name][0]) / table[name][1]
