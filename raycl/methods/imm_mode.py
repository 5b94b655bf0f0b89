"""Incremental moment matching, mode: training near the old solution, then a merge with it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.methods._anchored import Anchored
from raycl.methods.base import Context, Outputs, from_end_of_task, from_task


class IMMMode(Anchored):
    """L2-transfer: training is pulled to the last solution; with ``merge: mode`` also merged.

    Paper:
        Lee et al., "Overcoming Catastrophic Forgetting by Incremental Moment Matching", NeurIPS
        2017, arXiv 1703.08475; as the baseline ``imm-mode`` of the code of Shi et al., "Continual
        Learning via Bit-Level Information Preserving", CVPR 2021, arXiv 2105.04444.

    Loss of task t > 1:
        L = CE(z[outputs], y) + lam / 2 * sum_i (theta_i - theta*_i)^2

    What happens at the end of a task with ``merge: mode``, i.e. the mode of a product of Gaussians
    around both solutions:
        theta_i <- (F_i theta_i + Fsum_i theta*_i) / (F_i + Fsum_i);   Fsum <- Fsum + F

        Fsum is 0 at first, so that the first task is not changed; a parameter with
        F_i = Fsum_i = 0 keeps its value. F is the Fisher diagonal of the task, taken before the
        merge; see ``ewc`` for the two estimates of it. In any case theta* is what the task ends
        with.

    Symbols:
        lambda: ``lam``. theta*: the buffer ``anchor``. Fsum: the buffer ``fisher``, only with
        ``merge: mode``. theta: all parameters, heads included.

    Departures from the paper:
        * ``merge: none``, the default, leaves the merge out. That is what the rows ``imm-mode`` of
          arXiv 2105.04444 are: the code writes the merged weights into a name of its own, not into
          the network. ``merge: mode`` is the method of the paper.
        * The mixing ratios alpha_t are equal.
    Departures from that code:
        * Where F_i + Fsum_i = 0, its formula gives 0.
        * It clips the gradient to a norm of 1000: set ``clip_norm: 1000`` in the ``train`` block.
        * Running statistics of batch normalisation are neither pulled nor merged (its network has
          none); in the pass for F they are left alone, see ``ewc``.
        * Heads are rows of one linear layer, see ``finetune``.
    """

    class Config(Anchored.Config):
        """Options of IMM."""

        outputs: Outputs = "task"
        lam: float = Field(
            0.01, ge=0, description="strength of the penalty", json_schema_extra=from_task(2)
        )
        merge: Literal["none", "mode"] = Field(
            "none",
            description="none: L2-transfer alone, as published; mode: merge after each task; "
            "the options of the Fisher are for mode",
            json_schema_extra=from_end_of_task(1),
        )

    first_task_of = "finetune"
    fisher: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        if config.merge == "mode":
            self.register_buffer("fisher", self.anchor.clone())

    def end_task(self, task: Task) -> None:
        """Merge, if asked to, and move the anchor."""
        if self.config.merge == "mode":
            new = self.estimate_fisher(task)
            self.merge(new)
            self.fisher.add_(new)
        super().end_task(task)

    @torch.no_grad()
    def merge(self, new: Tensor) -> None:
        """Put every parameter between the anchor and where it is.

        Args:
            new: The Fisher of the task that ends, in the order of ``anchor``.
        """
        both = new + self.fisher
        share = torch.where(both > 0, new / both, 1.0)
        # lerp keeps every bit where both ends are equal and where the share is 0 or 1
        merged = torch.lerp(self.anchor, self.position(), share)
        parameters = list(self.protected().values())
        parts = torch.split(merged, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
