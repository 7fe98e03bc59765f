"""Right and planted wrong answers to the exercises of "Low rank: splitting a convolution", for test_exercises.py."""
import torch


def from_loop(o, i, k):
    return max((r for r in range(o * i * k * k + 1) if r * (i * k * k + o) < o * i * k * k), default=0)


def matrix_by_movement(kernel):
    return kernel.movedim(0, 2).flatten(2).flatten(0, 1)


def join_by_matrices(column, row):
    (r, i, k, _), o = column.shape, row.shape[0]
    product = column.reshape(r, i * k).T @ row.transpose(0, 1).reshape(r, o * k)
    return product.reshape(i, k, o, k).permute(2, 0, 1, 3)


def join_in_place(column, row):
    column *= 2
    return torch.einsum("oqb,qia->oiab", row[:, :, 0], column[..., 0])


def tucker_work(o, i, k, side, r_out, r_in, *, first=None, core=None, last=None):
    out = side - k + 1
    return i * r_in * (first or side) ** 2 + r_in * r_out * k * k * (core or out) ** 2 + r_out * o * (last or out) ** 2


RESULTS = {
    "04_low_rank_convolutions": {
        "validation": {"CNN 32-64": 0.976, "channel": 0.970, "spatial": 0.966, "tucker": 0.975, "CNN 8-16 from scratch": 0.964},
        "single": {"CNN 32-64": 1.0, "channel": 0.7, "spatial": 0.5, "tucker": 0.8, "CNN 8-16 from scratch": 0.3},
    },
}

STEM = "04_low_rank_convolutions"

EXERCISES = [
    (STEM, "check_1",
     [lambda o, i, k: (o * i * k**2 - 1) // (i * k**2 + o), from_loop],
     [lambda o, i, k: o * i * k * k // (i * k * k + o),                     # at equality nothing is saved
      lambda o, i, k: o * i * k * k / (i * k * k + o),                      # not a whole number
      lambda o, i, k: (o * i * k * k - 1) // (k * (i + o)),                 # the spatial split
      lambda o, i, k: (o * i * k * k - 1) // (i + o),                       # the field forgotten
      lambda o, i, k: min(o, i * k * k), 52]),
    (STEM, "check_2",
     [lambda kernel: kernel.permute(1, 2, 0, 3).reshape(kernel.shape[1] * kernel.shape[2], -1), matrix_by_movement],
     [lambda kernel: kernel.reshape(kernel.shape[1] * kernel.shape[2], -1),  # reshape alone
      lambda kernel: kernel.flatten(1),                                     # the channel split's
      lambda kernel: kernel.permute(0, 2, 1, 3).reshape(kernel.shape[1] * kernel.shape[2], -1),
      lambda kernel: kernel.permute(1, 2, 0, 3).reshape(kernel.shape[1] * kernel.shape[2], -1).T,
      lambda kernel: kernel.permute(2, 1, 0, 3).reshape(kernel.shape[1] * kernel.shape[2], -1),
      lambda kernel: kernel.permute(1, 3, 0, 2).reshape(kernel.shape[1] * kernel.shape[3], -1)]),
    (STEM, "check_3",
     [lambda column, row: torch.einsum("oqb,qia->oiab", row[:, :, 0], column[..., 0]), join_by_matrices],
     [lambda column, row: torch.einsum("oqb,qia->oiba", row[:, :, 0], column[..., 0]),      # height and width changed
      lambda column, row: torch.einsum("oqb,qia->ioab", row[:, :, 0], column[..., 0]),
      lambda column, row: column @ row,
      lambda column, row: torch.einsum("ob,ia->oiab", row[:, 0, 0], column[0, ..., 0]),     # the first middle channel only
      lambda column, row: torch.einsum("oqb,qia->oqiab", row[:, :, 0], column[..., 0]).mean(1),
      join_in_place]),
    (STEM, "check_4",
     [tucker_work, lambda o, i, k, side, r_out, r_in: side**2 * i * r_in + (side + 1 - k)**2 * r_out * (r_in * k * k + o)],
     [lambda o, i, k, side, r_out, r_in: tucker_work(o, i, k, side, r_out, r_in, first=side - k + 1),
      lambda o, i, k, side, r_out, r_in: tucker_work(o, i, k, side, r_out, r_in, last=side),
      lambda o, i, k, side, r_out, r_in: tucker_work(o, i, k, side, r_in, r_out),           # ranks changed
      lambda o, i, k, side, r_out, r_in: 2 * tucker_work(o, i, k, side, r_out, r_in),
      lambda o, i, k, side, r_out, r_in: i * r_in + r_in * r_out * k * k + r_out * o]),     # weights
    (STEM, "check_5", ["spatial", "".join(["spa", "tial"])], ["CNN 32-64", "channel", "tucker", "CNN 8-16 from scratch", 0.5, 0.966]),
]
