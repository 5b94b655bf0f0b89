"""Deep inversion: replay of images inverted from the old network, with distillation."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._dreaming import Dreaming
from raycl.methods.base import Losses, Outputs, from_task, masked_cross_entropy
from raycl.nn.distillation import soft_cross_entropy


class DeepInversion(Dreaming):
    """Distillation on the task's images and on images inverted from the network before the task.

    Paper:
        Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR
        2020, arXiv 1912.08795, as the baseline of that name in Smith et al., "Always Be Dreaming",
        ICCV 2021, arXiv 2106.09701, and its code.

    Loss of task t > 1, on B real images x and B synthetic ones x', in one forward pass:
        L = CE(z(x)[outputs], y) + mu H(z(x)[old], q(x)[old]) + mu H'(z(x'))
        H(s, q) = mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c, no factor tau^2
        H'(z(x')) = mean_i of -sum_{c old} softmax(q'_i / tau)_c log softmax(z_i[seen] / tau)_c

        q, q' are the logits of the network as task t - 1 left it. In H' the new classes have target
        zero. The first task has plain cross-entropy. There is no label for a synthetic image.

    Loss of the generator G before task t > 1, the network frozen and in eval mode, o = z(G(noise)):
        content_weight CE(o / content_temperature, argmax o) + diversity + stat_weight statistics +
        prior_weight smoothness, see ``raycl.nn.inversion``; over old classes only.

    Symbols:
        mu: ``mu``; tau: ``temperature``. S, steps of the generator: ``power_iterations``. The five
        numbers of that code's option, in its order: ``inversion_lr``, ``stat_weight``,
        ``prior_weight``, ``content_temperature``, ``content_weight``. g, the old network: the
        module ``teacher``.

    Departures from the paper (as generally known; not read again for this):
        * A generator makes the images, as in arXiv 2106.09701; the paper optimises pixels.
        * Terms of the generator's loss are those of arXiv 2106.09701; the paper's regularisers and
          its adaptive term are not here.
    Departures from that code:
        * The inversion is done when the next task begins, and so never after the last one; there,
          after each task unless all outputs have been seen.
        * The network that is inverted is given no gradients.
        * The entropy in ``diversity`` is finite where a class has probability zero; there, the
          generator is lost to NaN then.
        * Old classes are those of earlier tasks, wherever their outputs are. Where tasks share all
          of them, H' is H.
    """

    class Config(Dreaming.Config):
        """Options of deep inversion."""

        outputs: Outputs = "seen"
        mu: float = Field(
            1.0, ge=0, description="weight of each distillation", json_schema_extra=from_task(2)
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
        seen, tau = self.seen(task.info), float(config.temperature)
        among_seen = (seen[:, None] == old).any(1).nonzero().flatten()

        def loss(batch: Batch) -> Losses:
            size = len(batch)
            replay = self.replay(batch.images, old)
            z = self.logits(replay.images, None)
            student, teacher = (x[:size].index_select(1, old) for x in (z, replay.logits))
            dreamt = padded_distillation(
                z[size:].index_select(1, seen),
                replay.logits[size:].index_select(1, old),
                among_seen,
                tau,
            )
            return {
                "cross_entropy": masked_cross_entropy(z[:size], batch.labels, active),
                "distillation": config.mu * soft_cross_entropy(student, teacher, tau),
                "synthetic_distillation": config.mu * dreamt,
            }

        return loss


def padded_distillation(
    student: Tensor, teacher: Tensor, old: Tensor, temperature: float
) -> Tensor:
    """Distillation H': soft cross-entropy over seen classes, where new ones have target zero.

    Args:
        student: Logits of seen classes (B, n_seen).
        teacher: Logits of old classes (B, n_old), without gradient.
        old: int64 (n_old,), where the old classes are among the seen ones.
        temperature: tau.
    """
    p = (teacher / temperature).softmax(1)
    log_p = (student / temperature).log_softmax(1).index_select(1, old)
    return -(p * log_p).sum() / len(student)
