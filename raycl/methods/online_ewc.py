"""Online elastic weight consolidation: one quadratic anchor with a running Fisher diagonal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods.base import Classifier, Context, Losses, masked_cross_entropy
from raycl.nn.fisher import fisher_diagonal


class OnlineEWC(Classifier):
    """Training is pulled to the last solution, parameter by parameter, as the Fisher weighs them.

    Paper:
        Schwarz et al., "Progress & Compress: A Scalable Framework for Continual Learning", ICML
        2018, arXiv 1805.06370, equations 8 and 9; after Kirkpatrick et al., "Overcoming
        Catastrophic Forgetting in Neural Networks", PNAS 2017, arXiv 1612.00796.

    Loss of task t > 1, and what happens at its end:
        L = CE(z[outputs], y) + lam / 2 * sum_i F*_i (theta_i - theta*_i)^2
        F* <- gamma F* + F;   theta* <- theta

        CE is the mean over the batch, F the Fisher diagonal of ONE example: the mean, over
        ``fisher_samples`` images of the task, of the squared gradient of log p(y | x) for a label y
        drawn from the model, in eval mode, the softmax over the same outputs as in training.
        Equation 8 adds up the log likelihoods of all n images of a task; divided by n, that is
        ``lam = 1`` for tasks of equal size. Values in use are far larger.

    Symbols:
        gamma: ``gamma``. F*: the buffer ``fisher``. theta*: the buffer ``anchor``. lambda of arXiv
        1612.00796: ``lam``. theta, what is protected: all parameters of the backbone, and of the
        head where tasks share outputs (as in domain-incremental streams). A head whose rows each
        belong to one task is free.

    Departures from the papers:
        * F is not normalised for each task; arXiv 1805.06370 does so, without saying by what.
        * The penalty has no factor gamma of its own: equation 8 weighs it with gamma F*, which is
          the same as ``lam`` times gamma.
        * Without progress & compress: no active column, no distillation.
        * Running statistics of batch normalisation are neither protected nor frozen.
        * ``train.select: validation_loss`` and a plateau schedule see the cross-entropy alone, not
          the penalty.
    Departures from common code:
        * aimagelab/mammoth's penalty has no 1/2 (its lambda is half of ``lam``), its Fisher uses
          true labels weighted with the likelihood, and covers the head.
        * The baseline ``ewc`` of the code of arXiv 2105.04444 takes the running mean over tasks
          instead of the sum, squares gradients of a batch mean with true labels, with dropout on,
          times 20, and covers all heads.
        * The default of ``lam`` is ours. The reinforcement-learning part of that code has this
          penalty with lambda = 5000, but squares gradients of means over 62 examples, which makes
          its Fisher 62 times smaller: ``lam`` = 81 here.
    """

    class Config(Classifier.Config):
        """Options of online EWC."""

        lam: float = Field(
            30.0, ge=0, description="strength; plain SGD diverges above about 2 / (lr * max_i F*_i)"
        )
        gamma: float = Field(1.0, ge=0, le=1, description="what each task leaves of the old Fisher")
        fisher_samples: int = Field(
            1000, ge=1, description="images of the task for its Fisher, at most all of them"
        )

    anchor: Tensor
    fisher: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        outputs = [c for task in context.stream.tasks for c in task.classes]
        self._prefixes = ("0.", "1.") if len(outputs) > len(set(outputs)) else ("0.",)
        size = sum(p.numel() for p in self.protected().values())
        self.register_buffer("anchor", torch.zeros(size))
        self.register_buffer("fisher", torch.zeros(size))

    @property
    def network(self) -> nn.Sequential:
        """Images to logits."""
        return nn.Sequential(self.backbone, self.head)

    def protected(self) -> dict[str, nn.Parameter]:
        """What the penalty is on, by name in ``network``, in the order of the buffers."""
        named = self.network.named_parameters()
        return {name: p for name, p in named if name.startswith(self._prefixes)}

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``; the first task has no penalty."""
        if task.info.index == 0:
            return super().objective(task)
        active = self.active(task.info)
        parameters = list(self.protected().values())

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, None)
            return {
                "cross_entropy": masked_cross_entropy(z, batch.labels, active),
                "penalty": self.penalty(parameters),
            }

        return loss

    def penalty(self, parameters: list[nn.Parameter]) -> Tensor:
        """The second term of the loss, a scalar."""
        moved = torch.cat([p.flatten() for p in parameters]) - self.anchor
        weight: float = self.config.lam / 2
        return weight * (self.fisher * moved.square()).sum()

    def end_task(self, task: Task) -> None:
        """Add this task's Fisher and move the anchor."""
        generator = self.context.method_generator
        chosen = torch.randperm(len(task.train), generator=generator)[: self.config.fisher_samples]
        device, train = self.context.device, task.train
        batches = (train.prepare(train.raw(i)) for i in torch.split(chosen.to(device), 256))
        protected = self.protected()
        new = fisher_diagonal(
            self.network, list(protected), batches, self.active(task.info), generator
        )
        with torch.no_grad():
            self.fisher.mul_(self.config.gamma).add_(new)
            self.anchor.copy_(torch.cat([p.flatten() for p in protected.values()]))

    def diagnostics(self) -> dict[str, float]:
        """Scale of F*: lr * lam * fisher_max well below 2 is what plain SGD needs to be stable."""
        return {"fisher_mean": float(self.fisher.mean()), "fisher_max": float(self.fisher.max())}
