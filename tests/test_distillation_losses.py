"""The loss of distillation: what its formula says, and gradients that reach the student only."""
import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from course_lib.distillation import UNLABELLED, Targets, distillation_loss, divergence, soften

TEMPERATURES = [0.5, 1.0, 2.0, 4.0, 8.0, 20.0]
LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-8, 8, width=32))


def random_logits(n=64, classes=10, *, seed=0, scale=4.0, dtype=torch.float32):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_scipy(student, teacher, temperature):
    """T² · mean over images of Σ p log(p / q), in double precision, without torch."""
    p, q = (scipy.special.softmax(logits.double().numpy() / temperature, axis=1) for logits in (teacher, student))
    return temperature**2 * scipy.special.rel_entr(p, q).sum(1).mean()


def gradient(value, of):
    return torch.autograd.grad(value, of)[0]


# --- the divergence ---

@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_divergence_equals_an_independent_formulation(temperature):
    student, teacher = random_logits(seed=1), random_logits(seed=2)
    expected = by_scipy(student, teacher, temperature)
    assert divergence(student.double(), teacher.double(), temperature).item() == pytest.approx(expected, rel=1e-12)
    assert divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_divergence_equals_pytorch_s_of_probabilities(temperature):
    """Distiller and Hugging Face write it so; "mean" would divide by the ten classes too."""
    student, teacher = random_logits(seed=1), random_logits(seed=2)
    log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    got = divergence(student, teacher, temperature)
    torch.testing.assert_close(got, nn.KLDivLoss(reduction="batchmean")(log_q, p) * temperature**2)
    torch.testing.assert_close(got, 10 * F.kl_div(log_q, p, reduction="none").mean() * temperature**2)


