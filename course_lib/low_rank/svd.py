"""The singular value decomposition: a matrix as a sum of simple ones, the most important first.

A = U Σ Vᵀ. U and V are orthogonal, Σ is diagonal and holds the singular values, the largest first. Whoever keeps only
the first r of them has the best matrix of rank r that there is, and two thin factors in place of a thick matrix.
Book: chapter 4, "The best approximation of rank r".
"""
import torch

__all__ = ["break_even_rank", "energy_kept", "rank_for_energy", "singular_values", "split_matrix",
           "truncated_svd"]


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first `rank` terms of A = U Σ Vᵀ.

    Args:    matrix: (m, n), finite floats; rank: from 1 to min(m, n).
    Returns: U (m, rank), the singular values (rank,) and Vᵀ (rank, n), of the matrix's data type; computed in float64.
             U · diag(values) · Vᵀ is the best approximation of this rank; its error, as Frobenius norm, is the root of
             the sum of the squares of the dropped singular values.
    Raises:  ValueError for another shape, a rank out of range, or numbers that are not finite.
    Source:  Eckart & Young 1936. Equals torch.linalg.svd, cut; unique but for signs where the values differ.
    """
    check_matrix(matrix)
    check_rank(rank, min(matrix.shape))
    u, values, vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    return tuple(part.to(matrix.dtype) for part in (u[:, :rank], values[:rank], vh[:rank]))


def split_matrix(matrix: torch.Tensor, rank: int, moment: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors, (m, rank) and (rank, n), whose product is nearest to the matrix, or to what it makes of its inputs.

    1. Only with a moment C = X Xᵀ of the inputs, C = L Lᵀ: take the first `rank` left singular vectors U of A·L, and
       put U Uᵀ A in place of A. Then U Uᵀ A·L is the best approximation of A·L, and U Uᵀ A·X that of the outputs A·X.
    2. A = U Σ Vᵀ, cut after `rank` terms.
    3. Both factors take √Σ, so that neither has much larger weights than the other: (U √Σ) · (√Σ Vᵀ).

    Args:   moment: X Xᵀ of the inputs (n, n), or any multiple of it.
    Raises: ValueError as `truncated_svd`, or for a moment that is not a finite symmetric matrix (n, n) without negative eigenvalues.
    Source: whitening: Wang et al. 2025 (SVD-LLM), sec. 3.2, which cuts A·L = U Σ Vᵀ and takes L⁻¹ back: Σ Vᵀ L⁻¹ = Uᵀ A, so
            that no inverse is needed.
    """
    check_matrix(matrix)
    nearest = matrix.detach().double()
    if moment is not None:
        u, _, _ = truncated_svd(nearest @ _root(moment, matrix.shape[1]), rank)
        nearest = u @ (u.T @ nearest)
    u, values, vh = truncated_svd(nearest, rank)
    return (u * values.sqrt()).to(matrix.dtype), (values.sqrt()[:, None] * vh).to(matrix.dtype)


def singular_values(matrix: torch.Tensor, moment: torch.Tensor | None = None) -> torch.Tensor:
    """All singular values of the matrix, the largest first, in float64; with a moment, those that `split_matrix` cuts then.

    Raises: ValueError as `split_matrix`.
    """
    check_matrix(matrix)
    matrix = matrix.detach().double()
    return torch.linalg.svdvals(matrix if moment is None else matrix @ _root(moment, matrix.shape[1]))


def _root(moment: torch.Tensor, n: int, *, smallest: float = 1e-8) -> torch.Tensor:
    """L with L Lᵀ = C, symmetric, in float64.

    Inputs that never occur (a pixel that is always black) have eigenvalue 0. They count a little, as if it were `smallest`
    times the largest: where what does occur leaves a choice, the weights decide.
    """
    c = moment.detach().double()
    if c.shape != (n, n) or not torch.isfinite(c).all() or not torch.allclose(c, c.T, rtol=1e-4, atol=1e-6 * float(c.abs().max())):
        raise ValueError(f"the moment must be finite, symmetric and of shape {(n, n)}; got shape {tuple(moment.shape)}")
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    if not values[-1] > 0 or values[0] < -1e-4 * values[-1]:
        raise ValueError("the moment of inputs cannot be all zero or have negative eigenvalues; is it X·Xᵀ?")
    return vectors * values.clamp(min=smallest * float(values[-1])).sqrt() @ vectors.T


def energy_kept(values: torch.Tensor) -> torch.Tensor:
    """Share of the squared sum that the first 1, 2, … singular values hold, shape as `values`, from 0 to 1."""
    sums = (values.double() ** 2).cumsum(0)
    return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)


def rank_for_energy(values: torch.Tensor, energy: float) -> int:
    """The smallest rank that keeps at least this share of the squared singular values.

    Raises: ValueError unless 0 < energy <= 1.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be a fraction above 0 and at most 1, e.g. 0.9; got {energy!r}")
    return int((energy_kept(values) < energy - 1e-12).sum()) + 1


def break_even_rank(m: int, n: int) -> int:
    """The largest rank at which two factors, (m, r) and (r, n), have fewer numbers than the matrix (m, n); 0 if none has.

    r (m + n) < m n, so r < m n / (m + n).
    """
    if min(m, n) < 1:
        raise ValueError(f"a matrix has at least one row and one column; got {m} and {n}")
    return (m * n - 1) // (m + n)


def check_matrix(matrix: torch.Tensor) -> None:
    """Raise ValueError unless it is a matrix of finite floats."""
    if matrix.dim() != 2 or not matrix.numel() or not matrix.is_floating_point():
        raise ValueError(f"need a matrix of floats; got shape {tuple(matrix.shape)}, {matrix.dtype}")
    if not torch.isfinite(matrix).all():
        raise ValueError("the weights are not all finite (did training diverge?)")


def check_rank(rank: int, largest: int, what: str = "rank") -> None:
    """Raise ValueError unless it is a whole number from 1 to `largest`."""
    if type(rank) is not int or not 1 <= rank <= largest:
        raise ValueError(f"{what} must be a whole number from 1 to {largest}; got {rank!r}")
