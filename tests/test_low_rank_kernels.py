"""Kernels laid out as matrices and as a core between two: the same as the libraries' after joining, and all of it at full rank."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from torch.nn import functional as F

from course_lib.low_rank import METHODS, join_kernels, largest_ranks, matricise, split_kernel, tucker

side, seeds = st.integers(1, 4), st.integers(0, 10_000)
kernels = st.builds(lambda o, i, h, w, seed: random(o, i, h, w, seed=seed), st.integers(1, 6), st.integers(1, 6), side, side, seeds)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_or_pair(ranks):
    return ranks[0] if len(ranks) == 1 else ranks


def cut(matrix, rank):
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * values[:rank] @ vh[:rank]


def error(kernel, factors):
    return float(((kernel - join_kernels(factors)) ** 2).sum())


# --- a kernel as a matrix ---

def test_the_layouts_by_counting():
    """channel: (outputs) × (inputs·height·width); spatial, as in AIMET: (inputs·height) × (outputs·width)."""
    kernel = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    channel, spatial = matricise(kernel, "channel"), matricise(kernel, "spatial")
    assert channel.shape == (2, 60) and spatial.shape == (12, 10)
    for (o, i, h, w), value in np.ndenumerate(kernel.numpy()):
        assert channel[o, i * 20 + h * 5 + w] == spatial[i * 4 + h, o * 5 + w] == value


def test_the_largest_ranks_by_hand():
    kernel = torch.zeros(64, 32, 3, 3)
    assert [largest_ranks(kernel, method) for method in METHODS] == [(64,), (96,), (64, 32)]
    first = torch.zeros(32, 1, 3, 5)        # 32 outputs of 15 numbers each are no more than 15 directions
    assert [largest_ranks(first, method) for method in METHODS] == [(15,), (3,), (15, 1)]


# --- the three ways ---

@given(kernel=kernels, method=st.sampled_from(METHODS))
def test_at_the_largest_ranks_nothing_is_lost(kernel, method):
    factors = split_kernel(kernel, one_or_pair(largest_ranks(kernel, method)), method)
    torch.testing.assert_close(join_kernels(factors), kernel)


@given(kernel=kernels, method=st.sampled_from(METHODS), data=st.data())
def test_the_factors_have_the_shapes_of_small_convolutions(kernel, method, data):
    o, i, h, w = kernel.shape
    rank = tuple(data.draw(st.integers(1, largest)) for largest in largest_ranks(kernel, method))
    expected = {"channel": [(rank[0], i, h, w), (o, rank[0], 1, 1)], "spatial": [(rank[0], i, h, 1), (o, rank[0], 1, w)],
                "tucker": [(rank[-1], i, 1, 1), (rank[0], rank[-1], h, w), (o, rank[0], 1, 1)]}[method]
    assert [tuple(k.shape) for k in split_kernel(kernel, one_or_pair(rank), method)] == expected


@given(kernel=kernels, method=st.sampled_from(["channel", "spatial"]), data=st.data())
def test_the_joined_kernel_is_the_truncated_svd_of_the_matrix(kernel, method, data):
    rank = data.draw(st.integers(1, largest_ranks(kernel, method)[0]))
    factors = split_kernel(kernel, rank, method)
    torch.testing.assert_close(matricise(join_kernels(factors), method), cut(matricise(kernel, method), rank))
    # both factors took √Σ
    first, last = factors[0].transpose(0, 1).flatten(0, 0), factors[1]
    values = torch.linalg.svdvals(matricise(kernel, method))[:rank]
    torch.testing.assert_close((first**2).sum((0, 2, 3)), values)
    torch.testing.assert_close((last**2).sum((0, 2, 3)), values)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs")         # 1×1, which fills up as ours does
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (8, 3, 5, 1), (4, 7, 1, 1), (5, 5, 2, 4)])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (3, 2), (4, 3)])
def test_tucker_equals_tensorly(shape, ranks):
    kernel = random(*shape, seed=sum(shape))
    core, u_out, u_in = tucker(kernel, ranks, sweeps=300, tolerance=-1)        # -1: do not stop before
    (their_core, factors), _ = partial_tucker(kernel.numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=300, tol=None)
    theirs = multi_mode_dot(their_core, factors, modes=[0, 1])
    np.testing.assert_allclose(torch.einsum("rshw,or,is->oihw", core, u_out, u_in), theirs, atol=1e-8)


@given(kernel=kernels, data=st.data())
@settings(max_examples=50)
def test_tucker_is_a_core_between_two_orthonormal_factors(kernel, data):
    """The error is what the core lacks of the kernel's norm, and never more than without the sweeps (HOSVD)."""
    ranks = tuple(data.draw(st.integers(1, largest)) for largest in largest_ranks(kernel, "tucker"))
    core, u_out, u_in = tucker(kernel, ranks)
    for factor, rank in ((u_out, ranks[0]), (u_in, ranks[1])):
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(core, torch.einsum("oihw,or,is->rshw", kernel, u_out, u_in))
    found = error(kernel, split_kernel(kernel, ranks, "tucker"))
    assert found == pytest.approx(float((kernel**2).sum() - (core**2).sum()), abs=1e-9)
    start = [torch.linalg.svd(kernel.movedim(d, 0).flatten(1), full_matrices=False).U[:, :r] for d, r in enumerate(ranks)]
    without = torch.einsum("oihw,or,is->rshw", kernel, *start)
    assert found <= float((kernel**2).sum() - (without**2).sum()) + 1e-9