def test_the_divergence_by_hand():
    """Softened with T = 2, the teacher says ¾ and ¼; the student ½ and ½. A second image on which both agree halves the mean."""
    teacher = torch.tensor([[2 * math.log(3), 0.0], [1.0, 1.0]], dtype=torch.float64)
    student = torch.tensor([[5.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(student[:1], teacher[:1], 2.0).item() == pytest.approx(4 * kl)
    assert divergence(student, teacher, 2.0).item() == pytest.approx(4 * kl / 2)


def test_teacher_and_student_are_not_interchangeable():
    student, teacher = random_logits(seed=1), random_logits(seed=2)
    assert abs(divergence(student, teacher, 1.0) - divergence(teacher, student, 1.0)) > 0.1


@given(LOGITS, st.floats(0.5, 20), st.data())
def test_it_is_never_negative_and_zero_only_where_both_agree(logits, temperature, draw):
    student = torch.tensor(logits)
    teacher = torch.tensor(draw.draw(hnp.arrays(np.float64, logits.shape, elements=st.floats(-8, 8, width=32))))
    value = divergence(student, teacher, temperature).item()
    gap = (soften(student, temperature) - soften(teacher, temperature)).abs().sum(1)
    assert value >= -1e-12
    # Pinsker's inequality: KL >= (Σ |p − q|)² / 2 for every image, so that 0 means equal.
    assert value >= temperature**2 * float((gap**2).mean()) / 2 - 1e-9
    assert divergence(student, student, temperature).item() == 0


@given(LOGITS, st.floats(0.5, 20), st.floats(-50, 50), st.floats(-50, 50))
def test_only_differences_between_logits_count(logits, temperature, first, second):
    student, teacher = torch.tensor(logits), torch.tensor(logits[::-1, ::-1].copy())
    moved = divergence(student + first, teacher + second, temperature)
    torch.testing.assert_close(moved, divergence(student, teacher, temperature), atol=1e-9, rtol=1e-9)


@given(LOGITS)
def test_a_teacher_that_is_sure_of_the_label_gives_the_cross_entropy(logits):
    student, labels = torch.tensor(logits), torch.tensor(logits).flip(0).argmax(1)
    sure = 1000.0 * F.one_hot(labels, student.shape[1])
    torch.testing.assert_close(divergence(student, sure, 1.0), F.cross_entropy(student, labels))


# --- softened probabilities ---

def test_softened_probabilities_by_hand():
    """Logits ln 16, ln 4 and 0: 16 to 4 to 1 at T = 1, 4 to 2 to 1 at T = 2."""
    logits = torch.tensor([[math.log(16), math.log(4), 0.0]])
    torch.testing.assert_close(soften(logits, 1.0), torch.tensor([[16.0, 4.0, 1.0]]) / 21)
    torch.testing.assert_close(soften(logits, 2.0), torch.tensor([[4.0, 2.0, 1.0]]) / 7)


@given(LOGITS, st.floats(0.5, 20), st.floats(1.1, 4))
def test_a_higher_temperature_keeps_the_order_and_makes_the_probabilities_more_alike(logits, temperature, factor):
    logits = torch.tensor(logits)
    cold, hot = soften(logits, temperature), soften(logits, temperature * factor)
    torch.testing.assert_close(hot.sum(1), torch.ones(len(hot), dtype=torch.float64))
    assert (cold.gather(1, logits.argsort(1)).diff(dim=1) >= 0).all() and (hot.gather(1, logits.argsort(1)).diff(dim=1) >= 0).all()
    assert (torch.special.entr(hot).sum(1) >= torch.special.entr(cold).sum(1) - 1e-12).all()


# --- gradients ---

@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_the_derivation(temperature):
    """∂/∂z = T (q − p) for each image, averaged: Hinton et al. 2015, eq. 2, times T²."""
    student, teacher = random_logits(5, 4, seed=1, dtype=torch.float64).requires_grad_(), random_logits(5, 4, seed=2, dtype=torch.float64)
    expected = temperature * (soften(student, temperature) - soften(teacher, temperature)) / 5
    torch.testing.assert_close(gradient(divergence(student, teacher, temperature), student), expected.detach())


def test_at_a_high_temperature_the_student_matches_logits():
    """∂/∂z → (z − v) / classes, for logits with mean 0: sec. 2.1, eq. 4. Without T² it would vanish."""
    student, teacher = (random_logits(6, 10, seed=seed, dtype=torch.float64) for seed in (1, 2))
    student, teacher = (student - student.mean(1, keepdim=True)).requires_grad_(), teacher - teacher.mean(1, keepdim=True)
    matching = (student - teacher).detach() / 10 / 6
    off = [float((gradient(divergence(student, teacher, t), student) - matching).norm() / matching.norm()) for t in (10, 100, 1000)]
    assert off[0] < 0.5 and off[1] < 0.05 and off[2] < 0.005 and off[0] > off[1] > off[2]


def test_gradients_reach_the_student_and_never_the_teacher():
    student, teacher, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(8, 3)
    before = [p.detach().clone() for p in teacher.parameters()]
    divergence(student(x), teacher(x), 4.0).backward()          # a teacher that is asked with gradients on
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(p, old) for p, old in zip(teacher.parameters(), before))
    assert all(p.grad.abs().max() > 0 for p in student.parameters())


def test_targets_that_carry_gradients_are_refused():
    teacher, x = nn.Linear(3, 4), torch.randn(2, 3)
    labels = torch.zeros(2, dtype=torch.long)
    for logits, features in ((teacher(x), None), (teacher(x).detach(), teacher(x))):
        with pytest.raises(ValueError, match="what the teacher said must not carry gradients; `transfer_set` writes it down without"):
            Targets(labels, logits, features)


# --- mixed with the labels ---

@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_mixture_equals_its_formula(alpha, temperature):
    student, teacher, labels = random_logits(seed=1), random_logits(seed=2), torch.arange(64) % 10
    hard = -scipy.special.log_softmax(student.double().numpy(), axis=1)[np.arange(64), labels.numpy()].mean()
    expected = alpha * by_scipy(student, teacher, temperature) + (1 - alpha) * hard
    got = distillation_loss(temperature=temperature, alpha=alpha)(student, Targets(labels, teacher))
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_the_default_is_the_teacher_alone_at_four():
    student, targets = random_logits(seed=1), Targets(torch.arange(64) % 10, random_logits(seed=2))
    assert torch.equal(distillation_loss()(student, targets), divergence(student, targets.logits, 4.0))


def test_images_without_a_label_count_for_the_teacher_only():
    """Four images, the second and the fourth without a label: the teacher's part is a mean over four, the labels' over two."""
    student, teacher = random_logits(4, 3, seed=1), random_logits(4, 3, seed=2)
    labels = torch.tensor([2, UNLABELLED, 0, UNLABELLED])
    log_q = F.log_softmax(student, 1)
    expected = 0.5 * divergence(student, teacher, 2.0) + 0.5 * -(log_q[0, 2] + log_q[2, 0]) / 2
    torch.testing.assert_close(distillation_loss(temperature=2.0, alpha=0.5)(student, Targets(labels, teacher)), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_batch_without_any_label_teaches_what_the_teacher_says_and_nothing_else(alpha):
    student, teacher = random_logits(4, 3, seed=1).requires_grad_(), random_logits(4, 3, seed=2)
    got = distillation_loss(temperature=2.0, alpha=alpha)(student, Targets(torch.full((4,), UNLABELLED), teacher))
    expected = alpha * divergence(student, teacher, 2.0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(got, student), gradient(expected, student))


@pytest.mark.parametrize("labels", [torch.arange(8) % 4, torch.tensor([3, 1] + [UNLABELLED] * 6)])
@pytest.mark.parametrize("teacher", [torch.full((8, 4), math.nan), torch.zeros(8, 7)], ids=["NaN", "other classes"])
def test_without_weight_the_teacher_is_not_looked_at(labels, teacher):
    """The control: cross-entropy to the last bit, whatever the teacher said."""
    student = random_logits(8, 4, seed=1).requires_grad_()
    got = distillation_loss(alpha=0.0)(student, Targets(labels, teacher))
    expected = F.cross_entropy(student, labels)
    assert torch.equal(got, expected) and torch.equal(gradient(got, student), gradient(expected, student))


def test_with_all_the_weight_the_labels_are_not_looked_at():
    student, teacher = random_logits(8, 4, seed=1), random_logits(8, 4, seed=2)
    values = {distillation_loss(alpha=1.0)(student, Targets(labels, teacher)).item()
              for labels in (torch.zeros(8).long(), torch.full((8,), UNLABELLED), torch.full((8,), 99))}
    assert len(values) == 1


# --- targets ---

def test_targets_are_indexed_as_tensors_are():
    labels, logits, features = torch.arange(6), random_logits(6, 3), random_logits(6, 2, seed=1)
    for which in (torch.tensor([4, 0]), slice(2, 5), labels > 3):
        some, bare = Targets(labels, logits, features)[which], Targets(labels, logits)[which]
        assert torch.equal(some.labels, labels[which]) and torch.equal(some.logits, logits[which])
        assert torch.equal(some.features, features[which]) and bare.features is None
        assert len(some) == len(labels[which])


@pytest.mark.parametrize("labels, logits, features, shapes", [
    ((3,), (2, 4), None, "(3,), (2, 4)"), ((3, 1), (3, 4), None, "(3, 1), (3, 4)"), ((3,), (3,), None, "(3,), (3,)"),
    ((3,), (3, 4), (2, 5), "(3,), (3, 4), (2, 5)"), ((), (3, 4), None, "(), (3, 4)"), ((3,), (3, 4), (), "(3,), (3, 4), ()")])
def test_targets_of_unequal_length_are_refused(labels, logits, features, shapes):
    with pytest.raises(ValueError) as caught:
        Targets(torch.zeros(labels).long(), torch.zeros(logits), None if features is None else torch.zeros(features))
    assert str(caught.value) == f"targets need labels (n,), logits (n, classes) and features (n, …) of one length; got {shapes}"


# --- bad calls ---

@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    logits = torch.zeros(2, 3)
    for call in (lambda: soften(logits, temperature), lambda: divergence(logits, logits, temperature),
                 lambda: distillation_loss(temperature=temperature), lambda: distillation_loss(temperature=temperature, alpha=0.0)):
        with pytest.raises(ValueError, match=f"the temperature must be a number above 0, e.g. 4.0; got {temperature}"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 50, math.nan])
def test_a_weight_outside_zero_to_one_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha must be a fraction from 0 to 1; got {alpha}"):
        distillation_loss(alpha=alpha)


@pytest.mark.parametrize("student, teacher", [((4, 3), (4, 5)), ((4, 3), (2, 3)), ((3,), (3,)), ((4, 3, 1), (4, 3, 1))])
def test_logits_that_do_not_belong_together_are_refused(student, teacher):
    with pytest.raises(ValueError) as caught:
        divergence(torch.zeros(student), torch.zeros(teacher), 4.0)
    assert str(caught.value) == f"both logits must have one shape (n, classes); got {student} and {teacher}"


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(IndexError, match="Target 12 is out of bounds"):
        distillation_loss(alpha=0.5)(torch.zeros(2, 10), Targets(torch.tensor([3, 12]), torch.zeros(2, 10)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_student_that_gives_features_too_is_sent_to_the_loss_that_reads_them(alpha):
    with pytest.raises(ValueError, match="the student gives features besides its logits: train it with `feature_loss`"):
        distillation_loss(alpha=alpha)((torch.zeros(2, 3), torch.zeros(2, 5)), Targets(torch.zeros(2).long(), torch.zeros(2, 3)))
