"""Right and planted wrong answers to the exercises of chapter 3, for test_exercises.py.

RESULTS: by notebook, what the reader's notebook would hold by then. EXERCISES: notebook, checker, right answers (at
least two), wrong answers (at least three).
"""
import math

import pandas as pd
import torch
from course_lib import quantization
from course_lib.intervals import Estimate


def flat(value):
    return Estimate(value, value, value)


def gate(w, s, q_min, q_max):
    q = (w / s).round()
    return ((q >= q_min) & (q <= q_max)).float()


def step_gradient(w, s, q_min, q_max, g):
    v = w.double() / s
    return float((g * torch.where(v.round() < q_min, float(q_min), torch.where(v.round() > q_max, float(q_max), v.round() - v))).sum())


def one_turn(values, centroids):
    near = [min(range(len(centroids)), key=lambda j: abs(x - centroids[j])) for x in values]
    groups = [[x for x, j in zip(values, near) if j == g] for g in range(len(centroids))]
    return [sum(g) / len(g) if g else c for g, c in zip(groups, centroids)]


def summed(codes, gradient, k):
    return torch.zeros(k).index_add(0, codes.flatten(), gradient.flatten())


def language_rounding(row, bits, group, top=lambda bits: 2 ** (bits - 1) - 1):
    blocks = row.reshape(-1, group)
    scale = blocks.abs().amax(dim=1, keepdim=True) / top(bits)
    return ((blocks / scale).round() * scale).flatten()


def signed_rounding(row, bits, group):
    blocks = row.reshape(-1, group)
    scale = blocks.amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((blocks / scale).round() * scale).flatten()


def smallest_batch(a, b, a8, b8):
    return 1 if a8 + b8 < a + b else None if b8 >= b else (a8 - a) // (b - b8) + 1


def slower_layers(f, i):
    return sorted((n for n in f if i[n] > f[n]), key=lambda n: f[n] - i[n])


def kept(w, s, low=-2, high=1, offset=2, pack=quantization.pack):
    """The packed codes, and what they decode to."""
    q = (w / s).round().clamp(low, high).int()
    return pack(q + offset, bits=2), q * s


def highest_first(codes, bits):
    return quantization.pack(torch.cat([codes, torch.zeros(-len(codes) % 4, dtype=torch.int32)]).reshape(-1, 4).flip(1).flatten(), bits)


def article_test(before, after, reference, labels, whole=100):
    first, second, best = ((guess == labels).double().mean().item() for guess in (before, after, reference))
    return whole * (first - second), whole * (before != after).double().mean().item(), best - first <= 0.01


RESULTS = {
    "03_quantization_rounding": {
        "made": dict.fromkeys(["float32", "4 bits", "3 bits", "2 bits", "2 bits, trained"]),
        "validation": {"float32": 0.956, "4 bits": 0.958, "3 bits": 0.950, "2 bits": 0.402, "2 bits, trained": 0.950},
        "bytes_of": {"float32": 1_067_000, "4 bits": 136_000, "3 bits": 103_000, "2 bits": 69_700, "2 bits, trained": 69_700}},
    "03_quantization_integers": {
        "lost": {"CNN": 0.0, "LeNet-300-100": 0.2, "poor": -1.4, "CNN 8-16": 0.0, "unsure": -0.4},
        "time_1": {"CNN": Estimate(0.81, 0.8, 0.83), "LeNet-300-100": Estimate(0.6, 0.59, 0.62),
                   "poor": Estimate(0.5, 0.4, 0.6), "CNN 8-16": Estimate(1.9, 1.8, 2.0), "unsure": Estimate(0.97, 0.9, 1.04)}},
    "03_quantization_training": {"validation": {"4 bits, rounded": 0.95, "2 bits, rounded": 0.4, "float32 (control)": 0.96,
                                                "2 bits, learned step": 0.95, "1 bit, sign": 0.945, "1 bit, learned step": 0.94},
                                 "size_of": {"4 bits, rounded": 136_000, "2 bits, rounded": 69_600, "float32 (control)": 1_067_000,
                                             "2 bits, learned step": 69_400, "1 bit, sign": 35_900, "1 bit, learned step": 35_900}},     # a tie
    "03_quantization_codebooks": {"validation": {"float32": 0.956, "codebook, 4 bits": 0.958, "codebook, 2 bits, trained": 0.94,
                                                 "ternary": 0.908, "GPTQ, 2 bits": 0.956, "signs": 0.828},
                                  "payload": {"float32": 1_066_440, "codebook, 4 bits": 134_932, "codebook, 2 bits, trained": 68_238,
                                              "ternary": 56_520, "GPTQ, 2 bits": 69_830, "signs": 36_555}},
    "03_quantization_language": {
        "byte_from_dram": 243.75, "one_mac": 4.6,
        "grid": {(4, "row"): "a", (4, "32"): "b", (3, "8"): "c", (2, "row"): "d"},
        "lost": {(4, "row"): flat(0.012), (4, "32"): flat(0.01), (3, "8"): flat(0.009), (2, "row"): flat(0.9)},
        "bits_per_weight": {"a": 4.4, "b": 5.0, "c": 7.0, "d": 2.4}.get},
    "03_quantization_practice": {"choices": pd.DataFrame(
        {"bytes": [140_000, 38_000, 39_800, 30_000], "accuracy": [0.955, 0.955, 0.954, 0.93], "time": [1.0, 5.2, 0.8, 0.5]},
        index=["float32", "dynamic", "static", "ruined"])},
}


