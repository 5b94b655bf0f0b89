"""A network that learns features in the first task only, and a linear head in every task."""

from __future__ import annotations

from torch import nn

from raycl.benchmarks.base import TaskInfo
from raycl.methods.base import Classifier, Outputs
from raycl.nn.norms import freeze_batch_norm


class SGDFrozen(Classifier):
    """Plain training of the first task; of every later task only its head is trained.

    Paper:
        None of its own. It is the baseline ``sgd-frozen`` in the code of Shi et al., "Continual
        Learning via Bit-Level Information Preserving", CVPR 2021, arXiv 2105.04444.

    Loss:
        L = CE(z[outputs], y), the mean over the batch.

    Symbols:
        h_t, the head of task t: the rows of one linear layer that belong to task t, with
        ``outputs: task``. With it, without weight decay, and if tasks share no outputs, nothing is
        ever forgotten under the task readout: R[t, u] is R[u, u] to the last bit. Otherwise later
        tasks change rows that earlier ones have learnt.

    Departures from that code:
        * The statistics of batch normalisation stay as the first task left them. Its network has
          none, and with moving statistics old tasks would be forgotten. As in that code, dropout in
          the frozen features stays active in training.
        * Heads are rows of one linear layer, see ``finetune``.
    """

    class Config(Classifier.Config):
        """Options of frozen features."""

        outputs: Outputs = "task"

    first_task_of = "finetune"
    frozen = False

    def add_task(self, task: TaskInfo) -> None:
        """Freeze the features, from the second task on."""
        self.frozen = task.index > 0

    def trainable(self) -> list[nn.Parameter]:
        """See ``Classifier.trainable``."""
        return list((self.head if self.frozen else self).parameters())

    def train(self, mode: bool = True) -> SGDFrozen:
        """See ``nn.Module.train``; frozen batch normalisation stays in eval mode."""
        super().train(mode)
        if self.frozen:
            freeze_batch_norm(self)
        return self
