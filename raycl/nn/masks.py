"""Binary masks over weights: learnt with straight-through gradients, kept as bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of ``hard``, exactly, with the gradient that ``soft`` would have."""
    return hard + (soft - soft.detach())


def above(values: Tensor, threshold: float) -> Tensor:
    """Mark values above a threshold with 1, others with 0; the gradient passes unchanged."""
    return straight_through((values > threshold).to(values.dtype), values)


def largest(scores: Tensor, share: float) -> Tensor:
    """Mark the largest magnitudes with 1, and int((1 - share) n) of n scores with 0.

    The gradient passes to the magnitudes unchanged, so that of a score has the score's sign.
    """
    size = scores.abs()
    flat = size.detach().flatten()
    ones = flat.numel() - int((1 - share) * flat.numel())
    hard = torch.zeros_like(flat)
    hard[flat.topk(ones, sorted=False).indices] = 1
    return straight_through(hard.view(scores.shape), size)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack eight bits into a byte, the first the lowest: bool (n,) to uint8 (ceil(n / 8),)."""
    rows = F.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (rows << _places(bits)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` bits that ``pack_bits`` has packed: bool (count,)."""
    return (packed[:, None] >> _places(packed) & 1).bool().flatten()[:count]


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


class TaskMasks(nn.Module):
    """One task's masks of several tensors: real numbers while they are learnt, then bits.

    The constructor makes the first form, ``finish`` the second. Loading a state of the second form
    leads there, too.

    Args:
        start: The real numbers behind each mask at first.
        binary: Real numbers to a mask of zeros and ones, with a gradient.
    """

    real: nn.ParameterList | None
    bits: Tensor | None

    def __init__(self, start: Sequence[Tensor], binary: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shapes = [values.shape for values in start]
        self.binary = binary
        self.real = nn.ParameterList(nn.Parameter(values) for values in start)
        self.register_buffer("bits", None)
        self.register_load_state_dict_pre_hook(_take_form)  # type: ignore[no-untyped-call]

    def masks(self) -> list[Tensor]:
        """Zeros and ones, one tensor for each: floats with a gradient, or bool from bits."""
        if self.real is not None:
            return [self.binary(values) for values in self.real]
        assert self.bits is not None
        sizes = [shape.numel() for shape in self.shapes]
        parts = torch.split(unpack_bits(self.bits, sum(sizes)), sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @torch.no_grad()
    def finish(self) -> None:
        """Keep the masks as bits, and nothing else."""
        masks = torch.cat([mask.flatten().bool() for mask in self.masks()])
        self.real, self.bits = None, pack_bits(masks)


def _take_form(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if isinstance(module, TaskMasks) and f"{prefix}bits" in state:
        module.finish()
