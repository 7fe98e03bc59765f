"""A codebook: every weight is one of 2^b shared values, and the file holds which one.

The values are the centroids that k-means finds, so they lie where the weights are and not on an even grid. They
stay trainable: the gradient of a shared value is the sum of the gradients of all weights that share it.
Book: chapter 3, "A codebook instead of a grid".
"""
import math

import torch
from torch import nn

from .blocks import check_finite, check_kind
from .packing import pack, packed_bytes, unpack
from .stored import FORMS, quantizable, store

__all__ = ["CodebookForm", "assign", "k_means", "quantize_codebook"]


def k_means(values: torch.Tensor, k: int, *, init: str | torch.Tensor = "linear", seed: int = 0,
            iterations: int = 300) -> torch.Tensor:
    """Centroids of `values`: Lloyd's algorithm in one dimension, where sorting once makes each round quick.

    1. Sort the values, and sum them up from the left.
    2. A cluster is a run of neighbours: it ends half-way between its centroid and the next.
    3. Its mean, from two of the sums, is the new centroid. A centroid without values goes to the value that is
       farthest from all.
    4. Repeat from 2 until no run changes.

    Args:    values: of any shape; init: "linear", evenly from the smallest to the largest value, "k-means++", drawn
             with `seed`, or k numbers to start from; iterations: at most so many rounds.
    Returns: float32 of shape (k,), rising. The squared error is never above that of the start.
    Raises:  ValueError for values that are empty or not finite, k < 1, or an unknown init.
    Source:  Lloyd 1982; Han et al. 2016, sec. 3 (linear start); Arthur & Vassilvitskii 2007 (k-means++).
    Equals:  sklearn.cluster.KMeans from the same start, where no cluster is ever empty.
    """
    if type(k) is not int or k < 1 or iterations < 0:
        raise ValueError(f"need k >= 1 centroids and iterations >= 0, whole numbers; got {k!r}, {iterations!r}")
    check_kind(values)
    check_finite(*values.detach().aminmax())
    ordered = values.detach().flatten().sort().values.double()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centroids, before = _start(ordered, k, init, seed), None
    for _ in range(iterations):
        ends = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(ordered)])])
        if before is not None and torch.equal(ends, before):
            break
        before, sizes = ends, ends.diff()
        means = (sums[ends[1:]] - sums[ends[:-1]]) / sizes
        if (empty := sizes == 0).any():
            means[empty] = _farthest(ordered, means[~empty], int(empty.sum()))
        centroids = means.sort().values
    return centroids.float()


def assign(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Which number of the rising `table` is nearest to each value: int32 in the shape of `values`; ties go down."""
    table = table.detach().double()
    return torch.bucketize(values.detach().double(), (table[1:] + table[:-1]) / 2).int()


def _start(ordered: torch.Tensor, k: int, init: str | torch.Tensor, seed: int) -> torch.Tensor:
    if isinstance(init, torch.Tensor) and init.shape == (k,) and torch.isfinite(init).all():
        return init.double().sort().values
    if isinstance(init, str) and init == "linear":
        return torch.linspace(float(ordered[0]), float(ordered[-1]), k, dtype=torch.float64)
    if not isinstance(init, str) or init != "k-means++":
        raise ValueError(f"init must be 'linear', 'k-means++' or {k} finite numbers; got {init!r}")
    generator = torch.Generator().manual_seed(seed)
    chosen = ordered[torch.randint(len(ordered), (1,), generator=generator)]
    distance = (ordered - chosen) ** 2
    for _ in range(k - 1):          # the farther from all chosen ones, the likelier
        reach = distance.cumsum(0)
        place = torch.searchsorted(reach, torch.rand(1, generator=generator, dtype=torch.float64) * reach[-1], right=True)
        chosen = torch.cat([chosen, ordered[place.clamp(max=len(ordered) - 1)]])
        distance = torch.minimum(distance, (ordered - chosen[-1]) ** 2)
    return chosen.sort().values


def _farthest(ordered: torch.Tensor, centroids: torch.Tensor, count: int) -> torch.Tensor:
    """For centroids without values: the values that are farthest from the other centroids, one after the other."""
    distance, found = (ordered - centroids[assign(ordered, centroids).long()]).abs(), []
    for _ in range(count):
        found.append(ordered[distance.argmax()])
        distance = torch.minimum(distance, (ordered - found[-1]).abs())
    return torch.stack(found)


class CodebookForm(nn.Module):
    """A weight as packed codes, and the table of the values that they stand for (a parameter: it is trained).

    Args: shape: of the weight; bits: of a code.
    """

    def __init__(self, shape: list[int], bits: int):
        super().__init__()
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ValueError(f"bits of a codebook must be a whole number from 1 to 8; got {bits!r}")
        self.options = {"shape": list(shape), "bits": bits}
        self.shape, self.bits, self.count = tuple(shape), bits, math.prod(shape)
        self.register_buffer("packed", torch.zeros(packed_bytes(self.count, bits), dtype=torch.uint8))
        self.table = nn.Parameter(torch.zeros(2**bits))
        self.register_load_state_dict_post_hook(_check_loaded)

    @classmethod
    def of(cls, weight: torch.Tensor, bits: int, *, init: str = "linear", seed: int = 0) -> "CodebookForm":
        """The weight, each value replaced by the nearest of 2^bits centroids."""
        form = cls(list(weight.shape), bits)
        form.table = nn.Parameter(k_means(weight, 2**bits, init=init, seed=seed))
        form.packed = pack(assign(weight, form.table), bits)
        return form

    @property
    def codes(self) -> torch.Tensor:
        """Which value of the table each weight has: int32 in the shape of the weight."""
        return unpack(self.packed, self.bits, self.count).reshape(self.shape)

    def decode(self) -> torch.Tensor:
        """The weight, float32; its gradient flows into the table, summed over the weights that share a value."""
        return self.table.index_select(0, self.codes.flatten()).reshape(self.shape)

    def stored_bytes(self) -> int:
        """Bytes of all that is needed to decode: codes and table."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())


def _check_loaded(form: CodebookForm, incompatible_keys) -> None:
    """Raise ValueError for numbers from a file that the form cannot have made."""
    if form.table.dtype != torch.float32 or not torch.isfinite(form.table).all():
        raise ValueError("the values of a codebook must be finite float32 numbers")
    form.codes      # raises where the bytes cannot be unpacked


FORMS["codebook"] = CodebookForm


def quantize_codebook(model: nn.Module, bits: int, *, init: str = "linear", seed: int = 0, skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` whose linear layers and convolutions each share 2^bits values, found by k-means.

    `training.fit` then trains the shared values and the biases; which weight has which value stays.

    Args:   bits: 1 to 8; init, seed: see `k_means`; skip: names of layers that stay float32.
    Raises: ValueError as `quantizable` and `k_means`, and for bits outside 1…8.
    Source: Han et al. 2016, sec. 3.
    """
    return store(model, {name: CodebookForm.of(layer.weight, bits, init=init, seed=seed)
                         for name, layer in quantizable(model, skip=skip).items()})
