"""Dark experience replay: stored images keep the logits they had when they were learnt."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._reservoir import ReservoirClassifier


class DER(ReservoirClassifier):
    """Plain training, with a pull of the logits of stored images to those stored with them.

    Paper:
        Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline",
        NeurIPS 2020, arXiv 2004.07211, and its code (aimagelab/mammoth).

    Loss of every step but the very first, which has nothing stored:
        L = CE(z[outputs], y) + alpha MSE(f(x'), z')

        x' are the lesser of ``train.batch_size`` and the number of stored images, drawn without
        replacement, augmented and normalised like current ones, in a forward pass of their own. z'
        are the logits stored with them: those of the pass that the image was learnt in, in train
        mode, of the image as it was augmented then. MSE is the mean over images and all outputs of
        the stream. The first task replays too. After the step the batch and its logits are offered
        to the memory, see ``raycl.nn.memory.Reservoir``.

    Symbols:
        alpha: ``alpha``. M, the memory: ``reservoir``; its size: ``memory_size``. The width of the
        softmax, all outputs of the stream from the start: ``outputs: all``.

    Published settings of that code:
        ResNet-18, batches of 32, SGD without momentum, ``memory_size: 200``. CIFAR-10 in 5 tasks:
        50 epochs, lr 0.03, alpha 0.3. Tiny-ImageNet in 10 tasks: 100 epochs, lr 0.03, alpha 0.1.

    Departures from the paper:
        * It writes the squared distance of the logits. Here, as in that code, it is divided by the
          number of outputs, and alpha is relative to that.
    Departures from that code:
        * Stored images are normalised with the statistics of the task they came from.
        * ``outputs: seen`` and ``outputs: task`` are ours. They concern the cross-entropy; logits
          are kept of all outputs, also of classes that are still to come.
        * Labels are stored, too, in eight bytes each, and not used.
    """

    class Config(ReservoirClassifier.Config):
        """Options of DER."""

        alpha: float = Field(0.3, ge=0, description="weight of the distance to stored logits")

    stores_logits = True

    def objective(self, task: Task) -> Callable[[Batch], dict[str, Tensor]]:
        """See ``Classifier.objective``."""
        cross_entropy, alpha = self.cross_entropy(task.info), self.config.alpha
        draw = self.replayer(self.context.augment)

        def loss(batch: Batch) -> dict[str, Tensor]:
            z = self.logits(batch.images, None)
            self.remember(batch, z)
            terms = {"cross_entropy": cross_entropy(z, batch.labels)}
            if self.replays:
                old = draw()
                terms["logits"] = alpha * F.mse_loss(self.logits(old.images, None), old.logits)
            return terms

        return loss
