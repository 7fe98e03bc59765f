"""Convolutions as chains of smaller ones: three ways to lay a kernel out as a matrix, or as a core between two matrices.

A kernel has four dimensions, (outputs, inputs, height, width), and a matrix has two. Which two one makes of the four
decides what the factors are:

    channel    (outputs) × (inputs·height·width): a convolution to r channels, then 1×1 to all outputs
    spatial    (inputs·height) × (outputs·width): a column k×1 to r channels, then a row 1×k
    tucker     1×1 to fewer inputs, a small kernel (the core), 1×1 to all outputs

Book: chapter 4, "Three ways to split a kernel".
"""
import torch

from .svd import check_matrix, check_rank, split_matrix

__all__ = ["METHODS", "join_kernels", "largest_ranks", "matricise", "split_kernel", "tucker"]

METHODS = ("channel", "spatial", "tucker")


def matricise(kernel: torch.Tensor, method: str) -> torch.Tensor:
    """The kernel (outputs, inputs, height, width) as the matrix whose SVD the method "channel" or "spatial" takes.

    Source: spatial: Jaderberg et al. 2014, scheme 2; as AIMET lays it out. channel: Zhang et al. 2016, sec. 2.
    """
    _check_shape(kernel)
    if method == "channel":
        return kernel.flatten(1)
    if method == "spatial":
        return kernel.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    raise ValueError(f"a kernel becomes a matrix by 'channel' or 'spatial'; got {method!r}")


def largest_ranks(kernel: torch.Tensor, method: str) -> tuple[int, ...]:
    """The largest rank, or for "tucker" the two (outputs, inputs), at which nothing is lost: what the matrix's shape allows.

    Raises: ValueError for another shape or an unknown method.
    """
    _check_shape(kernel)
    outputs, inputs, height, width = kernel.shape
    channel = min(outputs, inputs * height * width)
    full = {"channel": (channel,), "spatial": (min(inputs * height, outputs * width),),
            "tucker": (channel, min(inputs, outputs * height * width))}
    if method not in full:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    return full[method]


def split_kernel(kernel: torch.Tensor, rank: int | tuple[int, int], method: str,
                 moment: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The kernels of the small convolutions, in the order in which they run, that together come nearest to `kernel`.

    Args:    kernel: (outputs, inputs, height, width); rank: a number, or (outputs, inputs) for "tucker";
             moment: X Xᵀ of the patches, for "channel" only: see `split_matrix`.
    Returns: channel: (r, inputs, height, width), (outputs, r, 1, 1); spatial: (r, inputs, height, 1), (outputs, r, 1, width);
             tucker: (r_in, inputs, 1, 1), (r_out, r_in, height, width), (outputs, r_out, 1, 1).
    Raises:  ValueError for a rank out of range, an unknown method, or a moment that the method cannot use.
    """
    _check_shape(kernel)
    outputs, inputs, height, width = kernel.shape
    if moment is not None and method != "channel":
        raise ValueError(f"inputs can be taken into account in a linear layer or by 'channel' only; got {method!r}")
    if method == "tucker":
        core, out_factor, in_factor = tucker(kernel, rank)
        return [in_factor.T[:, :, None, None], core, out_factor[:, :, None, None]]
    check_rank(rank, *largest_ranks(kernel, method))
    left, right = split_matrix(matricise(kernel, method), rank, moment)
    if method == "channel":
        return [right.reshape(rank, inputs, height, width), left[:, :, None, None]]
    return [left.reshape(inputs, height, rank).permute(2, 0, 1)[..., None],
            right.reshape(rank, outputs, width).permute(1, 0, 2)[:, :, None]]


def tucker(kernel: torch.Tensor, ranks: tuple[int, int], *, sweeps: int = 100, tolerance: float = 1e-10
           ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tucker-2: kernel ≈ core ×₀ U_out ×₁ U_in, with orthonormal columns, found by alternating SVDs.

    1. Start with the first left singular vectors of the kernel, unfolded along its outputs and along its inputs.
    2. Compress the inputs with U_in, and take the best U_out for what is left; then the other way round.
    3. Repeat until the core grows no more: the larger its norm, the smaller the error.

    Args:    ranks: (outputs, inputs).
    Returns: core (r_out, r_in, height, width), U_out (outputs, r_out), U_in (inputs, r_in).
    Raises:  ValueError for ranks out of range.
    Source:  Kim et al. 2016, sec. 3.1; higher-order orthogonal iteration, De Lathauwer et al. 2000.
    Equals:  tensorly.decomposition.partial_tucker(kernel, rank=ranks, modes=[0, 1]), reconstructed.
    """
    check_matrix(matricise(kernel, "channel"))
    if not isinstance(ranks, (tuple, list)) or len(ranks) != 2:
        raise ValueError(f"'tucker' needs two ranks, (outputs, inputs); got {ranks!r}")
    for rank, largest, what in zip(ranks, largest_ranks(kernel, "tucker"), ("the rank of the outputs", "the rank of the inputs")):
        check_rank(rank, largest, what)
    w = kernel.detach().double()
    u_out, u_in = (_leading(w.movedim(side, 0), rank) for side, rank in enumerate(ranks))
    norm = 0.0
    for _ in range(sweeps):
        u_out = _leading(torch.einsum("oihw,ir->orhw", w, u_in), ranks[0])
        u_in = _leading(torch.einsum("oihw,or->irhw", w, u_out), ranks[1])
        core = torch.einsum("oihw,or,is->rshw", w, u_out, u_in)
        norm, before = float(core.norm()), norm
        if norm - before <= tolerance * norm:
            break
    return tuple(part.to(kernel.dtype) for part in (core, u_out, u_in))


def _leading(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """The first left singular vectors of the tensor, laid out as (first dimension) × (all others), filled up where there are too few."""
    matrix = tensor.flatten(1)
    return torch.linalg.svd(matrix, full_matrices=rank > min(matrix.shape))[0][:, :rank]


def join_kernels(kernels: list[torch.Tensor]) -> torch.Tensor:
    """The one kernel that the chain of small convolutions stands for, (outputs, inputs, height, width).

    Raises: ValueError where two that follow each other are both higher, or both wider, than 1.
    """
    joined = kernels[0]
    for kernel in kernels[1:]:
        # where one of the two is 1 high (wide), the joined kernel is as high (wide) as the other
        if any(1 not in pair for pair in zip(joined.shape[2:], kernel.shape[2:])):
            raise ValueError(f"kernels {tuple(joined.shape)} and {tuple(kernel.shape)} are no factors of one convolution")
        joined = torch.einsum("orab,rihw->oihawb", kernel, joined)
        o, i, h, a, w, b = joined.shape
        joined = joined.reshape(o, i, h * a, w * b)
    return joined


def _check_shape(kernel: torch.Tensor) -> None:
    if kernel.dim() != 4:
        raise ValueError(f"a kernel has the shape (outputs, inputs, height, width); got {tuple(kernel.shape)}")
