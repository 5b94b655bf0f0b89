"""The classifier of methods whose batches hold images of several tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods.base import Classifier, Context, Losses, masked_cross_entropy

NEVER = -1e9
"""Logit whose softmax is 0, and which may be multiplied by 0, unlike infinity."""


class MixedClassifier(Classifier):
    """``Classifier`` that also takes images of earlier tasks.

    With ``outputs: task`` the cross-entropy of an image is over the classes of the task which its
    label belongs to, the current one or an old one; otherwise over the same outputs for all. Label
    smoothing spreads over the outputs that compete.

    Raises:
        UserError: ``outputs: task``, but a class belongs to tasks with different classes, so that
            the label does not tell which outputs compete.
    """

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        if config.outputs == "task":
            rivals(context.stream.tasks, context.stream.num_outputs)  # refuse before training

    def cross_entropy(self, task: TaskInfo) -> Callable[[Tensor, Tensor], Tensor]:
        """Make the first term of the loss: a function of logits and labels to a mean."""
        if self.config.outputs != "task" or task.index == 0:  # as every classifier computes it
            active = self.active(task)
            return lambda z, labels: masked_cross_entropy(z, labels, active, self.smoothing)
        stream = self.context.stream
        allowed = rivals(stream.tasks, stream.num_outputs).to(self.context.device)
        if not self.smoothing:
            return lambda z, labels: F.cross_entropy(z.where(allowed[labels], -torch.inf), labels)
        spread = allowed / allowed.sum(1, keepdim=True)
        hard = torch.eye(len(allowed), device=allowed.device)
        targets = (1 - self.smoothing) * hard + self.smoothing * spread
        return lambda z, labels: F.cross_entropy(z.where(allowed[labels], NEVER), targets[labels])

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        cross_entropy = self.cross_entropy(task.info)
        return lambda batch: cross_entropy(self.logits(batch.images, None), batch.labels)


def rivals(tasks: tuple[TaskInfo, ...], num_outputs: int) -> Tensor:
    """Mark outputs that share a task: bool (num_outputs, num_outputs)."""
    allowed = torch.zeros(num_outputs, num_outputs, dtype=torch.bool)
    for task in tasks:
        classes = list(task.classes)
        row = torch.zeros(num_outputs, dtype=torch.bool)
        row[classes] = True
        if any(allowed[c].any() and not allowed[c].equal(row) for c in classes):
            raise UserError(
                "method.outputs",
                "'task' is ambiguous for old images: tasks share only some of their classes",
                "use outputs: seen",
            )
        allowed[classes] = row
    return allowed
