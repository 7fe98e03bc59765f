"""The truncated SVD is the best approximation of its rank, of the weights or of the outputs, and it is the libraries' own."""
import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd

from course_lib import low_rank
from course_lib.low_rank import break_even_rank, energy_kept, rank_for_energy, singular_values, split_matrix, truncated_svd

sizes, seeds = st.integers(1, 9), st.integers(0, 10_000)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def joined(factors):
    left, right = factors
    return left @ right


def error(matrix, other, inputs=None):
    """Squared Frobenius norm of the difference, or of what the difference makes of the inputs."""
    difference = matrix - other
    return float(((difference if inputs is None else difference @ inputs) ** 2).sum())


# --- truncated SVD ---

def test_two_by_two_by_hand():
    """AᵀA = [[25, 20], [20, 25]] has the eigenvalues 45 and 5, with the vectors (1, 1) and (1, −1)."""
    matrix = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)
    assert singular_values(matrix).tolist() == pytest.approx([45**0.5, 5**0.5])
    u, values, vh = truncated_svd(matrix, 1)
    assert values.tolist() == pytest.approx([45**0.5])
    torch.testing.assert_close(u * values @ vh, torch.tensor([[1.5, 1.5], [4.5, 4.5]], dtype=torch.float64))
    assert error(matrix, u * values @ vh) == pytest.approx(5)
    assert energy_kept(singular_values(matrix)).tolist() == pytest.approx([0.9, 1])
    assert [rank_for_energy(singular_values(matrix), e) for e in (0.1, 0.89, 0.9, 0.91, 1)] == [1, 1, 1, 2, 2]


