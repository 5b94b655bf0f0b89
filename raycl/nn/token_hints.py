"""Modules that let a student's tokens be compared with a teacher's of another width.

Shapes are written with B images, N tokens, and C_S and C_T channels of student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LinearHint(nn.Module):
    """FitNets: a linear map of the student's last tokens predicts the teacher's.

    (Romero et al., arXiv 1412.6550, with the tokens of a transformer for maps of features, as the
    code of arXiv 2407.13911 has it.)
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.map = nn.Linear(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference over all elements: a scalar.

        Args:
            student: (B, N, C_S).
            teacher: (B, N, C_T), without gradient.
        """
        return F.mse_loss(self.map(student), teacher)


class ReviewLevel(nn.Module):
    """Layers of one level of ``Review``; the deepest has no gate."""

    def __init__(self, student: int, teacher: int, deepest: bool) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(student, student), nn.LayerNorm(student)
        self.gate = None if deepest else nn.Linear(student, student)
        self.gate_norm = None if deepest else nn.LayerNorm(student)
        self.last_norm, self.last = nn.LayerNorm(student), nn.Linear(student, teacher)

    def fuse(self, tokens: Tensor, deeper: Tensor | None) -> Tensor:
        """Tokens of a level (B, N, C_S), joined with what all deeper levels have become."""
        own: Tensor = self.first_norm(self.first(tokens))
        if self.gate is None or self.gate_norm is None or deeper is None:
            return own
        gates = (self.gate_norm(self.gate(part)) for part in (own, deeper))
        mixed = sum(gate * part for gate, part in zip(gates, (own, deeper), strict=True))
        fused: Tensor = self.last_norm(mixed)
        return fused


class Review(nn.Module):
    """ReviewKD for tokens: every level, joined with all deeper ones, predicts the teacher's.

    From deep to shallow, with y_l = LN1(W1 f_l): h_D = y_D for the deepest level, and
    h_l = LN2(g(y_l) y_l + g(h_l+1) h_l+1) with g(x) = LN(W x) and products of elements; W2 h_l is
    compared with the teacher's tokens. (Chen et al., "Distilling Knowledge via Knowledge Review",
    arXiv 2104.09044, in the form for tokens of the code of arXiv 2407.13911.)

    Args:
        student: C_S.
        teacher: C_T.
        levels: Blocks of the student, D.
    """

    def __init__(self, student: int, teacher: int, levels: int) -> None:
        super().__init__()
        deepest = levels - 1
        self.levels = nn.ModuleList(
            ReviewLevel(student, teacher, level == deepest) for level in range(levels)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over levels of the mean squared difference over all elements: a scalar.

        Args:
            student: Outputs of its D blocks, (B, N, C_S) each.
            teacher: Outputs of its last D blocks, (B, N, C_T) each, without gradient.
        """
        total, deeper = student[-1].new_zeros(()), None
        for number in reversed(range(len(self.levels))):
            level: ReviewLevel = self.levels[number]  # type: ignore[assignment]
            deeper = level.fuse(student[number], deeper)
            total = total + F.mse_loss(level.last(deeper), teacher[number])
        return total / len(self.levels)
