"""A quadratic penalty on leaving an anchor, whose gradient is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 32_768
"""Numbers at a time on a CPU: differences stay in its cache, and are added up exactly enough."""


class QuadraticPenalty:
    """lam / 2 * sum_i w_i (theta_i - theta*_i)^2, for autograd; w and theta* do not change.

    The gradient is lam w (theta - theta*), computed together with the value in one pass over the
    parameters. It has the bits that autograd gives for the formula, and the value is the formula's
    to about 1e-7. A pass over memory is what this penalty costs: for each parameter, 8 bytes are
    kept beside it, lam w and the gradient.

    Args:
        parameters: theta, float32; in any memory format.
        anchor: theta*, as many numbers for each parameter, in any shape.
        strength: lam.
        weights: w, like the anchor; ``None``: all are 1.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        anchor: Sequence[Tensor],
        strength: float,
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.gradients = [torch.empty_like(p) for p in parameters]
        self._anchor = [_laid_out(a, p) for a, p in zip(anchor, parameters, strict=True)]
        self._scaled: list[Tensor | None] = [None] * len(self.parameters)
        if weights is not None:
            pairs = zip(weights, parameters, strict=True)
            self._scaled = [_laid_out(strength * w, p) for w, p in pairs]
        self._strength = strength
        self._at: list[int] = []

    def __call__(self) -> Tensor:
        """Penalty of the parameters as they are now: a scalar, with a gradient."""
        return _Penalty.apply(self, *self.parameters)  # type: ignore[no-any-return, no-untyped-call]

    def measure(self) -> Tensor:
        """The penalty now, without graph; ``gradients`` become its gradient."""
        if self._at != (at := [p.data_ptr() for p in self.parameters]):
            self._at, self._parts = at, self._split()
        values = []
        for parameter, anchor, scaled, gradient, difference in self._parts:
            torch.sub(parameter, anchor, out=difference)
            torch.mul(difference, scaled, out=gradient)
            values.append(torch.dot(gradient, difference))
        return 0.5 * torch.stack(values).sum()

    def _split(self) -> list[tuple[Tensor, Tensor, Any, Tensor, Tensor]]:
        """Chunks of all tensors: parameter, anchor, lam w, gradient, room for a difference."""
        largest = max(p.numel() for p in self.parameters)
        length = min(CHUNK, largest) if self.parameters[0].device.type == "cpu" else largest
        room = torch.empty(length, device=self.parameters[0].device)
        parts: list[tuple[Tensor, Tensor, Any, Tensor, Tensor]] = []
        for p, anchor, scaled, gradient in zip(
            self.parameters, self._anchor, self._scaled, self.gradients, strict=True
        ):
            dense = [torch.split(_in_memory(t), length) for t in (p.detach(), anchor, gradient)]
            strengths: Sequence[Any] = [self._strength] * len(dense[0])
            if scaled is not None:
                strengths = torch.split(_in_memory(scaled), length)
            for own, away, towards, strength in zip(*dense, strengths, strict=True):
                parts.append((own, away, strength, towards, room[: len(own)]))
        return parts


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """Values in the shape and memory layout of another tensor; copied only where they have none."""
    values = values.view_as(like)
    if values.stride() == like.stride():
        return values
    return torch.empty_like(like).copy_(values)


def _in_memory(tensor: Tensor) -> Tensor:
    """A dense tensor as one row, in the order in which it lies in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


class _Penalty(torch.autograd.Function):
    """The penalty as a function of its parameters."""

    @staticmethod
    def forward(ctx: Any, penalty: QuadraticPenalty, *parameters: Tensor) -> Tensor:
        """Value, and the gradient for ``backward``."""
        ctx.penalty = penalty
        return penalty.measure()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        """The gradient that ``forward`` has computed, times that of what follows."""
        gradients = ctx.penalty.gradients
        if outer.device.type != "cpu" or float(outer) != 1.0:  # read where that costs nothing
            gradients = [outer * gradient for gradient in gradients]
        return None, *gradients
