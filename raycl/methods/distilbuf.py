"""DistilBuf: distillation, and rehearsal of a small reservoir of old images."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._distilled import Distilled
from raycl.methods._reservoir import ReservoirClassifier
from raycl.methods.base import Losses
from raycl.nn.optim import Augmentation


class DistilBuf(ReservoirClassifier, Distilled):
    """Distillation, see ``distil``, with a small weight on stored images in a pass of their own.

    Paper:
        "DistilBuf" in Madaan et al., "Heterogeneous Continual Learning", CVPR 2023, arXiv
        2306.08593, and its code.

    Loss, from the second step of the first task on:
        L = LS(f(x), y) + alpha KD(f(x), g(x)) + w LS(f(aug(x')), y')
        x', y': min(B, filled) distinct images of the reservoir, B the batch size. LS and KD: see
        ``distil``; there is no KD in the first task, and none on stored images.

        After each step the images of the batch are offered to the reservoir as they are without
        augmentation, in every epoch anew. It is a uniform sample of all presentations, not of
        images: where each class is presented equally often, that is the same in the mean.

    Symbols:
        alpha: ``alpha``; in that code 1 for CIFAR-10 (the default) and Tiny-ImageNet, 3 for
        CIFAR-100. w: ``replay_weight``. aug: ``replay_augment``. Size of the reservoir:
        ``memory_size``. eps, T, g: see ``distil``.

    Departures from the paper:
        * Read in its code, not in the paper.
    Departures from that code:
        * Images are stored as 8-bit numbers; there, as the float numbers that these stand for.
        * Stored images are normalised with the statistics of the task that they came from.
        * ``select: validation_loss`` scores without stored images.
        * See ``distil``.
    """

    class Config(ReservoirClassifier.Config, Distilled.Config):
        """Options of distillation with a reservoir."""

        alpha: float = Field(1.0, ge=0, description="weight of the distillation")
        replay_weight: float = Field(0.3, ge=0, description="w, of the stored images")
        replay_augment: Augmentation = Field(
            "crop_flip", description="augmentation of the stored images; see train.augment"
        )

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        config, active = self.config, self.active(task.info)
        cross_entropy = self.cross_entropy(task.info)
        draw = self.replayer(self.context.augmentation(config.replay_augment))

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, None)
            self.remember(batch, z)
            terms = self.terms(z, batch, active)
            if self.replays:
                old = draw()
                replayed = cross_entropy(self.logits(old.images, None), old.labels)
                terms["replay"] = config.replay_weight * replayed
            return terms

        return loss
