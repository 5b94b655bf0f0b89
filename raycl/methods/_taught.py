"""The classifier of methods that keep a frozen copy of the network as the last task left it."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from raycl.benchmarks.base import TaskInfo
from raycl.methods.base import Classifier, Context


class TaughtClassifier(Classifier):
    """``Classifier`` with a teacher: the network before the task, in eval mode, never trained.

    Where a task has another network, the old one itself becomes the teacher; else a copy of it.

    Attributes:
        teacher: Backbone and head; ``None`` in the first task.
    """

    teacher: nn.Sequential | None

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.teacher = None

    def add_task(self, task: TaskInfo) -> None:
        """Make the network as it is the teacher, from the second task on."""
        if task.index:
            changes = self.context.network_changes(task.index)
            self.teacher = self.network if changes else copy.deepcopy(self.network)
        super().add_task(task)

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """See ``Classifier.trainable``; without the teacher."""
        return list(self.network.parameters())

    @torch.no_grad()
    def taught(self, images: Tensor) -> Tensor:
        """The teacher's logits, float32 (B, num_outputs) in any precision; from the second task."""
        if self.teacher is None:
            raise ValueError("no teacher in the first task")
        return self.teacher(images).float()  # type: ignore[no-any-return]

    def old(self, task: TaskInfo) -> Tensor:
        """Sorted output ids of all earlier tasks: the n_old classes that the teacher knows."""
        seen = self.context.stream.seen(task.index - 1) if task.index else ()
        return torch.tensor(sorted(seen), dtype=torch.int64, device=self.context.device)
