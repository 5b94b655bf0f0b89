"""Learning without forgetting on the task's images and on inverted ones."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._dreaming import Dreaming
from raycl.methods.base import Losses, Outputs, from_task, masked_cross_entropy
from raycl.nn.distillation import soft_cross_entropy


class LwFSynthetic(Dreaming):
    """One softmax over all old classes is kept, on real and on synthetic images.

    Paper:
        ``lwf_synthetic`` of the code of Smith et al., "Always Be Dreaming: A New Approach for
        Data-Free Class-Incremental Learning", ICCV 2021, arXiv 2106.09701 (in its scripts, not in
        its tables); after Li & Hoiem, "Learning without Forgetting", ECCV 2016, arXiv 1606.09282.

    Loss of task t > 1, on B real images x and B synthetic ones x', in one forward pass:
        L = CE(z(x)[outputs], y) + mu H(z[old], q[old]), H over all 2B images
        H(s, q) = mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c, no factor tau^2

        q are the logits of the network as task t - 1 left it. The first task has plain
        cross-entropy. The generator's loss is that of ``deep_inversion``.

    Symbols:
        mu: ``mu``; tau: ``temperature``. S and the other options of the inversion: see
        ``deep_inversion``.

    Departures from the paper:
        * None known: it is described by its code only.
    Departures from that code:
        * Those of the inversion, see ``deep_inversion``.
    """

    class Config(Dreaming.Config):
        """Options of LwF on synthetic images."""

        outputs: Outputs = "seen"
        mu: float = Field(
            0.1, ge=0, description="weight of the distillation", json_schema_extra=from_task(2)
        )
        temperature: float = Field(
            2.0,
            gt=0,
            description="divides the logits in distillation",
            json_schema_extra=from_task(2),
        )

    memory = "generator"
    any_network = True

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        if self.teacher is None:
            return super().objective(task)
        config, active, old = self.config, self.active(task.info), self.old(task.info)

        def loss(batch: Batch) -> Losses:
            replay = self.replay(batch.images, old)
            z = self.logits(replay.images, None)
            student, teacher = (x.index_select(1, old) for x in (z, replay.logits))
            kept = soft_cross_entropy(student, teacher, config.temperature)
            return {
                "cross_entropy": masked_cross_entropy(z[: len(batch)], batch.labels, active),
                "distillation": config.mu * kept,
            }

        return loss
