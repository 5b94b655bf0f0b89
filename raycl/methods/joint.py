"""Joint training: the upper bound, on all data so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch, concat
from raycl.methods._mixed import MixedClassifier
from raycl.methods.base import Context


class Joint(MixedClassifier):
    """A fresh network at every task, trained on the data of tasks 1..t together.

    Paper:
        "UB" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental
        Learning", ICCV 2021, arXiv 2106.09701: retrained at each prefix, so that every row of R is
        the upper bound of that prefix.

    Loss:
        L = CE(z[outputs], y), the mean over the batch, over shuffled images of all tasks so far.
        ``label_smoothing``: see ``finetune``.

    Symbols:
        n_seen, the width of the softmax: ``outputs: seen``. Epochs at each prefix:
        ``train.epochs``.

    Departures:
        * Optimiser and schedule are the sweep file's ``train`` block, as for every method. An epoch
          is a pass over all data so far, so task t takes about t times the steps of task 1.
        * ``outputs: task`` (each image against its own task's classes) is ours: the upper bound of
          the task-incremental readout.
        * ``train.select`` by validation loss or accuracy, and a plateau schedule, see the
          validation set of the newest task only. For a bound over all tasks take ``select:
          seen_accuracy`` or ``last``.
        * Where tasks have networks of their own, task t is the bound of network t.
    """

    class Config(MixedClassifier.Config):
        """Options of joint training."""

        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="share of the target that is spread over all outputs"
        )

    first_task_of = "finetune"
    memory = "all"
    any_network = True

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.smoothing = config.label_smoothing

    def begin_task(self, task: Task) -> None:
        """Start again from new random weights; at the first task the weights still are new."""
        if task.info.index:
            self.renew_network(task.info.index)
            self.to(self.context.device)

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch of the data of all tasks so far."""
        train = self.context.train
        return concat([*task.past, task.train]).batches(
            train.batch_size,
            generator=self.context.data_generator,
            augment=self.context.augment,
            drop_last=train.drop_last,
        )
