"""Weights whose leading bits earlier tasks have fixed: BLIP's quantised layers.

Shi et al., "Continual Learning via Bit-Level Information Preserving", CVPR 2021, arXiv 2105.04444,
as its code has it: the forward pass is the ordinary one of ``nn.Linear`` and ``nn.Conv2d``; a
weight is rounded only at the end of a task, to the bits it has frozen by then, and may move by one
step of that grid while later tasks are learnt. So the layers stay plain, and what is kept per
weight lies here, beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Drift = Literal["full_step", "half_step", "cell"]
ZeroBits = Literal["reset", "keep"]
LIMIT = 20
"""Largest number of bits; rounding to finer grids is not exact in float32."""


@dataclass(frozen=True)
class Quantised:
    """A parameter with bits.

    Attributes:
        parameter: Weight or bias of a layer.
        bound: B: values lie in [-B, B], and b bits are a grid of spacing B 2^-b.
        prior: F_0, the Fisher information that stands for what is known before the first task.
    """

    parameter: nn.Parameter
    bound: float
    prior: float


def quantise(w: Tensor, bits: Tensor, bound: float) -> Tensor:
    """Q(w, b, B) = B round(2^b w / B) / 2^b, rounding half to even; 0 where b = 0.

    Args:
        w: Any shape, float.
        bits: Integers of the same shape, 0..20.
        bound: B. The grid includes -B and B.
    """
    cells = _powers(bits, w)
    return torch.where(bits == 0, 0.0, bound * torch.round(cells * (w / bound)) / cells)


def new_bits(new: Tensor, old: Tensor, tasks: int) -> Tensor:
    """Number of further bits that a task freezes: max(0, ceil(IG)), without a logarithm.

    IG = 1/2 log2((F + (t + 1) Fbar) / ((t + 2) Fbar)), the information gain, is above n - 1 if and
    only if F / Fbar > (t + 2) 4^(n - 1) - (t + 1). Evaluated in float64, so that thresholds are
    exact.

    Args:
        new: F, the Fisher information of the task, any shape.
        old: Fbar, its running mean before the task, prior included; above 0.
        tasks: t, tasks learnt before this one.

    Returns:
        int64, the shape of ``new``; at most ``LIMIT``.
    """
    thresholds = [(tasks + 2) * 4.0**n - (tasks + 1) for n in range(LIMIT)]
    table = torch.tensor(thresholds, dtype=torch.float64, device=new.device)
    return torch.searchsorted(table, new.double() / old.double())


class FrozenBits(nn.Module):
    """The state of BLIP: 9 bytes per scalar beside the weight, however many tasks there are.

    While a task is learnt its ``limits`` take another 8.

    Args:
        parameters: The quantised parameters, by name. They stay where they are: this module holds
            no parameter of its own, and its state has none.
        max_bits: Most bits a scalar can freeze.
        drift: The distance that a scalar with b >= 1 bits may move from its rounded value while a
            task is learnt. ``full_step``: B 2^-b, the published behaviour, where rounding can carry
            into frozen bits and a weight can drift by a step in every task; ``half_step``: half of
            it; ``cell``: less than half, and what a task's end rounds it to stays as near, so that
            rounding to b bits gives the same value for ever: the bits are frozen indeed.
        zero_bits: The fate of scalars without bits at a boundary: ``reset`` them to 0, as
            published, or ``keep`` them as they are.

    Attributes:
        previous: float32 (P,), values at the last boundary; 0 before the first.
        bits: uint8 (P,), bits frozen so far.
        fisher: float32 (P,), the running mean of the Fisher information, the prior counting as one
            task. Far below what half precision can hold.
    """

    previous: Tensor
    bits: Tensor
    fisher: Tensor

    def __init__(
        self,
        parameters: Mapping[str, Quantised],
        max_bits: int = LIMIT,
        drift: Drift = "full_step",
        zero_bits: ZeroBits = "reset",
    ) -> None:
        super().__init__()
        if not 1 <= max_bits <= LIMIT:
            raise ValueError(f"max_bits must be 1..{LIMIT}, not {max_bits}")
        self.names = tuple(parameters)
        self.of = tuple(parameters.values())
        self.max_bits, self.drift, self.zero_bits = max_bits, drift, zero_bits
        self.sizes = [q.parameter.numel() for q in self.of]
        priors = [torch.full((n,), q.prior) for n, q in zip(self.sizes, self.of, strict=True)]
        self.register_buffer("previous", torch.zeros(sum(self.sizes)))
        self.register_buffer("bits", torch.zeros(sum(self.sizes), dtype=torch.uint8))
        self.register_buffer("fisher", torch.cat(priors))

    def limits(self) -> tuple[list[Tensor], list[Tensor]]:
        """Least and greatest values that the current task may give, in the parameters' shapes.

        A scalar without bits is free inside +-B (1 - 2^-max_bits), which bounds all of them.
        """
        low, high = [], []
        for q, previous, bits in self._zip(self.previous, self.bits):
            reach = q.bound / _powers(bits, previous)
            if self.drift != "full_step":
                reach /= 2
            if self.drift == "cell":
                reach -= q.bound * 2.0 ** -(self.max_bits + 2)
            reach.masked_fill_(bits == 0, torch.inf)
            edge = q.bound * (1 - 2.0**-self.max_bits)
            low.append((previous - reach).clamp_(-edge, edge))
            high.append((previous + reach).clamp_(-edge, edge))
        return low, high

    @torch.no_grad()
    def clamp_(self, low: list[Tensor], high: list[Tensor]) -> None:
        """Put the parameters back inside their limits; called after every step of the optimiser."""
        for q, least, greatest in zip(self.of, low, high, strict=True):
            q.parameter.clamp_(least, greatest)

    @torch.no_grad()
    def consolidate(self, fisher: Tensor, tasks: int) -> None:
        """End a task: freeze bits, round to them, and add its Fisher information to the mean.

        Args:
            fisher: (P,), of this task.
            tasks: t, tasks learnt before this one.

        Raises:
            ValueError: The Fisher information is not finite.
        """
        if not fisher.isfinite().all():
            raise ValueError("the Fisher information is not finite: the network has diverged")
        for q, previous, bits, old, new in self._zip(self.previous, self.bits, self.fisher, fisher):
            had = bits.clone()
            bits.copy_(new_bits(new, old, tasks).add_(bits).clamp_(max=self.max_bits))
            rounded = quantise(q.parameter, bits, q.bound)
            if self.drift == "cell":
                room = q.bound * (0.5 / _powers(had, old) - 1 / _powers(bits, old)).clamp_(min=0)
                inside = previous + (rounded - previous).clamp(-room, room)
                rounded = torch.where(had == 0, rounded, quantise(inside, bits, q.bound))
            if self.zero_bits == "keep":
                rounded = torch.where(bits == 0, q.parameter, rounded)
            q.parameter.copy_(rounded)
            previous.copy_(rounded)
            old.mul_(tasks + 1).add_(new).div_(tasks + 2)

    def capacity(self) -> float:
        """Share of all bits that are frozen: sum of bits / (max_bits P)."""
        return int(self.bits.sum()) / (self.max_bits * len(self.bits))

    def counts(self) -> dict[str, list[int]]:
        """Number of scalars with 0, 1, ..., max_bits bits, for each parameter."""
        parts = torch.split(self.bits, self.sizes)
        return {
            name: torch.bincount(part, minlength=self.max_bits + 1).tolist()
            for name, part in zip(self.names, parts, strict=True)
        }

    def _zip(self, *flat: Tensor) -> zip[tuple]:  # type: ignore[type-arg]
        """Each parameter with its part of the flat tensors, in its shape."""
        parts = [
            [part.view_as(q.parameter) for part, q in zip(split, self.of, strict=True)]
            for split in (torch.split(tensor, self.sizes) for tensor in flat)
        ]
        return zip(self.of, *parts, strict=True)


def _powers(bits: Tensor, like: Tensor) -> Tensor:
    """2^b, exactly, as floats of the kind of ``like``."""
    table = torch.tensor([2.0**b for b in range(LIMIT + 1)], dtype=like.dtype, device=like.device)
    return table[bits.long()]
