"""Hints between tokens of different widths, by hand and by their sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raycl.nn.token_hints import LinearHint, Review


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


PAIRS = {
    (192, 384): (74_112, 1_755_072),
    (384, 768): (295_680, 6_975_360),
    (768, 1024): (787_456, 23_086_848),
}


@pytest.mark.parametrize("widths", PAIRS)
def test_trained_parameters(widths: tuple[int, int]) -> None:
    """Section 5.3 of the specification: Tiny to Small, Small to Base, Base to Large."""
    with torch.device("meta"):
        assert (size(LinearHint(*widths)), size(Review(*widths, 12))) == PAIRS[widths]


def test_linear_hint_by_hand() -> None:
    """Invariant 10: (1, 2) against (0, 4) is 2.5, of which a scheme takes a tenth."""
    hint = LinearHint(2, 2)
    with torch.no_grad():
        hint.map.weight.copy_(torch.tensor([[0.0, 1], [1, 0]]))
        hint.map.bias.copy_(torch.tensor([1.0, 0]))
    student = torch.tensor([[[2.0, 0]]])
    assert hint(student, torch.tensor([[[0.0, 4]]])).item() == pytest.approx(2.5)
    assert hint(student, torch.tensor([[[1.0, 2]]])).item() == 0
    both = hint(student.expand(3, 5, 2), torch.tensor([0.0, 4]).expand(3, 5, 2))
    assert both.item() == pytest.approx(2.5), "a mean over all elements"


def test_review_by_hand() -> None:
    """Two levels of width 2: norms leave (1, -1) and (-1, 1) as they are, up to epsilon."""
    review = Review(2, 2, 2)
    with torch.no_grad():
        for level in review.levels:
            for layer in (level.first, level.gate, level.last):
                if layer is not None:
                    layer.weight.copy_(torch.eye(2))
                    layer.bias.zero_()
    up, down = torch.tensor([[[1.0, -1]]]), torch.tensor([[[-1.0, 1]]])
    # deepest: h = up; first: y = down, both gates are the tokens: down^2 + up^2 = (2, 2), norm: 0
    zero = torch.zeros(1, 1, 2)
    found = review([down, up], [zero, up])
    assert found.item() == pytest.approx(0, abs=1e-4)
    assert review([down, up], [up, up]).item() == pytest.approx(0.5, abs=1e-4)
    assert review([down, up], [zero, down]).item() == pytest.approx(2, abs=1e-3)


def test_review_is_zero_where_every_level_is_the_teachers() -> None:
    """Invariant 10."""
    torch.manual_seed(0)
    review, student = Review(4, 6, 3), [torch.randn(2, 5, 4) for _ in range(3)]
    deeper, targets = None, []
    for level, tokens in zip(reversed(review.levels), reversed(student), strict=True):
        deeper = level.fuse(tokens, deeper)
        targets.insert(0, level.last(deeper).detach())
    assert review(student, targets).item() == 0
    targets[1] = targets[1] + 3
    assert review(student, targets).item() == pytest.approx(9 / 3, rel=1e-5)


def test_gradients_of_a_review() -> None:
    """All levels reach the deepest tokens; its gate is not there and its last norm not used."""
    review, student = Review(4, 6, 3), [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    review(student, [torch.randn(2, 5, 6) for _ in range(3)]).backward()
    assert all(tokens.grad.abs().sum() > 0 for tokens in student)
    deepest = review.levels[2]
    assert deepest.gate is deepest.gate_norm is None
    unused = [name for name, p in review.named_parameters() if p.grad is None]
    assert unused == ["levels.2.last_norm.weight", "levels.2.last_norm.bias"]