def mean_bias(weight, rounded, x, rounded_x, bias):
    return bias + torch.stack([(x @ w - rounded_x @ r).mean() for w, r in zip(weight, rounded)])


EXERCISES = [
    ("03_quantization_rounding", "check_1", [1 / 12, torch.tensor(1 / 12), 2 * 0.5**3 / 3],
     [1 / 3, 1 / 4, 1 / 24, 12**-0.5, 0, "1 / 12"]),
    ("03_quantization_rounding", "check_2",
     [lambda low, high, bits: ((max(high, 0) - min(low, 0)) / (2**bits - 1),
                               round(-min(low, 0) / ((max(high, 0) - min(low, 0)) / (2**bits - 1)))),
      lambda low, high, bits: ((max(high, 0) - min(low, 0)) / (2**bits - 1),
                               math.floor(-min(low, 0) * (2**bits - 1) / (max(high, 0) - min(low, 0)) + 0.5))],
     [lambda low, high, bits: ((high - low) / (2**bits - 1), round(-low / ((high - low) / (2**bits - 1)))),   # not stretched
      lambda low, high, bits: ((max(high, 0) - min(low, 0)) / 2**bits,
                               round(-min(low, 0) / ((max(high, 0) - min(low, 0)) / 2**bits))),                # one step too many
      lambda low, high, bits: ((max(high, 0) - min(low, 0)) / (2**bits - 1),
                               -min(low, 0) / ((max(high, 0) - min(low, 0)) / (2**bits - 1))),                 # not a whole number
      lambda low, high, bits: ((max(high, 0) - min(low, 0)) / (2**bits - 1),
                               round(min(low, 0) / ((max(high, 0) - min(low, 0)) / (2**bits - 1)))),           # its sign
      lambda low, high, bits: ((max(high, 0) - min(low, 0)) / (2**bits - 1),
                               int(-min(low, 0) / ((max(high, 0) - min(low, 0)) / (2**bits - 1)))),            # cut off, not rounded
      (0.1857, 2)]),
    ("03_quantization_rounding", "check_3",
     [lambda b, g, s: b + (s + b) / g, lambda b, g, s: (g * b + s + b) / g],
     [lambda b, g, s: b + s / g,                # the zero point is forgotten
      lambda b, g, s: b + s + b,                # for each weight, not for each group
      lambda b, g, s: b * g + s + b,            # of the group
      lambda b, g, s: b, lambda b, g, s: b + (s + b) * g, 4.625]),
    ("03_quantization_rounding", "check_4",
     [lambda c: [a + 4 * b + 16 * d + 64 * e for a, b, d, e in zip(c[::4], c[1::4], c[2::4], c[3::4])],
      lambda c: [int("".join(f"{x:02b}" for x in reversed(c[i:i + 4])), 2) for i in range(0, len(c), 4)]],
     [lambda c: [int("".join(f"{x:02b}" for x in c[i:i + 4]), 2) for i in range(0, len(c), 4)],     # the first on top
      lambda c: [c[0] + 4 * c[1] + 16 * c[2] + 64 * c[3]],                                          # the first byte only
      lambda c: [sum(x << p for p, x in enumerate(c[i:i + 4])) for i in range(0, len(c), 4)],       # one bit for each
      lambda c: list(c), [1]]),
    ("03_quantization_rounding", "check_5", ["2 bits, trained", "".join(["2 bits,", " trained"])],
     ["3 bits", "4 bits", "float32", "2 bits", 0.95]),
    ("03_quantization_integers", "check_1",
     [lambda b: 1 / 12 / (2**b - 1) ** 2, lambda b: (1 / (2**b - 1)) ** 2 / 12],
     [lambda b: 12 * (2**b - 1) ** 2,                       # upside down
      lambda b: 1 / (12 * (2**b - 1)),                      # a step, not its square
      lambda b: 1 / (12 * 4**b),                            # steps between codes, not codes
      lambda b: 1 / (2**b - 1) ** 2,                        # the largest error, not the mean one
      1 / (12 * 255**2)]),
    ("03_quantization_integers", "check_2",
     [lambda weight, bias, factor, shift: (weight * factor, bias + weight @ shift),
      lambda weight, bias, factor, shift: (weight @ torch.diag(factor), (weight * shift).sum(1) + bias)],
     [lambda weight, bias, factor, shift: (weight * factor, bias + shift[:1]),              # not through the weight
      lambda weight, bias, factor, shift: (weight * factor, bias + (weight * factor) @ shift),      # the shift comes after the factor
      lambda weight, bias, factor, shift: (weight * factor, bias),                          # the shift is forgotten
      lambda weight, bias, factor, shift: (weight * bias[:, None], bias + weight @ shift),  # outputs instead of inputs
      lambda weight, bias, factor, shift: (weight.mul_(factor), bias + weight @ shift)]),   # works on its input
    ("03_quantization_integers", "check_3",
     [lambda acc, s_x, s_w, s_y, z_y, relu: [min(max(round(a * s_x * s_w / s_y) + z_y, z_y if relu else 0), 255) for a in acc],
      lambda acc, s_x, s_w, s_y, z_y, relu: torch.clamp(
          torch.round(torch.tensor(acc, dtype=torch.float64) * (s_x * s_w / s_y)) + z_y, z_y if relu else 0, 255).int().tolist()],
     [lambda acc, s_x, s_w, s_y, z_y, relu: [min(max(int(a * s_x * s_w / s_y) + z_y, z_y if relu else 0), 255) for a in acc],
      lambda acc, s_x, s_w, s_y, z_y, relu: [min(max(round(a * s_x * s_w / s_y) + z_y, 0), 255) for a in acc],  # ReLU is forgotten
      lambda acc, s_x, s_w, s_y, z_y, relu: [min(max(round(a * s_x * s_w / s_y), 0), 255) + z_y for a in acc],  # clamps too early
      lambda acc, s_x, s_w, s_y, z_y, relu: [max(round(a * s_x * s_w / s_y) + z_y, z_y if relu else 0) for a in acc],   # no upper end
      lambda acc, s_x, s_w, s_y, z_y, relu: [min(max(round(a * s_x * s_w) + z_y, z_y if relu else 0), 255) for a in acc],
      11]),
    ("03_quantization_integers", "check_4",
     [lambda bits, x, w: (2 ** (bits - 1) - 1) // (x * w), lambda bits, x, w: int((2 ** (bits - 1) - 1) / (x * w))],
     [lambda bits, x, w: 2**bits // (x * w),                # no sign
      lambda bits, x, w: 2 ** (bits - 1) // (x * w),        # one too many where it divides
      lambda bits, x, w: (2 ** (bits - 1) - 1) / (x * w),   # parts of an input
      lambda bits, x, w: (2 ** (bits - 1) - 1) // (x + w), 66_311]),
    ("03_quantization_integers", "check_5", [["CNN", "LeNet-300-100"], [*"CNN LeNet-300-100".split()]],
     [["CNN", "LeNet-300-100", "unsure"],                   # its interval holds 1
      ["CNN", "LeNet-300-100", "poor"],                     # fast, and wrong
      ["LeNet-300-100"], [], ["CNN 8-16"], "CNN"]),
    ("03_quantization_training", "check_1", [3 / 5, 0.6], [2 / 5, 1 / 2, 0.8, 3, "3/5"]),
    ("03_quantization_training", "check_2", [gate, lambda w, s, low, high: ((w / s).round() == (w / s).round().clamp(low, high)) * 1.0],
     [lambda w, s, low, high: ((w / s >= low) & (w / s <= high)).float(), lambda w, s, low, high: torch.ones_like(w),
      lambda w, s, low, high: 1 - gate(w, s, low, high), lambda w, s, low, high: gate(w, 1.0, low, high), 1.0]),
    ("03_quantization_training", "check_3", [step_gradient, lambda w, s, low, high, g: float(
        (g * ((w / s).round().clamp(low, high) - (w / s) * gate(w, s, low, high))).sum())],
     [lambda w, s, low, high, g: -step_gradient(w, s, low, high, g),
      lambda w, s, low, high, g: step_gradient(w, s, low, high, torch.ones_like(g)),
      lambda w, s, low, high, g: float((g * (w / s).round().clamp(low, high)).sum()),
      lambda w, s, low, high, g: float((g * ((w / s).round() - w / s)).sum()), 0.0]),
    ("03_quantization_training", "check_4", [lambda a: a["float, longer"] - a["trained"], lambda a: -(a["trained"] - a["float, longer"])],
     [lambda a: a["float"] - a["trained"], lambda a: a["float"] - a["rounded"], lambda a: a["trained"] - a["float, longer"], 0.005]),
    ("03_quantization_training", "check_5", ["1 bit, learned step", "1 bit, sign"],
     ["2 bits, learned step", "2 bits, rounded", "4 bits, rounded", "float32 (control)"]),
    ("03_quantization_training", "check_6",
     [kept, lambda w, s: ((packed := quantization.pack(torch.tensor([min(max(round(float(x) / s), -2), 1) + 2 for x in w]), bits=2)),
                          quantization.unpack(packed, 2, len(w)).float() * s - 2 * s)],
     [lambda w, s: kept(w, s, offset=0),                                    # a code below 0 cannot be packed
      lambda w, s: kept(w, s, low=-1),                                      # three values instead of four
      lambda w, s: (kept(w, s)[0], w),                                      # the float weights, not what the bytes say
      lambda w, s: (kept(w, s)[0], quantization.unpack(kept(w, s)[0], 2, len(w)) * s),      # the 2 stays in
      lambda w, s: (kept(w, s)[0], (quantization.unpack(kept(w, s)[0], 2, 4 * len(kept(w, s)[0])) - 2) * s),    # a weight for each place
      lambda w, s: kept(w, s, pack=highest_first),                          # the first code on top
      lambda w, s: kept(w, s, pack=lambda codes, bits: codes),              # a byte for each code
      lambda w, s: (quantization.pack(((w / s).floor().clamp(-2, 1) + 2).int(), 2), (w / s).floor().clamp(-2, 1) * s),     # cut off
      lambda w, s: kept(w, float(w.max() - w.min()) / 3),                   # a step from min and max, not the learned one
      lambda w, s: kept(w.div_(s), 1.0), 0]),
    ("03_quantization_codebooks", "check_1", [0.8, 3.2 / 4], [0.95, 1.5, 0.75, 3.2, -0.45, -0.8, [0.8]]),
    ("03_quantization_codebooks", "check_2",
     [one_turn, lambda v, c: [sum(g) / len(g) if (g := [x for x in v if min(c, key=lambda d: abs(x - d)) == a]) else a for a in c]],
     [lambda v, c: sorted(one_turn(v, c)),                                  # the order is lost
      lambda v, c: [m for m in one_turn(v, c) if m not in c],               # a centroid without numbers is dropped
      lambda v, c: [sum(g) / max(1, len(g)) for g in [[x for x in v if abs(x - a) == min(abs(x - d) for d in c)] for a in c]],
      lambda v, c: one_turn(v, one_turn(v, c)),                             # two turns
      lambda v, c: [min(range(len(c)), key=lambda j: abs(x - c[j])) for x in v],        # the codes
      lambda v, c: c, [1.0, 9.5, 20.0]]),
    ("03_quantization_codebooks", "check_3",
     [summed, lambda codes, g, k: torch.stack([(g * (codes == j)).sum() for j in range(k)])],
     [lambda codes, g, k: summed(codes, g, k) / torch.bincount(codes.flatten(), minlength=k).clamp(min=1),      # the mean
      lambda codes, g, k: summed(codes, g, int(codes.max()) + 1)[codes.unique()],       # without values that no weight has
      lambda codes, g, k: torch.zeros(k).index_copy(0, codes.flatten(), g.flatten()),   # the last one only
      lambda codes, g, k: summed(codes, g.abs(), k), lambda codes, g, k: g, lambda codes, g, k: summed(codes, g, k).tolist()]),
    ("03_quantization_codebooks", "check_4", ["codebook, 2 bits, trained", "codebook, 2 bits" + ", trained"],
     ["GPTQ, 2 bits", "signs", "float32", "ternary", "codebook, 4 bits", 0.94]),
    ("03_quantization_codebooks", "check_5",
     [mean_bias, lambda w, r, x, rx, b: b + x.mean(0) @ w.T - rx.mean(0) @ r.T],
     [lambda w, r, x, rx, b: mean_bias(w, r, x, x, b),                      # the inputs were rounded, too
      lambda w, r, x, rx, b: 2 * b - mean_bias(w, r, x, rx, b),             # the other way round
      lambda w, r, x, rx, b: mean_bias(w, r, x, rx, b) - b,                 # what is missing, not the bias
      lambda w, r, x, rx, b: b + (x @ w.T - rx @ r.T).sum(0),               # not a mean
      lambda w, r, x, rx, b: b + (x @ w.T - rx @ r.T).mean(),               # one for all outputs
      lambda w, r, x, rx, b: b.add_((x @ w.T - rx @ r.T).mean(0)), lambda w, r, x, rx, b: b]),
    ("03_quantization_language", "check_1",
     [0.21634, (2 - 0.75 * math.log2(3)) / 3.75],
     [(2 - 0.75 * math.log2(3)) / 2.75,                             # the end left out
      (2 - 0.75 * math.log2(3)) / 3.75 * math.log(2),               # nats
      0.75 * math.log2(4 / 3) / 4 + 0.25 * 2 / 3,                   # an average of ratios
      2 - 0.75 * math.log2(3), "0.216"]),                           # per sentence
    ("03_quantization_language", "check_2",
     [lambda bits, group, scale_bits, symmetric: bits + (scale_bits + bits * (not symmetric)) / group,
      lambda b, g, s, symmetric: (b * g + s + (0 if symmetric else b)) / g],
     [lambda b, g, s, symmetric: b, lambda b, g, s, symmetric: b + s / g, lambda b, g, s, symmetric: b + (s + b) / g,
      lambda b, g, s, symmetric: b + 32 / g]),
    ("03_quantization_language", "check_3",
     [language_rounding, lambda r, b, g: torch.cat([language_rounding(part, b, g) for part in r.split(g)])],
     [lambda r, b, g: language_rounding(r, b, len(r)),              # one scale for the row
      lambda r, b, g: language_rounding(r, b, g, top=lambda b: (2**b - 1) / 2),
      signed_rounding, lambda r, b, g: r, lambda r, b, g: language_rounding(r, b, g).reshape(-1, g)]),
    ("03_quantization_language", "check_4",
     [lambda bits: bits * 243.75 / (8 * 4.6), lambda bits: 243.75 / 4.6 * (bits / 8)],
     [lambda bits: bits * 243.75 / 4.6, lambda bits: 8 * 4.6 / (bits * 243.75), lambda bits: 243.75 / 4.6,
      lambda bits: round(bits / 8 * 243.75 / 4.6)]),
    ("03_quantization_language", "check_5", [(4, "32"), tuple([4, "32"])], [(2, "row"), (4, "row"), (3, "8"), "32", 4]),
    ("03_quantization_language", "check_6",
     [lambda n, g, big: n * big**2 / (g * big**2 + n - g), lambda n, g, big: 1 / (g / n + (1 - g / n) / big**2)],
     [lambda n, g, big: n / g,                                                          # as if the others had no error
      lambda n, g, big: n * big / (g * big + n - g),                                    # steps, not squares
      lambda n, g, big: (n * big**2 / (g * big**2 + n - g)) ** 0.5, lambda n, g, big: big**2,       # the large one alone has the large error
      lambda n, g, big: n * big**2 / (big**2 + n - 1), lambda n, g, big: (g * big**2 + n - g) / (n * big**2),
      lambda n, g, big: (n // g) * big**2 / (g * big**2 + n // g - g), lambda n, g, big: n * big**2 / (g * big**2 + n), 24.4]),
    ("03_quantization_practice", "check_1", [20, 20.0], [19, 21, 24, 8]),     # 24: without the bias
    ("03_quantization_practice", "check_2",
     [smallest_batch, lambda a, b, a8, b8: 1 if a8 + b8 < a + b else None if b8 >= b else math.floor((a8 - a) / (b - b8)) + 1],
     [lambda a, b, a8, b8: (a8 - a) / (b - b8),                                     # a fraction, and divides by zero
      lambda a, b, a8, b8: -(-(a8 - a) // (b - b8)) if b8 < b else None,            # equality counts as paying
      lambda a, b, a8, b8: (a8 - a) // (b - b8) + 1 if b8 < b else None]),          # one image may be enough
    ("03_quantization_practice", "check_3",
     [slower_layers, lambda f, i: [n for n in sorted(f, key=lambda n: f[n] - i[n]) if i[n] > f[n]]],
     [lambda f, i: sorted((n for n in f if i[n] > f[n]), key=lambda n: -i[n] / f[n]),      # by the ratio
      lambda f, i: [n for n in f if i[n] > f[n]],                                   # in no order
      lambda f, i: sorted(f, key=lambda n: f[n] - i[n])]),                          # faster layers too
    ("03_quantization_practice", "check_5",
     [article_test, lambda b, a, r, y: (100 * (int((b == y).sum()) - int((a == y).sum())) / len(y), 100 * int((a != b).sum()) / len(y),
                                        100 * int((r == y).sum()) - 100 * int((b == y).sum()) <= len(y))],
     [lambda b, a, r, y: article_test(b, a, r, y, whole=1),                                 # fractions
      lambda b, a, r, y: (-article_test(b, a, r, y)[0], *article_test(b, a, r, y)[1:]),     # a gain for a cost
      lambda b, a, r, y: (article_test(b, a, r, y)[0], 100 * ((b == y) != (a == y)).double().mean().item(),
                          article_test(b, a, r, y)[2]),                                     # from wrong to wrong is no change
      lambda b, a, r, y: (*article_test(b, a, r, y)[:2], article_test(a, b, r, y)[2]),      # judges the int8 network
      lambda b, a, r, y: (*article_test(b, a, r, y)[:2], abs(article_test(b, a, r, y)[0]) <= 1),    # worth it since int8 cost nothing
      lambda b, a, r, y: (*article_test(b, a, r, y)[:2], article_test(r, a, b, y)[2]),      # reference and network exchanged
      lambda b, a, r, y: article_test(b, a, r, y)[:2], True]),
    ("03_quantization_practice", "check_4", ["static", "sta" + "tic"], ["dynamic", "float32", "ruined"]),
]
