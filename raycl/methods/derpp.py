"""Dark experience replay with labels: DER, and cross-entropy on another draw from the memory."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods.der import DER


class DERPlusPlus(DER):
    """Dark experience replay, see ``der``, whose stored images also keep their labels.

    Paper:
        "DER++" in Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple
        Baseline", NeurIPS 2020, arXiv 2004.07211, and its code (aimagelab/mammoth).

    Loss of every step but the very first, which has nothing stored:
        L = CE(z[outputs], y) + alpha MSE(f(x'), z') + beta CE(f(x'')[outputs], y'')

        x', z' and x'', y'' are two independent draws from the memory; each has a forward pass of
        its own, so there are three in a step. Everything else is as in ``der``.

    Symbols:
        alpha: ``alpha``. beta: ``beta``. M, the memory: ``reservoir``; its size: ``memory_size``.

    Published settings of that code:
        ResNet-18, batches of 32, SGD without momentum, ``memory_size: 200``. CIFAR-10 in 5 tasks:
        50 epochs, lr 0.03, alpha 0.1, beta 0.5. Tiny-ImageNet in 10 tasks: 100 epochs, lr 0.03,
        alpha 0.1, beta 1.

    Departures from the paper and from that code:
        * Those of ``der``; labels are used here. With ``outputs: task`` the second cross-entropy is
          over the classes of the task that an image came from.
    """

    class Config(DER.Config):
        """Options of DER++."""

        alpha: float = Field(0.1, ge=0, description="weight of the distance to stored logits")
        beta: float = Field(0.5, ge=0, description="weight of the cross-entropy on stored images")

    def objective(self, task: Task) -> Callable[[Batch], dict[str, Tensor]]:
        """See ``Classifier.objective``."""
        cross_entropy, beta = self.cross_entropy(task.info), self.config.beta
        der, draw = super().objective(task), self.replayer(self.context.augment)

        def loss(batch: Batch) -> dict[str, Tensor]:
            terms = der(batch)
            if self.replays:
                old = draw()
                terms["replay"] = beta * cross_entropy(self.logits(old.images, None), old.labels)
            return terms

        return loss
