"""Base of EWC and its relatives: an anchor, a penalty on leaving it, estimates of the Fisher."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods.base import (
    Classifier,
    Context,
    Losses,
    from_end_of_task,
    from_task,
    masked_cross_entropy,
)
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.quadratic import QuadraticPenalty

PUBLISHED_BATCH = 20
"""Factor in ``Anchored.batch_mean_fisher``."""


class Anchored(Classifier):
    """A classifier that is pulled to the last solution, theta*, from the second task on.

    L = CE(z[outputs], y) + lam / 2 * sum_i w_i (theta_i - theta*_i)^2

    The sum is over ``protected``; the weights w are ``importance``.
    """

    class Config(Classifier.Config):
        """Options of every method with an anchor."""

        lam: float = Field(
            ge=0, description="strength of the penalty", json_schema_extra=from_task(2)
        )
        fisher: Literal["batch_mean", "per_example"] = Field(
            "batch_mean",
            description="estimate of the Fisher: squared gradients of batches with their true "
            "labels, times 20; or of single images with labels drawn from the model",
            json_schema_extra=from_end_of_task(1),
        )
        fisher_samples: int = Field(
            1000,
            ge=1,
            description="per_example: images of the task, at most all of them",
            json_schema_extra=from_end_of_task(1),
        )

    anchor: Tensor

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.register_buffer("anchor", torch.zeros_like(self.position()))

    @property
    def importance(self) -> Tensor | None:
        """The weights w, in the order of ``anchor``; ``None`` if all are 1."""
        return None

    def protected(self) -> dict[str, nn.Parameter]:
        """Names, in ``network``, of the parameters under the penalty, in the buffers' order."""
        return dict(self.network.named_parameters())

    def position(self) -> Tensor:
        """A copy of the protected parameters, in the order of the buffers."""
        return torch.cat([p.detach().flatten() for p in self.protected().values()])

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``; the first task has no penalty."""
        if task.info.index == 0:
            return super().objective(task)
        active, penalty = self.active(task.info), self.penalty()

        def loss(batch: Batch) -> Losses:
            pull = penalty()  # first, so that its gradient comes last and is added in place
            z = self.logits(batch.images, task.info.index)
            return {
                "cross_entropy": masked_cross_entropy(z, batch.labels, active),
                "penalty": pull,
            }

        return loss

    def penalty(self) -> QuadraticPenalty:
        """The second term of the loss, for as long as ``anchor`` and ``importance`` stay."""
        parameters = list(self.protected().values())
        sizes = [p.numel() for p in parameters]
        weights = None if self.importance is None else torch.split(self.importance, sizes)
        anchor = torch.split(self.anchor, sizes)
        return QuadraticPenalty(parameters, anchor, self.config.lam, weights)

    def end_task(self, task: Task) -> None:
        """Move the anchor to where the task has ended."""
        self.anchor.copy_(self.position())

    def estimate_fisher(self, task: Task) -> Tensor:
        """Estimate the Fisher diagonal of the protected parameters, as the option ``fisher`` says.

        The softmax is over the outputs of the cross-entropy. Images are drawn with the method's own
        generator, so that later tasks see their data in the order any other method does.
        """
        if self.config.fisher == "batch_mean":
            return self.batch_mean_fisher(task)
        return self.sampled_fisher(task, list(self.protected()), self.config.fisher_samples)

    def batch_mean_fisher(self, task: Task) -> Tensor:
        """20 / n_batches * sum over batches of (d CE / d theta)^2, CE the mean over the batch.

        One pass over shuffled training batches with their true labels, in train mode: with dropout.
        Batch normalisation alone stays in eval mode, so that the pass does not change the model.
        """
        active, train = self.active(task.info), self.context.train
        parameters = list(self.protected().values())
        sums = [torch.zeros_like(p) for p in parameters]
        batches = task.train.batches(
            train.batch_size,
            generator=self.context.method_generator,
            augment=self.context.augment,
            drop_last=train.drop_last,
        )
        self.train()
        freeze_batch_norm(self)
        count = 0
        for batch in batches:
            z = self.logits(batch.images, task.info.index)
            loss = masked_cross_entropy(z, batch.labels, active)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for sum_, g in zip(sums, gradients, strict=True):
                sum_.addcmul_(g, g)
            count += 1
        self.eval()
        return torch.cat([sum_.flatten() for sum_ in sums]).mul_(PUBLISHED_BATCH / count)


class FisherAnchored(Anchored):
    """``Anchored`` whose weights are a Fisher diagonal, gathered over tasks.

    Attributes:
        fisher: float32 (P,), what ``gather`` has made of the tasks so far; 0 at the start.
    """

    fisher: Tensor

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.register_buffer("fisher", torch.zeros_like(self.anchor))

    @property
    def importance(self) -> Tensor:
        """See ``Anchored.importance``."""
        return self.fisher

    @abstractmethod
    def gather(self, new: Tensor, tasks: int) -> None:
        """Add the Fisher of a task to ``fisher``.

        Args:
            new: Fisher of this task, (P,).
            tasks: Number of tasks before this one.
        """

    def remedy(self, lr: float) -> str:
        """See ``Method.remedy``: how strong the penalty is for plain SGD, once there is one."""
        largest, lam = float(self.fisher.max()), self.config.lam
        sgd = self.context.train.optimizer == "sgd"
        if not (sgd and 0 < largest < math.inf and lam > 0):
            return super().remedy(lr)
        return (
            f"lr x lam x the largest Fisher entry is {lr:.3g} x {lam:g} x {largest:.3g} = "
            f"{lr * lam * largest:.3g} and must stay below about 2: try a lower lam or lr, or a "
            "clip_norm"
        )

    def end_task(self, task: Task) -> None:
        """Gather this task's Fisher and move the anchor."""
        self.gather(self.estimate_fisher(task), task.info.index)
        super().end_task(task)

    def diagnostics(self) -> dict[str, float]:
        """Scale of the Fisher.

        Where lr * lam * fisher_max is below 2, plain SGD is stable without a bound on the norm.
        """
        return {"fisher_mean": float(self.fisher.mean()), "fisher_max": float(self.fisher.max())}
