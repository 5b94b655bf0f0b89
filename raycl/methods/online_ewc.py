"""Online elastic weight consolidation: one quadratic anchor with a running Fisher diagonal."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from raycl.methods._anchored import FisherAnchored
from raycl.methods.base import from_end_of_task, from_task


class OnlineEWC(FisherAnchored):
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
    Departures from common code:
        * aimagelab/mammoth's penalty has no 1/2 (its lambda is half of ``lam``), its Fisher uses
          true labels weighted with the likelihood, and covers the head. The lambda stored with it,
          all with gamma = 1: 0.7 for permuted and rotated MNIST, 90 for split MNIST, 10 for split
          CIFAR-10, 25 for split Tiny-ImageNet.
        * The baseline ``ewc`` of the code of arXiv 2105.04444 (``raycl.methods.ewc``) has the same
          anchor, but takes the mean over tasks instead of the sum, squares gradients of batches
          (``fisher: batch_mean``), and covers all heads. With gamma = 1 and the same estimate, F*
          is its mean times the number of tasks that have ended: the same strength in the second
          task, twice that in the third.
        * The default of ``lam`` is ours. The reinforcement-learning part of that code has this
          penalty with gamma = 1 and lambda = 5000, but squares gradients of means over 62
          examples, which makes its Fisher 62 times smaller: ``lam`` = 81 here.
    """

    class Config(FisherAnchored.Config):
        """Options of online EWC."""

        lam: float = Field(
            30.0,
            ge=0,
            description="strength; plain SGD diverges above about 2 / (lr * max_i F*_i)",
            json_schema_extra=from_task(2),
        )
        fisher: Literal["batch_mean", "per_example"] = Field(
            "per_example",
            description=FisherAnchored.Config.model_fields["fisher"].description,
            json_schema_extra=from_end_of_task(1),
        )
        gamma: float = Field(
            1.0,
            ge=0,
            le=1,
            description="what each task leaves of the old Fisher",
            json_schema_extra=from_end_of_task(2),
        )

    first_task_of = "finetune"

    def protected(self) -> dict[str, nn.Parameter]:
        """See ``Anchored.protected``; the head only where tasks share outputs."""
        outputs = [c for task in self.context.stream.tasks for c in task.classes]
        prefixes = ("0.", "1.") if len(outputs) > len(set(outputs)) else ("0.",)
        return {name: p for name, p in super().protected().items() if name.startswith(prefixes)}

    def gather(self, new: Tensor, tasks: int) -> None:
        """See ``FisherAnchored.gather``: a sum over tasks that decays by gamma."""
        self.fisher.mul_(self.config.gamma).add_(new)
