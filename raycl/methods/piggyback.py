"""Piggyback: each task masks the weights of a frozen network."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from raycl.methods._masked import Masked
from raycl.nn.masks import above


class Piggyback(Masked):
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
    """

    class Config(Masked.Config):
        """Options of masks."""

        start: float = Field(0.01, description="real mask at first, the same everywhere")
        threshold: float = Field(0.005, description="tau: weights with a larger mask are used")

    own_norms = False
    config: Any

    def start(self, weight: Tensor) -> Tensor:
        """See ``Masked.start``."""
        return torch.full_like(weight, self.config.start)

    def binary(self, values: Tensor) -> Tensor:
        """See ``Masked.binary``."""
        return above(values, self.config.threshold)
