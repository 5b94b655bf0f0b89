"""Experience replay: every step learns from a batch of the task and a batch from a reservoir."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._reservoir import ReservoirClassifier


class ER(ReservoirClassifier):
    """Plain training on current images and, in every step, on as many stored ones.

    Paper:
        "ER" with a reservoir in Chaudhry et al., "On Tiny Episodic Memories in Continual Learning",
        2019, arXiv 1902.10486, and in Riemer et al., "Learning to Learn without Forgetting by
        Maximizing Transfer and Minimizing Interference", ICLR 2019, arXiv 1810.11910; as the
        baseline in Buzzega et al., "Dark Experience for General Continual Learning: a Strong,
        Simple Baseline", NeurIPS 2020, arXiv 2004.07211, whose code (aimagelab/mammoth) this form
        is from.

    Loss of every step but the very first, which has nothing stored:
        L = CE(z[outputs], y), the mean over the B images of the batch and B' stored ones together

        B' is the lesser of ``train.batch_size`` and the number of images stored. They are drawn
        without replacement, augmented and normalised like current ones, and all B + B' go through
        the network in one forward pass. The first task replays too. After the step the batch is
        offered to the memory, see ``raycl.nn.memory.Reservoir``.

    Symbols:
        M, the memory: ``reservoir``; its size: ``memory_size``. The width of the softmax, all
        outputs of the stream from the start: ``outputs: all``.

    Published settings of that code:
        ResNet-18, batches of 32, SGD without momentum, ``memory_size: 200``. CIFAR-10 in 5 tasks:
        50 epochs, lr 0.1. Tiny-ImageNet in 10 tasks: 100 epochs, lr 0.1, and 0.03 with
        ``memory_size: 500``.

    Departures from the papers:
        * arXiv 1902.10486 and 1810.11910 see each image of a stream once. Here, as in that code, a
          task has several epochs, and every epoch offers its images to the memory anew.
        * arXiv 1902.10486 compares several rules of what is stored; only the reservoir is here.
    Departures from the code of arXiv 2004.07211:
        * Stored images are normalised with the statistics of the task they came from.
        * ``outputs: seen`` and ``outputs: task`` (each image against its own task's classes) are
          ours.
    """

    def objective(self, task: Task) -> Callable[[Batch], Tensor]:
        """See ``Classifier.objective``."""
        cross_entropy = self.cross_entropy(task.info)
        draw = self.replayer(self.context.augment)

        def loss(batch: Batch) -> Tensor:
            images, labels = batch.images, batch.labels
            if self.replays:
                old = draw()
                images, labels = torch.cat([images, old.images]), torch.cat([labels, old.labels])
            z = self.logits(images, None)
            self.remember(batch, z[: len(batch)])
            return cross_entropy(z, labels)

        return loss