def test_more_sweeps_come_nearer():
    kernel = random(8, 7, 3, 3, seed=3)
    norms = [float(tucker(kernel, (3, 2), sweeps=n, tolerance=-1)[0].norm()) for n in (1, 2, 3, 30)]
    assert norms == sorted(norms) and norms[0] < norms[-1]
    assert float(tucker(kernel, (3, 2))[0].norm()) == pytest.approx(norms[-1], rel=1e-6)


def test_tucker_finds_a_kernel_that_has_its_form():
    kernel = torch.einsum("rshw,or,is->oihw", random(2, 3, 3, 3), random(7, 2, seed=1), random(6, 3, seed=2))
    torch.testing.assert_close(join_kernels(split_kernel(kernel, (2, 3), "tucker")), kernel)
    assert error(kernel, split_kernel(kernel, (1, 3), "tucker")) > 0.1


def test_tucker_fills_up_where_the_other_rank_leaves_too_few_directions():
    """One input left of a 1×1 kernel: there is one direction of outputs, and four were asked for."""
    kernel = random(4, 5, 1, 1)
    core, u_out, u_in = tucker(kernel, (4, 1))
    assert u_out.shape == (4, 4) and core.shape == (4, 1, 1, 1)
    torch.testing.assert_close(torch.einsum("rshw,or,is->oihw", core, u_out, u_in)[:, :, 0, 0], cut(kernel[:, :, 0, 0], 1))


def test_a_kernel_of_zeros_can_be_split_too():
    assert not join_kernels(split_kernel(torch.zeros(4, 3, 3, 3), (2, 2), "tucker")).any()


@pytest.mark.parametrize("method", METHODS)
def test_the_data_type_stays_and_the_kernel_too(method):
    kernel = random(6, 5, 3, 3, dtype=torch.float32)
    before = kernel.clone()
    factors = split_kernel(kernel, (3, 3) if method == "tucker" else 3, method)
    assert {factor.dtype for factor in factors} == {torch.float32} and torch.equal(kernel, before)
    exact = join_kernels(split_kernel(kernel.double(), (3, 3) if method == "tucker" else 3, method))
    torch.testing.assert_close(join_kernels(factors).double(), exact, atol=1e-5, rtol=1e-4)


# --- joined ---

@pytest.mark.parametrize("shapes", [[(2, 3, 3, 4), (5, 2, 1, 1)], [(2, 3, 3, 1), (5, 2, 1, 4)], [(2, 3, 1, 4), (5, 2, 3, 1)],
                                    [(2, 3, 1, 1), (4, 2, 3, 4), (5, 4, 1, 1)], [(5, 3, 2, 2)]])
def test_the_joined_kernel_computes_what_the_chain_computes(shapes):
    chain, images = [random(*shape, seed=i) for i, shape in enumerate(shapes)], random(2, 3, 8, 9, seed=9)
    y = images
    for kernel in chain:
        y = F.conv2d(y, kernel)
    torch.testing.assert_close(F.conv2d(images, join_kernels(chain)), y)


def test_the_inputs_count_in_the_channel_method():
    """The joined kernel's outputs on the patches are the best of their rank."""
    kernel, patches = random(6, 3, 2, 2), random(12, 80, seed=1) * torch.linspace(0.1, 3, 12, dtype=torch.float64)[:, None]
    joined = join_kernels(split_kernel(kernel, 2, "channel", patches @ patches.T)).flatten(1)
    torch.testing.assert_close(joined @ patches, cut(kernel.flatten(1) @ patches, 2), atol=1e-5, rtol=1e-5)


# --- bad input ---

KERNEL = torch.ones(4, 3, 2, 2)


@pytest.mark.parametrize("call, message", [
    (lambda: matricise(KERNEL, "tucker"), "a kernel becomes a matrix by 'channel' or 'spatial'; got 'tucker'"),
    (lambda: matricise(KERNEL[0], "channel"), r"shape \(outputs, inputs, height, width\); got \(3, 2, 2\)"),
    (lambda: largest_ranks(KERNEL, "cp"), "method must be one of channel, spatial, tucker; got 'cp'"),
    (lambda: largest_ranks(KERNEL[0], "channel"), r"got \(3, 2, 2\)"),
    (lambda: split_kernel(KERNEL, 1, "cp"), "method must be one of channel, spatial, tucker; got 'cp'"),
    (lambda: split_kernel(KERNEL[0], 1, "channel"), r"got \(3, 2, 2\)"),
    (lambda: split_kernel(KERNEL, 5, "channel"), "rank must be a whole number from 1 to 4; got 5"),
    (lambda: split_kernel(KERNEL, 7, "spatial"), "from 1 to 6; got 7"),
    (lambda: split_kernel(KERNEL, (1, 1), "spatial"), r"from 1 to 6; got \(1, 1\)"),
    (lambda: split_kernel(KERNEL, 2, "tucker"), r"'tucker' needs two ranks, \(outputs, inputs\); got 2"),
    (lambda: split_kernel(KERNEL, (1, 2, 3), "tucker"), r"needs two ranks, \(outputs, inputs\); got \(1, 2, 3\)"),
    (lambda: tucker(KERNEL, (5, 1)), "the rank of the outputs must be a whole number from 1 to 4; got 5"),
    (lambda: tucker(KERNEL, (1, 0)), "the rank of the inputs must be a whole number from 1 to 3; got 0"),
    (lambda: tucker(KERNEL / 0, (1, 1)), "not all finite"),
    (lambda: split_kernel(KERNEL, 1, "spatial", torch.eye(12)), "in a linear layer or by 'channel' only; got 'spatial'"),
    (lambda: split_kernel(KERNEL, 1, "channel", torch.eye(3)), r"of shape \(12, 12\); got shape \(3, 3\)"),
    (lambda: join_kernels([torch.ones(2, 3, 3, 3), torch.ones(2, 2, 3, 1)]), "are no factors of one convolution"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
