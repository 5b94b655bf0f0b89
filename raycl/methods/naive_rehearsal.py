"""Naive rehearsal: a random coreset of old images, mixed into every batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._mixed import MixedClassifier
from raycl.methods.base import Context
from raycl.nn.memory import ExemplarMemory


class NaiveRehearsal(MixedClassifier):
    """Plain training on the current data and, in equal number, on stored images.

    Paper:
        "Naive Rehearsal" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free
        Class-Incremental Learning", ICCV 2021, arXiv 2106.09701, after Hsu et al., "Re-evaluating
        Continual Learning Scenarios: A Categorization and Case for Strong Baselines", NeurIPS 2018
        workshop, arXiv 1810.12488.

    Loss:
        L = CE(z[outputs], y), the mean over a batch of B current and B stored images.

    Symbols:
        M, the size of the coreset: ``memory_size``, in images over all tasks together; 2000 in
        arXiv 2106.09701. n_seen, the width of the softmax: ``outputs: seen``. Quota of each class:
        ``raycl.nn.memory.quotas``.

    Departures from the code of arXiv 2106.09701:
        * It lengthens the list of images once per task, with as many draws from the memory (with
          replacement) as there are new images, and cuts batches of B from the shuffled list: about
          B/2 old images in each, twice the steps, and exemplars not drawn are never seen in that
          task. Here every batch of B current images gets B draws from the memory, with replacement
          and fresh at every step: batches of 2B, as many steps as without memory, and any exemplar
          may be seen.
        * It picks the next memory from the lengthened list, so that duplicates accumulate (7.9 of
          every 10 images are unique after three of five tasks by simulation). Here no image is
          stored twice: old images are thinned to their new quota, new ones are drawn from the
          task's own training set without replacement. Both are uniform within a class.
        * Where tasks share classes, the quota is per class and task.
        * Stored images are normalised with the statistics of the task they came from, and augmented
          like current ones.
    """

    class Config(MixedClassifier.Config):
        """Options of naive rehearsal."""

        memory_size: int = Field(200, ge=1, description="images stored, over all tasks together")

    memory = "exemplars"

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.exemplars = ExemplarMemory(config.memory_size, context.stream.input_shape)

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch of the task's own data, each batch followed by as many stored images."""
        current = super().train_batches(task)
        return self.mixed(current, len(self.exemplars)) if task.info.index else current

    def mixed(self, batches: Iterable[Batch], stored: int) -> Iterator[Batch]:
        """Each batch with as many stored images behind it; their ``index`` is -1.

        Args:
            batches: Batches of the current task.
            stored: Filled slots of the memory.
        """
        memory, context = self.exemplars, self.context
        mean, std = (
            torch.tensor(values, device=context.device)[:, :, None, None]
            for values in (context.stream.mean, context.stream.std)
        )
        scale, shift = 1 / (255 * std), -mean / std
        for batch in batches:
            drawn = torch.randint(stored, (len(batch),), generator=context.method_generator)
            drawn = drawn.to(context.device)
            raw, task = memory.images.index_select(0, drawn), memory.tasks.index_select(0, drawn)
            raw = raw if context.augment is None else context.augment(raw)
            old = raw.float().mul_(scale[task]).add_(shift[task])
            yield Batch(
                torch.cat([batch.images, old]),
                torch.cat([batch.labels, memory.labels.index_select(0, drawn)]),
                torch.cat([batch.index, torch.full_like(drawn, -1)]),
            )

    def end_task(self, task: Task) -> None:
        """Thin the memory to the new quota and store images of this task."""
        tasks = self.context.stream.tasks[: task.info.index + 1]
        self.exemplars.update(
            [(t.index, c) for t in tasks for c in t.classes],
            task.train.labels,
            task.train.raw,
            self.context.method_generator,
        )

    def diagnostics(self) -> dict[str, float]:
        """Images stored."""
        return {"exemplars": float(len(self.exemplars))}
