"""The penalty in closed form against autograd on its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raycl.nn.quadratic import CHUNK, QuadraticPenalty

SHAPES = ((CHUNK + 3, 2), (5,), (8, 3, 3, 3))


class Problem:
    """Parameters in both memory formats, an anchor, and weights, some of which are 0."""

    def __init__(self, weighted: bool = True) -> None:
        torch.manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        images = self.parameters[2]
        images.data = images.data.to(memory_format=torch.channels_last)
        self.anchor = [p.detach() + 0.01 * torch.randn(p.shape) for p in self.parameters]
        self.weights = [torch.rand(p.shape).relu() * 1e-3 for p in self.parameters]
        self.weighted, self.lam = weighted, 30.0

    def formula(self) -> Tensor:
        terms = []
        for p, a, w in zip(self.parameters, self.anchor, self.weights, strict=True):
            squares = (p - a).square()
            terms.append((w * squares if self.weighted else squares).sum())
        return self.lam / 2 * torch.stack(terms).sum()

    def ours(self) -> QuadraticPenalty:
        weights = self.weights if self.weighted else None
        return QuadraticPenalty(self.parameters, self.anchor, self.lam, weights)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.parameters))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_gradients_have_the_bits_of_autograd(weighted: bool, factor: float) -> None:
    problem = Problem(weighted)
    penalty = problem.ours()
    for _ in range(2):  # the second time with other parameters in the same place
        expected, found = problem.formula(), penalty()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        pairs = zip(
            problem.gradients(factor * expected), problem.gradients(factor * found), strict=True
        )
        for one, other in pairs:
            if factor == 1:
                assert torch.equal(one, other)
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        with torch.no_grad():
            for p in problem.parameters:
                p.mul_(1.01)


def test_parameters_that_moved_to_another_place_are_found() -> None:
    problem = Problem()
    penalty = problem.ours()
    penalty()
    problem.parameters[0].data = problem.parameters[0].data * 2
    assert penalty().item() == pytest.approx(problem.formula().item(), rel=1e-6)


def test_it_adds_to_the_gradients_of_another_loss() -> None:
    problem = Problem()
    penalty = problem.ours()
    wanted = []
    for term in (problem.formula, penalty):
        for _ in range(2):  # a second step must not find the first one's gradients in its own
            for p in problem.parameters:
                p.grad = None
            (sum(p.square().sum() for p in problem.parameters) + term()).backward()
        wanted.append([p.grad.clone() for p in problem.parameters if p.grad is not None])
    for one, other in zip(*wanted, strict=True):
        assert torch.equal(one, other)


def test_values_near_zero_are_exact_enough() -> None:
    problem = Problem()
    exact = sum(
        (w.double() * (p.detach().double() - a.double()).square()).sum()
        for p, a, w in zip(problem.parameters, problem.anchor, problem.weights, strict=True)
    )
    assert problem.ours()().item() == pytest.approx(problem.lam / 2 * float(exact), rel=1e-6)
