"""Learning without forgetting with one softmax: the "LwF" that ABD is compared with."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Losses, from_task, masked_cross_entropy
from raycl.nn.distillation import soft_cross_entropy


class LwFSeen(TaughtClassifier):
    """Distillation of all old classes together, on the task's own images.

    Paper:
        Li & Hoiem, "Learning without Forgetting", ECCV 2016, arXiv 1606.09282; as the baseline
        "LwF" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental
        Learning", ICCV 2021, arXiv 2106.09701. (``lwf`` is the form with a softmax per old task,
        of the code of arXiv 2105.04444.)

    Loss of task t > 1:
        L = CE(z[0:n_seen], y) + mu H_tau(z[0:n_old], g(x)[0:n_old])
        H_tau(s, q) = mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c

        g is the network as task t - 1 left it, in eval mode, on the same images. There is no factor
        tau^2, and H is no divergence: its least value is the entropy of the target. The first task
        has plain cross-entropy. With a cross-entropy over all seen classes this forgets nearly as
        much as fine-tuning does; that is how the method behaves here and is published.

    Symbols:
        mu: ``mu``. tau: ``temperature``. g: the module ``teacher``. [0:n_seen]: ``outputs: seen``.
        [0:n_old]: the outputs of all earlier tasks, in one softmax.

    Departures from the paper:
        * Class-incremental, with one head: the paper has a head per task and no softmax over the
          classes of several tasks.
        * No warm-up in which only the new head is trained.
    Departures from the code of arXiv 2106.09701:
        * None known. Optimiser and schedule are the sweep file's ``train`` block.
        * Where tasks share outputs, all outputs seen before are distilled, also those that the
          current task trains. That code has no such streams.
    """

    class Config(TaughtClassifier.Config):
        """Options of LwF."""

        mu: float = Field(
            1.0, ge=0, description="weight of the distillation", json_schema_extra=from_task(2)
        )
        temperature: float = Field(
            2.0, gt=0, description="tau, divides the logits in it", json_schema_extra=from_task(2)
        )

    first_task_of = "finetune"
    any_network = True

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        config = self.config
        if self.teacher is None:
            return super().objective(task)
        active, old = self.active(task.info), self.old(task.info)

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, None)
            target = self.taught(batch.images).index_select(1, old)
            kept = soft_cross_entropy(z.index_select(1, old), target, config.temperature)
            return {
                "cross_entropy": masked_cross_entropy(z, batch.labels, active),
                "distillation": config.mu * kept,
            }

        return loss
