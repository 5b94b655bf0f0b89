"""Learning without forgetting: old heads go on saying of new images what they used to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Losses, Outputs, from_task, masked_cross_entropy

SMOOTHING = 1e-5
"""eps in ``distillation``."""


class LwF(TaughtClassifier):
    """Knowledge distillation from the network as it was before the task, on the task's own images.

    Paper:
        Li & Hoiem, "Learning without Forgetting", ECCV 2016, arXiv 1606.09282; as the baseline
        ``lwf`` of the code of Shi et al., "Continual Learning via Bit-Level Information
        Preserving", CVPR 2021, arXiv 2105.04444.

    Loss of task t > 1:
        L = CE(z[outputs], y) + lam * sum_{u<t} D(z_u, z'_u)
        D(a, a') = mean over the batch of -sum_k q_k log p_k,   q = softmax(a' / T),
        p = (softmax(a / T) + eps / K) / (1 + eps),   eps = 1e-5,   K the number of classes of u

        z' are the logits of the network as task t - 1 left it, in eval mode, for the same batch.
        The sum is over distinct heads and is not divided by their number, so that it grows with t;
        there is no factor T^2. The first task has plain cross-entropy.

    Symbols:
        lambda: ``lam``. T: ``temperature``. The old network: the module ``teacher``, one more model
        from the second task on. z_u: the outputs of the classes of task u, which are separate heads
        unless tasks share outputs; tasks with the same classes have one term together.

    Departures from the paper:
        * lambda = 2 and T = 1, as that code has them; the paper takes 1 and 2.
        * No warm-up in which only the new head is trained.
    Departures from that code:
        * It clips the gradient to a norm of 100: set ``clip_norm: 100`` in the ``train`` block.
        * Its network has no batch normalisation. Here, where there is one, the student's moves as
          in plain training, and the teacher keeps its own statistics.
        * Heads are rows of one linear layer, see ``finetune``.
    """

    class Config(TaughtClassifier.Config):
        """Options of LwF."""

        outputs: Outputs = "task"
        lam: float = Field(
            2.0,
            ge=0,
            description="weight of the distillation of each old head",
            json_schema_extra=from_task(2),
        )
        temperature: float = Field(
            1.0,
            gt=0,
            description="divides the logits in the distillation",
            json_schema_extra=from_task(2),
        )

    first_task_of = "finetune"
    any_network = True

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        config = self.config
        if self.teacher is None:
            return super().objective(task)
        active = self.active(task.info)
        old = [t.classes for t in self.context.stream.tasks[: task.info.index]]
        heads = [index.to(self.context.device) for index in by_size(old)]

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, task.info.index)
            target = self.taught(batch.images)
            return {
                "cross_entropy": masked_cross_entropy(z, batch.labels, active),
                "distillation": config.lam * distillation(z, target, heads, config.temperature),
            }

        return loss


def by_size(heads: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """Distinct heads, those with equally many outputs together: int64 (n_K, K) for each K."""
    groups: dict[int, list[list[int]]] = {}
    for head in dict.fromkeys(tuple(sorted(head)) for head in heads):
        groups.setdefault(len(head), []).append(list(head))
    return [torch.tensor(group) for group in groups.values()]


def distillation(z: Tensor, target: Tensor, heads: list[Tensor], temperature: float) -> Tensor:
    """The sum over heads of D, a scalar; see ``LwF``.

    Args:
        z: The student's logits (B, num_outputs).
        target: The teacher's, likewise.
        heads: See ``by_size``.
        temperature: T.
    """
    terms = []
    for head in heads:
        shape = (len(z), *head.shape)
        a, old = (x.index_select(1, head.flatten()).view(shape) / temperature for x in (z, target))
        p = (a.softmax(2) + SMOOTHING / head.shape[1]) / (1 + SMOOTHING)
        terms.append(-(old.softmax(2) * p.log()).sum() / len(z))
    return torch.stack(terms).sum()
