"""LwF with a coreset: distillation on current and on stored images."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._replay import RandomReplay
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Losses, from_task
from raycl.nn.distillation import soft_cross_entropy


class LwFCoreset(RandomReplay, TaughtClassifier):
    """Rehearsal, see ``naive_rehearsal``, with the distillation of ``lwf_seen`` on every image.

    Paper:
        "LwF" with a coreset in Smith et al., "Always Be Dreaming: A New Approach for Data-Free
        Class-Incremental Learning", ICCV 2021, arXiv 2106.09701, table 2; after Li & Hoiem,
        "Learning without Forgetting", ECCV 2016, arXiv 1606.09282.

    Loss of task t > 1, over a batch of current and stored images:
        L = CE(z[0:n_seen], y) + mu H_tau(z[0:n_old], g(x)[0:n_old])
        H_tau(s, q) = mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c

        g is the network as task t - 1 left it, in eval mode, on the same images. There is no factor
        tau^2. The first task has plain cross-entropy.

    Symbols:
        mu: ``mu``. tau: ``temperature``. M: ``memory_size``. g: the module ``teacher``. [0:n_seen]:
        ``outputs: seen``. [0:n_old]: the outputs of all earlier tasks, in one softmax.

    Departures from the paper:
        * None known beyond those of its code, which the tables come from.
    Departures from the code of arXiv 2106.09701:
        * How stored images are mixed in, and which are stored: see ``naive_rehearsal``. As there,
          ``replay: list_with_duplicates`` is what was published.
        * Where tasks share outputs, all outputs seen before are distilled, also those that the
          current task trains. That code has no such streams.
    """

    class Config(RandomReplay.Config):
        """Options of LwF with a coreset."""

        memory_size: int = Field(2000, ge=1, description="images stored, over all tasks together")
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
        cross_entropy, old = self.cross_entropy(task.info), self.old(task.info)

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, None)
            target = self.taught(batch.images).index_select(1, old)
            kept = soft_cross_entropy(z.index_select(1, old), target, config.temperature)
            return {
                "cross_entropy": cross_entropy(z, batch.labels),
                "distillation": config.mu * kept,
            }

        return loss
