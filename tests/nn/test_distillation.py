"""Values computed by hand for the losses of arXiv 2106.09701 and 2306.08593, without their code."""

from __future__ import annotations

import pytest
import torch

from raycl.nn.distillation import (
    binary_distillation,
    decoupled_divergence,
    soft_cross_entropy,
    soft_divergence,
)


def test_soft_cross_entropy_by_hand():
    student = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0, 1.0]])
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(1.240706, abs=1e-6)
    least = soft_cross_entropy(teacher, teacher).item()  # no divergence: the target's entropy
    assert least == pytest.approx(1.020191, abs=1e-6)
    both = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    assert soft_cross_entropy(*both).item() == pytest.approx((1.240706 + 1.020191) / 2, abs=1e-6)


def test_equal_logits_give_no_gradient():
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    student = z.clone().requires_grad_()
    soft_cross_entropy(student, z).backward()
    assert student.grad.abs().max() < 1e-7


def test_binary_distillation_sums_over_classes_and_averages_over_images():
    z, u = torch.tensor([[0.0, 1.0], [2.0, -1.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    p = z.sigmoid()
    expected = -(u * p.log() + (1 - u) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(binary_distillation(z, u), expected)
    far = binary_distillation(torch.tensor([[500.0]]), torch.tensor([[0.0]]))
    assert far.item() == pytest.approx(500)  # from logits: no logarithm of zero


@pytest.mark.parametrize(
    "student, teacher, temperature, expected",
    [
        ([[0.0, 0.0]], [[1.0, 0.0]], 1.0, 0.1109442),
        ([[0.0, 0.0]], [[1.0, 0.0]], 2.0, 0.1211995),
        ([[1.0, 0.0]], [[0.0, 0.0]], 1.0, 0.1201145),  # it is not symmetric
        ([[0.0, 0.0], [3.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]], 1.0, 0.0554721),
        ([[3.0, 1.0, -2.0]], [[3.0, 1.0, -2.0]], 1.0, 0),
        ([[3.0, 1.0], [0.0, 5.0]], [[-4.0, -6.0], [2.0, 7.0]], 0.7, 0),  # shifted rows
    ],
)
def test_soft_divergence_by_hand(student, teacher, temperature, expected):
    found = soft_divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_soft_divergence_without_a_temperature_has_that_of_one():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert soft_divergence(student, teacher).item() == pytest.approx(0.1109442, abs=1e-7)


def test_gradient_of_the_soft_divergence():
    """T (p - q) / B; it stays finite where a probability is 0."""
    student = torch.tensor([[1.0, 0.0], [900.0, -900.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0], [-900.0, 900.0]])
    soft_divergence(student, teacher, 2.0).backward()
    p, q = (student.detach() / 2).softmax(1), (teacher / 2).softmax(1)
    torch.testing.assert_close(student.grad, 2 * (p - q) / 2)


STUDENT, TEACHER = torch.tensor([[2.0, 0, -1]]), torch.tensor([[1.0, 2, 0]])
"""Logits of the invariants 5 and 6 in the specification of arXiv 2407.13911; class 0 is right."""
RIGHT = torch.tensor([0])


def test_numbers_of_soft_logits():
    """Invariant 5."""
    soft = soft_divergence(STUDENT, TEACHER, 2.0)
    assert soft.item() == pytest.approx(4 * 0.2301434, abs=1e-6)
    ce = torch.nn.functional.cross_entropy(STUDENT, RIGHT)
    assert (0.5 * ce + 0.5 * soft).item() == pytest.approx(0.5452099, abs=1e-6)
    assert soft_divergence(STUDENT, STUDENT + 7, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_numbers_of_decoupled_logits():
    """Invariant 6: both parts, and the identity that joins them to the plain divergence."""
    found = decoupled_divergence(STUDENT, TEACHER, RIGHT)
    assert found.item() == pytest.approx(1.2629094, abs=1e-6)
    first = decoupled_divergence(STUDENT, TEACHER, RIGHT, others=0.0)
    second = decoupled_divergence(STUDENT, TEACHER, RIGHT, others=1.0) - first
    assert first.item() == pytest.approx(0.7843645, abs=1e-6)
    assert second.item() == pytest.approx(0.1196362, abs=1e-6)
    share = (TEACHER / 4).softmax(1)[0, 0].item()
    assert share == pytest.approx(0.3264959, abs=1e-6)
    whole = soft_divergence(STUDENT, TEACHER, 4.0).item()
    assert whole == pytest.approx(0.864940, abs=2e-6)
    assert first.item() + (1 - share) * second.item() == pytest.approx(whole, abs=1e-5)


def test_decoupled_logits_are_a_mean_over_images():
    both = torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER])
    found = decoupled_divergence(*both, torch.tensor([0, 2]))
    assert found.item() == pytest.approx(1.2629094 / 2, abs=1e-6)


@pytest.mark.parametrize("far", [1e3, 1e4, -1e4])
def test_decoupled_logits_where_a_probability_rounds_to_0_or_1(far):
    """Probabilities of student, teacher and both round; two classes have no others to compare."""
    edge = torch.tensor([[far, 0.0, -1.0]])
    for student, teacher in ((edge, TEACHER), (STUDENT, edge), (edge, -edge), (edge, edge)):
        student = student.clone().requires_grad_()
        loss = decoupled_divergence(student, teacher, RIGHT)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
    same = decoupled_divergence(edge, edge, RIGHT)
    assert same.item() == 0
    two = decoupled_divergence(STUDENT[:, :2], TEACHER[:, :2], RIGHT)
    whole = soft_divergence(STUDENT[:, :2], TEACHER[:, :2], 4.0)
    torch.testing.assert_close(two, whole)
