"""Base of the methods of heterogeneous continual learning: smoothed labels and a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Context, Losses, Outputs, Phase, from_task, masked_cross_entropy
from raycl.nn.distillation import soft_divergence


class Distilled(TaughtClassifier):
    """A student that imitates all outputs of the network before it, whatever that was.

    Where an epoch is selected (``train.select``) and the next task has the same network, the kept
    epoch is what is evaluated and becomes the teacher, while the student goes on with its last
    epoch. Where the network changes, only the kept epoch matters.

    Attributes:
        onward: The student after its last epoch, if it goes on from there; else ``None``.
    """

    class Config(TaughtClassifier.Config):
        """Options of distillation."""

        outputs: Outputs = "all"
        alpha: float = Field(
            3.0, ge=0, description="weight of the distillation", json_schema_extra=from_task(2)
        )
        temperature: float = Field(
            1.0, gt=0, description="T, divides the logits in it", json_schema_extra=from_task(2)
        )
        label_smoothing: float = Field(
            0.1, ge=0, lt=1, description="share of the target that is spread over all outputs"
        )

    any_network = True
    onward: nn.Sequential | None

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.smoothing = config.label_smoothing
        self.onward = None

    def add_task(self, task: TaskInfo) -> None:
        """See ``TaughtClassifier.add_task``; make room for the student's last epoch."""
        super().add_task(task)
        if self.onward is not None and not self.context.network_changes(task.index):
            self.network.load_state_dict(self.onward.state_dict())
        after = task.index + 1
        goes_on = after < len(self.context.tasks) and not self.context.network_changes(after)
        selects = self.context.train.select != "last"
        self.onward = copy.deepcopy(self.network) if selects and goes_on else None

    def phases(self, task: Task) -> list[Phase]:
        """One phase, ``train``."""
        (train,) = super().phases(task)
        return [train if self.onward is None else replace(train, kept=self.keep)]

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Set the student's last epoch aside and put the kept one in its place."""
        if self.onward is None:
            raise ValueError("no student goes on from here")
        self.onward.load_state_dict(self.network.state_dict())
        self.load_state_dict(kept, strict=False)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        active = self.active(task.info)
        return lambda batch: self.terms(self.logits(batch.images, None), batch, active)

    def terms(self, z: Tensor, batch: Batch, active: Tensor) -> dict[str, Tensor]:
        """Smoothed cross-entropy, and from the second task on the distillation.

        Args:
            z: The student's logits of the batch, (B, num_outputs).
            batch: Images of the current task.
            active: See ``active``.
        """
        terms = {"cross_entropy": masked_cross_entropy(z, batch.labels, active, self.smoothing)}
        if self.teacher is not None:
            terms["distillation"] = self.distillation(z, self.taught(batch.images))
        return terms

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distillation term alpha KD(student, teacher) of logits (B, num_outputs), a scalar."""
        return self.config.alpha * soft_divergence(student, teacher, self.config.temperature)  # type: ignore[no-any-return]
