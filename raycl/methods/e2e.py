"""End-to-end incremental learning: distillation per old task, then balanced fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch, concat
from raycl.methods._replay import OrderedReplay
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Context, Losses, Phase, from_task
from raycl.methods.lwf import by_size
from raycl.nn.distillation import soft_cross_entropy
from raycl.nn.memory import nearest


class E2E(OrderedReplay, TaughtClassifier):
    """Current data and exemplars with a softmax per old task; then the head alone on exemplars.

    Paper:
        Castro et al., "End-to-End Incremental Learning", ECCV 2018, arXiv 1807.09536; as the
        baseline "E2E" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free
        Class-Incremental Learning", ICCV 2021, arXiv 2106.09701, whose code this follows.

    Phases of task t > 1 (the first task has plain cross-entropy, and the first phase alone):
        train, all weights, on the task's data and the memory, each image once per epoch:
            L = CE(z[0:n_seen], y) + mu sum_{k<t} (n_k / n_old) H_tau(z[k], g(x)[k])
        Then h := the network as it is; exemplars of the new classes are chosen, the lists of the
        old ones cut (``OrderedReplay``, ``raycl.nn.memory.nearest``).
        balanced, the head alone, on the memory alone, with the augmentation of training:
            L = CE(z[0:n_seen], y) + mu sum_{k<t} (n_k / n_seen) H_tau(z[k], g(x)[k])
                + mu (n_t / n_seen) H_tau(z[t], h(x)[t])

        [k]: the outputs of task k. g, h: frozen, in eval mode, g as task t - 1 left the network.
        H_tau(s, q) = mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c, no tau^2.

    Symbols:
        mu: ``mu``. tau: ``temperature``. M: ``memory_size``. g, h: the modules ``teacher`` and
        ``unbalanced``, two more models from the second task on. [0:n_seen]: ``outputs: seen``.

    Departures from the paper (what is said of it is second-hand and was not checked):
        * The balanced phase trains the head alone, at 1/100 of the rate (``stage2_lr_factor``), for
          as many epochs; the paper the whole network, at a tenth.
        * No noise on the gradients; augmentation as in the ``train`` block, not twelvefold.
    Departures from the code of arXiv 2106.09701:
        * ``fix_kd``: there the last term compares z[t] with the first n_t outputs of g, which are
          of old classes (as long as there are so many), and h goes unused; ``fix_kd: false`` does
          that.
        * ``freeze_bn``: there running statistics move in the balanced phase; ``freeze_bn: false``.
        * With ``drop_last`` and fewer exemplars than a batch, the balanced phase takes them in one
          short batch.
        * Tasks with the same classes have one old term together, and n_old and n_seen count what
          the terms count. That code has no such streams.
        * ``train.select`` and a plateau schedule: see ``OrderedReplay``.
    """

    class Config(OrderedReplay.Config):
        """Options of E2E."""

        mu: float = Field(
            1.0, ge=0, description="weight of the distillation", json_schema_extra=from_task(2)
        )
        fix_kd: bool = Field(
            True,
            description="balanced phase: new outputs are held to those before it; false: to those "
            "of old classes, as in the code of arXiv 2106.09701",
            json_schema_extra=from_task(2),
        )

    first_task_of = "finetune"
    any_network = True
    unbalanced: nn.Sequential | None

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.unbalanced = None

    def add_task(self, task: TaskInfo) -> None:
        """Make the network g, and make room for h, a copy of the task's own network."""
        super().add_task(task)
        if task.index == 1 or self.context.network_changes(task.index):
            self.unbalanced = copy.deepcopy(self.network)

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; g and h stay in eval mode."""
        super().train(mode)
        if self.unbalanced is not None:
            self.unbalanced.eval()
        return self

    def order(self, features: Tensor, count: int) -> Tensor:
        """See ``OrderedReplay.order``."""
        return nearest(features, count)

    def heads(self, task: TaskInfo) -> list[Tensor]:
        """Outputs of the old tasks; see ``raycl.methods.lwf.by_size``."""
        old = [t.classes for t in self.context.stream.tasks[: task.index]]
        return [head.to(self.context.device) for head in by_size(old)]

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``; of the phase ``train``."""
        if self.teacher is None:
            return super().objective(task)
        config, cross_entropy = self.config, self.cross_entropy(task.info)
        heads = self.heads(task.info)

        def loss(batch: Batch) -> Losses:
            z, q = self.logits(batch.images, None), self.taught(batch.images)
            return {
                "cross_entropy": cross_entropy(z, batch.labels),
                "distillation": config.mu * per_task(z, q, heads, config.temperature),
            }

        return loss

    def balanced_objective(self, task: Task) -> Callable[[Batch], Losses]:
        """The loss of the phase ``balanced``."""
        config, before = self.config, self.unbalanced
        if before is None:
            raise ValueError("no balanced phase in the first task")
        cross_entropy, heads = self.cross_entropy(task.info), self.heads(task.info)
        n_new, n_old = len(task.info.classes), sum(head.numel() for head in heads)
        new = torch.tensor(task.info.classes, device=self.context.device)
        seen = self.context.stream.seen(task.info.index)
        wrong = torch.tensor(seen[:n_new], device=self.context.device)

        def loss(batch: Batch) -> Losses:
            z, q = self.logits(batch.images, None), self.taught(batch.images)
            if config.fix_kd:
                with torch.no_grad():
                    target = before(batch.images).float().index_select(1, new)
            else:
                target = q.index_select(1, wrong)
            old = per_task(z, q, heads, config.temperature)
            own = soft_cross_entropy(z.index_select(1, new), target, config.temperature)
            return {
                "cross_entropy": cross_entropy(z, batch.labels),
                "distillation": config.mu * n_old / (n_old + n_new) * old,
                "distillation_new": config.mu * n_new / (n_old + n_new) * own,
            }

        return loss

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``train`` and ``balanced``; exemplars are chosen in between."""
        (first,) = super().phases(task)
        train = replace(first, after=lambda: self.finish_training(task))
        if self.teacher is None:
            return [train]
        balanced = self.second_phase(
            "balanced",
            list(self.head.parameters()),
            lambda: concat(self.memory_sets()),
            self.balanced_objective(task),
        )
        return [train, balanced]

    def finish_training(self, task: Task) -> None:
        """Choose exemplars, and make the copy h."""
        self.choose_exemplars(task)
        if self.unbalanced is not None:
            self.unbalanced.load_state_dict(self.network.state_dict())


def per_task(z: Tensor, q: Tensor, heads: list[Tensor], temperature: float) -> Tensor:
    """Distillation with a softmax per task, sum_k (n_k / n_old) H_tau(z[k], q[k]): a scalar.

    Args:
        z: The student's logits (B, num_outputs).
        q: The teacher's, likewise.
        heads: int64 (m, K), the outputs of m tasks with K classes each, for each K.
        temperature: tau.
    """
    n_old = sum(head.numel() for head in heads)
    terms = []
    for head in heads:  # tasks of one size at once: the mean over rows divides by m as well
        s, t = (x.index_select(1, head.flatten()).reshape(-1, head.shape[1]) for x in (z, q))
        terms.append(head.numel() / n_old * soft_cross_entropy(s, t, temperature))
    return torch.stack(terms).sum()
