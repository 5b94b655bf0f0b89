"""Values computed by hand for the losses of arXiv 2106.09701 and 2306.08593, without their code."""

from __future__ import annotations

import pytest
import torch

from raycl.nn.distillation import binary_distillation, soft_cross_entropy, soft_divergence


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
