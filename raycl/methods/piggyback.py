"""Piggyback: each task masks the weights of a frozen network."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from raycl.errors import UserError
from raycl.methods._masked import Masked
from raycl.methods._per_task import OnAnchor
from raycl.methods.base import Context
from raycl.nn.masks import above


class Piggyback(OnAnchor, Masked):
    """A frozen network, and for each task a mask of bits over its weights and a head.

    Paper:
        Mallya, Davis & Lazebnik, "Piggyback: Adapting a Single Network to Multiple Tasks by
        Learning to Mask Weights", ECCV 2018, arXiv 1801.06519, and its code (arunmallya/piggyback).

    A weight W of a convolution or linear layer is W 1[m > tau] in a task. Real masks m, one number
    per weight, and the head are trained with cross-entropy over the task's classes. The gradient
    passes the step function unchanged: dL/dm = W dL/d(W 1[m > tau]). When the task ends, 1[m > tau]
    remains, as bits, and m is gone.

    Symbols:
        tau: ``threshold``. m is ``start`` everywhere at first, so that the network starts as it is.

    Biases stay as they are, and so do batch normalisations: eval mode, running statistics frozen.

    Recipe of that code: Adam at 0.0001 for masks and head, a tenth from epochs 16 on (it is 30 of
    them), batches of 32, no weight decay.

    Departures:
        * m and the head have one optimiser, that of ``train``; there they have one each, with the
          same rate.
        * ``penalty`` is 0, as there; above 0 it sums the norms of m and of the head, too.
        * ``anchor: first_task`` is not in that code; see ``clr``. While the first task trains the
          network its mask is 1, and its m is trained from then on.

    Raises:
        UserError: With ``anchor: first_task``, masks that are 0 at first.
    """

    class Config(OnAnchor.Config):
        """Options of masks."""

        unless_given: ClassVar[tuple[str, ...]] = ("anchor",)

        start: float = Field(0.01, description="real mask at first, the same everywhere")
        threshold: float = Field(0.005, description="tau: weights with a larger mask are used")

    own_norms = False
    config: Any

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        if config.anchor == "first_task" and config.start <= config.threshold:
            raise UserError(
                "method.start",
                f"{config.start:g} is not above threshold {config.threshold:g}: nothing is left of "
                "the network that the first task is to train",
            )

    def train(self, mode: bool = True) -> Self:
        """See ``Layered.train``; normalisations learn while the network is trained."""
        super().train(mode)
        if self.anchoring:
            self.backbone.train(mode)
        return self

    def start(self, weight: Tensor) -> Tensor:
        """See ``Masked.start``."""
        return torch.full_like(weight, self.config.start)

    def binary(self, values: Tensor) -> Tensor:
        """See ``Masked.binary``."""
        return above(values, self.config.threshold)