@given(m=sizes, n=sizes, seed=seeds, data=st.data())
def test_the_squared_error_is_the_sum_of_the_dropped_squares(m, n, seed, data):
    rank = data.draw(st.integers(1, min(m, n)))
    matrix = random(m, n, seed=seed)
    u, values, vh = truncated_svd(matrix, rank)
    assert u.shape == (m, rank) and values.shape == (rank,) and vh.shape == (rank, n)
    dropped = torch.linalg.svdvals(matrix)[rank:]
    assert error(matrix, u * values @ vh) == pytest.approx(float((dropped**2).sum()), rel=1e-9, abs=1e-18)
    torch.testing.assert_close(u.T @ u, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(vh @ vh.T, torch.eye(rank, dtype=torch.float64))


@given(m=sizes, n=sizes, seed=seeds, step=st.sampled_from([1e-3, 0.1, 1, 10]), data=st.data())
def test_no_other_matrix_of_the_rank_is_nearer(m, n, seed, step, data):
    """Neither a random one, with the best left factor for a random right one, nor one close by."""
    rank = data.draw(st.integers(1, min(m, n)))
    matrix, right = random(m, n, seed=seed), random(rank, n, seed=seed + 1)
    best = joined(split_matrix(matrix, rank))
    others = [matrix @ torch.linalg.pinv(right) @ right,
              joined([f + step * random(*f.shape, seed=seed + 2 + i) for i, f in enumerate(split_matrix(matrix, rank))])]
    assert all(error(matrix, best) <= error(matrix, other) + 1e-9 for other in others)


@pytest.mark.parametrize("shape, rank", [((12, 7), 1), ((12, 7), 4), ((7, 12), 6), ((30, 30), 10)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_scikit_learn_and_tensorly(shape, rank, seed):
    matrix = random(*shape, seed=seed)
    u, values, vh = truncated_svd(matrix, rank)
    ours = (u * values @ vh).numpy()
    full = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.equal(u, full.U[:, :rank]) and torch.equal(values, full.S[:rank]) and torch.equal(vh, full.Vh[:rank])
    for algorithm in ("arpack", "randomized"):
        model = TruncatedSVD(rank, algorithm=algorithm, n_iter=200, random_state=0)
        theirs = model.fit_transform(matrix.numpy()) @ model.components_
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
        np.testing.assert_allclose(values, model.singular_values_, rtol=1e-10)
    left, s, right = randomized_svd(matrix.numpy(), rank, n_iter=200, random_state=0)
    np.testing.assert_allclose(ours, left * s @ right, atol=1e-9)
    left, s, right = tensorly.tenalg.svd_interface(matrix.numpy(), method="truncated_svd", n_eigenvecs=rank)
    np.testing.assert_allclose(ours, left * s @ right, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_data_type_stays_and_the_arithmetic_is_double(dtype):
    matrix = random(6, 5, dtype=torch.float64).to(dtype)
    exact = joined(split_matrix(matrix.double(), 3))
    for parts in (truncated_svd(matrix, 3), split_matrix(matrix, 3), split_matrix(matrix, 3, torch.eye(5))):
        assert {part.dtype for part in parts} == {dtype}
    left, right = split_matrix(matrix, 3)
    assert torch.equal(left, split_matrix(matrix.double(), 3)[0].to(dtype))
    torch.testing.assert_close(left.double() @ right.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_a_parameter_is_neither_changed_nor_followed():
    weight = torch.nn.Parameter(random(4, 3, dtype=torch.float32))
    before = weight.detach().clone()
    for parts in (truncated_svd(weight, 2), split_matrix(weight, 2), split_matrix(weight, 2, torch.eye(3)), [singular_values(weight)]):
        assert not any(part.requires_grad for part in parts)
    assert torch.equal(weight, before)


# --- two factors ---

@given(m=sizes, n=sizes, seed=seeds, power=st.sampled_from([None, -4, 0, 6]), data=st.data())
def test_both_factors_take_the_root_of_the_singular_values(m, n, seed, power, data):
    """Also with a moment, whatever its unit: else one factor's weights would be larger, the more images were seen."""
    rank = data.draw(st.integers(1, min(m, n)))
    moment = None if power is None else 10.0**power * (lambda x: x @ x.T)(random(n, 2 * n, seed=seed + 1))
    left, right = split_matrix(random(m, n, seed=seed), rank, moment)
    values = torch.linalg.svdvals(left @ right)[:rank]
    torch.testing.assert_close(left.T @ left, values.diag())
    torch.testing.assert_close(right @ right.T, values.diag())


@given(m=sizes, n=sizes, seed=seeds, data=st.data())
def test_without_a_moment_the_product_is_the_truncated_svd(m, n, seed, data):
    rank, matrix = data.draw(st.integers(1, min(m, n))), random(m, n, seed=seed)
    u, values, vh = truncated_svd(matrix, rank)
    torch.testing.assert_close(joined(split_matrix(matrix, rank)), u * values @ vh)


# --- the inputs taken into account ---

@given(m=sizes, n=sizes, count=st.integers(1, 30), seed=seeds, scale=st.sampled_from([1e-3, 1, 1e5]), data=st.data())
def test_with_a_moment_no_matrix_of_the_rank_has_better_outputs(m, n, count, seed, scale, data):
    """The error on the outputs is what the SVD of A·X drops: less than the plain SVD's, and than any close by."""
    rank = data.draw(st.integers(1, min(m, n)))
    matrix = random(m, n, seed=seed)
    inputs = torch.linspace(0.1, 3, n, dtype=torch.float64)[:, None] * random(n, count, seed=seed + 1) + 1
    factors = split_matrix(matrix, rank, scale * inputs @ inputs.T)
    found = error(matrix, joined(factors), inputs)
    best = float((torch.linalg.svdvals(matrix @ inputs)[rank:] ** 2).sum())
    slack = 1e-5 * float((inputs**2).sum())
    assert found == pytest.approx(best, abs=slack)
    assert found <= error(matrix, joined(split_matrix(matrix, rank)), inputs) + slack
    assert found <= error(matrix, joined([f + 0.1 * random(*f.shape, seed=seed) for f in factors]), inputs) + slack


def test_with_a_moment_the_outputs_are_better_by_hand():
    """The second input is ten times as large, so its weight matters more than the first, which is larger."""
    matrix, moment = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 100.0]))
    torch.testing.assert_close(joined(split_matrix(matrix, 1)), torch.diag(torch.tensor([2.0, 0.0])))
    torch.testing.assert_close(joined(split_matrix(matrix, 1, moment)), torch.diag(torch.tensor([0.0, 1.0])))
    assert singular_values(matrix, moment).tolist() == pytest.approx([10, 2])


@given(m=sizes, n=sizes, seed=seeds, power=st.integers(-6, 6), data=st.data())
def test_inputs_that_are_alike_in_all_directions_change_nothing(m, n, seed, power, data):
    rank, matrix = data.draw(st.integers(1, min(m, n))), random(m, n, seed=seed)
    moment = 10.0**power * torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(joined(split_matrix(matrix, rank, moment)), joined(split_matrix(matrix, rank)), atol=1e-6, rtol=0)
    torch.testing.assert_close(singular_values(matrix, moment), 10 ** (power / 2) * singular_values(matrix))


@pytest.mark.parametrize("shape, rank", [((6, 9), 3), ((9, 6), 5), ((8, 8), 1)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_whitening_by_cholesky_as_the_paper_writes_it(shape, rank, seed):
    matrix, inputs = random(*shape, seed=seed), random(shape[1], 40, seed=seed + 9)
    root = torch.linalg.cholesky(inputs @ inputs.T)
    u, values, vh = torch.linalg.svd(matrix @ root, full_matrices=False)
    theirs = u[:, :rank] * values[:rank] @ vh[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close(joined(split_matrix(matrix, rank, inputs @ inputs.T)), theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(singular_values(matrix, inputs @ inputs.T), values)


def test_the_singular_values_of_a_moment_are_those_of_the_outputs():
    matrix, inputs = random(5, 7), random(7, 50, seed=1)
    torch.testing.assert_close(singular_values(matrix, inputs @ inputs.T), torch.linalg.svdvals(matrix @ inputs))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_inputs_that_never_occur_lose_against_all_that_do(rank):
    """Of eight inputs six are always zero. Two directions suffice for what occurs; the rest goes to the weights."""
    matrix, inputs = random(5, 8), torch.zeros(8, 40, dtype=torch.float64)
    inputs[:2] = random(2, 40, seed=1)
    found = joined(split_matrix(matrix, rank, inputs @ inputs.T))
    assert torch.isfinite(found).all()
    best = float((torch.linalg.svdvals(matrix @ inputs)[rank:] ** 2).sum())
    assert error(matrix, found, inputs) == pytest.approx(best, abs=1e-5)
    if rank >= 2:       # what is orthogonal to the outputs that occur is approximated as well as it can be
        q = torch.linalg.qr(matrix[:, :2]).Q
        rest = matrix[:, 2:] - q @ q.T @ matrix[:, 2:]
        dropped = float((torch.linalg.svdvals(rest)[rank - 2:] ** 2).sum())
        assert error(matrix[:, 2:], found[:, 2:]) == pytest.approx(dropped, abs=1e-4)


# --- energy and break-even ---

def test_energy_of_three_values_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(energy_kept(values), torch.tensor([9, 13, 14], dtype=torch.float64) / 14)
    assert [rank_for_energy(values, e) for e in (1e-9, 9 / 14, 9.1 / 14, 13 / 14, 13.1 / 14, 1.0)] == [1, 1, 2, 2, 3, 3]


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=20), energy=st.floats(1e-9, 1))
def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it(values, energy):
    values = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    kept, rank = energy_kept(values), rank_for_energy(values, energy)
    assert kept[-1] == 1 and (kept.diff() >= 0).all() and kept.min() >= 0
    assert 1 <= rank <= len(values) and kept[rank - 1] >= energy - 1e-11
    assert rank == 1 or kept[rank - 2] < energy


def test_a_matrix_of_zeros_needs_one_term():
    assert rank_for_energy(singular_values(torch.zeros(3, 4)), 0.99) == 1
    left, right = split_matrix(torch.zeros(3, 4), 2)
    assert not (left @ right).any()


def test_break_even_by_counting():
    """The largest rank with fewer numbers in the factors, for every small matrix; half the size where it is square."""
    for m in range(1, 30):
        for n in range(1, 30):
            ranks = [r for r in range(1, 30) if r * m + r * n < m * n]
            assert break_even_rank(m, n) == max(ranks, default=0), (m, n)
    assert break_even_rank(300, 784) == 216 and break_even_rank(64, 64) == 31 and break_even_rank(10, 100) == 9


# --- bad input ---

NAN = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])


@pytest.mark.parametrize("call, message", [
    (lambda: truncated_svd(torch.ones(3), 1), r"need a matrix of floats; got shape \(3,\), torch.float32"),
    (lambda: truncated_svd(torch.ones(2, 2, dtype=torch.int64), 1), r"need a matrix of floats; got shape \(2, 2\), torch.int64"),
    (lambda: split_matrix(torch.ones(0, 3), 1), r"need a matrix of floats; got shape \(0, 3\)"),
    (lambda: split_matrix(NAN, 1), r"not all finite \(did training diverge\?\)"),
    (lambda: singular_values(NAN), "not all finite"),
    (lambda: truncated_svd(torch.ones(2, 3), 0), "rank must be a whole number from 1 to 2; got 0"),
    (lambda: truncated_svd(torch.ones(2, 3), 3), "from 1 to 2; got 3"),
    (lambda: split_matrix(torch.ones(2, 3), 1.0), "from 1 to 2; got 1.0"),
    (lambda: split_matrix(torch.ones(2, 3), True), "from 1 to 2; got True"),
    (lambda: split_matrix(torch.ones(2, 3), 1, torch.eye(2)), r"moment must be finite, symmetric and of shape \(3, 3\); got shape \(2, 2\)"),
    (lambda: split_matrix(torch.ones(2, 2), 1, torch.tensor([[1.0, 1.0], [0.0, 1.0]])), "finite, symmetric"),
    (lambda: split_matrix(torch.ones(2, 2), 1, NAN), "finite, symmetric"),
    (lambda: singular_values(torch.ones(2, 2), -torch.eye(2)), "cannot be all zero or have negative eigenvalues"),
    (lambda: split_matrix(torch.ones(2, 2), 1, torch.diag(torch.tensor([1.0, -1.0]))), "negative eigenvalues; is it X·Xᵀ?"),
    (lambda: split_matrix(torch.ones(2, 2), 1, torch.zeros(2, 2)), "all zero"),
    (lambda: rank_for_energy(torch.ones(2), 0), "energy must be a fraction above 0 and at most 1, e.g. 0.9; got 0"),
    (lambda: rank_for_energy(torch.ones(2), 90), "got 90"),
    (lambda: rank_for_energy(torch.ones(2), float("nan")), "got nan"),
    (lambda: break_even_rank(0, 4), "at least one row and one column; got 0 and 4"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_package_offers_all_of_it():
    assert {"truncated_svd", "tucker", "factorize", "greedy_ranks"} <= set(low_rank.__all__)
