"""Elastic weight consolidation: one quadratic anchor, the Fisher diagonal averaged over tasks."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raycl.methods._anchored import FisherAnchored
from raycl.methods.base import Outputs, from_task


class EWC(FisherAnchored):
    """Training is pulled to the last solution, parameter by parameter, as the mean Fisher weighs.

    Paper:
        Kirkpatrick et al., "Overcoming Catastrophic Forgetting in Neural Networks", PNAS 2017,
        arXiv 1612.00796; as the baseline ``ewc`` of the code of Shi et al., "Continual Learning via
        Bit-Level Information Preserving", CVPR 2021, arXiv 2105.04444.

    Loss of task t > 0 (counted from 0), and what happens at the end of any task:
        L = CE(z[outputs], y) + lam / 2 * sum_i Fbar_i (theta_i - theta*_i)^2
        F = 20 / n_b * sum_b (d CE_b / d theta)^2
        Fbar <- (F + t Fbar) / (t + 1);   theta* <- theta

        CE_b is the mean over training batch b, with its true labels and dropout on; n_b is the
        number of batches. If gradients g of single examples are independent with mean zero, the
        square of their mean over m has expectation E[g^2] / m, so E[F] is 20 / m times the
        empirical Fisher diagonal of one example. 20 is a batch size, written into the published
        code whatever the batch size in use (32 as published: F is 0.625 times the Fisher). Where
        the mean of g is not zero, its square counts 20 times.

    Symbols:
        lambda: ``lam``. Fbar: the buffer ``fisher``. theta*: the buffer ``anchor``. theta: all
        parameters, heads included; those of tasks to come have F = 0 with ``outputs: task``.

    Departures from the paper:
        * It keeps a penalty, with an anchor and a Fisher of its own, for every old task. Here, as
          in the published code, there is one anchor and the mean of the Fishers.
        * ``fisher: batch_mean`` is the published code's estimate above, and the default. The Fisher
          of the paper is an expectation over single examples: ``fisher: per_example``, which draws
          labels from the model, in eval mode.
    Departures from that code:
        * Its ``lam`` is 5000, with the gradient clipped to a norm of 100: set ``lam: 5000`` and, in
          the ``train`` block, ``clip_norm: 100``. The default of ``lam`` is ours, and needs no
          bound. Without one, plain SGD diverges as soon as lr * lam * max_i Fbar_i exceeds about 2;
          with it, it stays finite, but tosses about. Fbar falls with the training loss: on
          scikit-learn's digits, in tasks of two, at a rate of 0.05, its maximum is 0.27 after one
          epoch of the first and 0.16 after two (too much for 5000, fine for 100) and 0.003 to 0.008
          where each has 20 (fine for both). The default was 5000 once: a sweep that was begun
          without a ``lam`` then goes on with ``lam: 5000``, for the keys of its trials are of that.
        * Batch normalisation is in eval mode in the pass for F, which would otherwise move the
          running statistics after the epoch was selected. Those are neither protected nor frozen.
        * The pass for F is shuffled by a generator of its own.
        * Heads are rows of one linear layer, see ``finetune``.
    """

    class Config(FisherAnchored.Config):
        """Options of EWC."""

        outputs: Outputs = "task"
        lam: float = Field(
            100.0,
            ge=0,
            description="strength of the penalty; as published: 5000, with train.clip_norm: 100",
            json_schema_extra=from_task(2),
        )

    first_task_of = "finetune"

    def gather(self, new: Tensor, tasks: int) -> None:
        """See ``FisherAnchored.gather``: the mean over tasks."""
        self.fisher.mul_(tasks).add_(new).div_(tasks + 1)
