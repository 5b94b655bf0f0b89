"""Bias correction: two numbers per task, fitted on images held out of the training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch, Examples, concat
from raycl.errors import UserError
from raycl.methods._replay import OrderedReplay
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Context, Losses, Phase, from_task
from raycl.nn.distillation import soft_cross_entropy
from raycl.nn.memory import herding


class BiC(OrderedReplay, TaughtClassifier):
    """Rehearsal with distillation; then the outputs of the new task are scaled and shifted.

    Paper:
        Wu et al., "Large Scale Incremental Learning", CVPR 2019, arXiv 1905.13260; as the baseline
        "BiC" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental
        Learning", ICCV 2021, arXiv 2106.09701, whose code this follows.

    Phases of task t > 1 (the first task has plain cross-entropy, and the first phase alone):
        zc = alpha_k z + beta_k for the outputs of each task k > 1, and z for those of the first; a
        new pair starts as (1, 0).
        train, all weights, on the task's data and the memory without what is held out:
            L = (1 - lambda) CE(zc[0:n_seen], y) + lambda H_tau(zc[0:n_old], gc(x)[0:n_old])
            lambda = n_old / n_seen
        bias, (alpha_t, beta_t) alone, on what is held out, with the augmentation of training:
            L = CE(zc[0:n_seen], y)
        Then exemplars are chosen from all data of the new classes (``OrderedReplay``,
        ``raycl.nn.memory.herding``).

        Held out are h = int(int(``holdout`` |memory|) / n_old) images of each class: the first of a
        new class in the order of its data, the first of an old class in the order of the memory.
        gc: what the network and its pairs said before task t, frozen, in eval mode. H_tau(s, q) =
        mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c, without a factor tau^2.

    Symbols:
        alpha_k, beta_k: ``pairs``. tau: ``temperature``. M: ``memory_size``. g: the module
        ``teacher``; its pairs are those of the method, as they never change again. [0:n_seen]:
        ``outputs: seen``.

    Departures from the paper (what is said of it is second-hand and was not checked):
        * None known beyond those of the code.
    Departures from the code of arXiv 2106.09701:
        * ``apply_at_eval``: there the pairs are not used when accuracy is measured;
          ``apply_at_eval: false`` does that. Which of the two gave its figures is not known.
        * ``freeze_bn``: there running statistics move in the phase ``bias``; ``freeze_bn: false``.
        * With ``drop_last`` and fewer held-out images than a batch, that code takes no step, so
          that the pair stays (1, 0) (Tiny-ImageNet in 20 tasks with batches of 128: in task 12,
          with 120 images). Here they are one short batch.
        * Where h is 0, because fewer images were stored than there is room for, there is no phase
          ``bias`` and the pair stays (1, 0). A ``memory_size`` that makes h 0 is refused.
        * A class with no more than h images keeps one of them for training.
        * ``train.select`` and a plateau schedule: see ``OrderedReplay``.

    Raises:
        UserError: Tasks share outputs, which no pair can belong to; a memory or a ``holdout`` so
            small that nothing would be held out.
    """

    class Config(OrderedReplay.Config):
        """Options of BiC."""

        holdout: float = Field(
            0.1,
            gt=0,
            lt=1,
            description="held out, as a share of the memory",
            json_schema_extra=from_task(2),
        )
        apply_at_eval: bool = Field(
            True,
            description="correct the outputs when accuracy is measured, too",
            json_schema_extra=from_task(2),
        )

    first_task_of = "finetune"
    any_network = True
    owner: Tensor
    held_out: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        _check(config, context)
        self.pairs = nn.ParameterList()
        owner = torch.zeros(context.stream.num_outputs, dtype=torch.int64)
        for task in context.stream.tasks:
            owner[list(task.classes)] = task.index
        self.register_buffer("owner", owner, persistent=False)  # follows from the stream
        self.register_buffer("held_out", torch.zeros((), dtype=torch.int64))  # h

    def add_task(self, task: TaskInfo) -> None:
        """Add a teacher and a pair, from the second task on."""
        super().add_task(task)
        if task.index:
            self.pairs.append(nn.Parameter(torch.tensor([[1.0, 0.0]])))

    def begin_task(self, task: Task) -> None:
        """Decide how many images are held out."""
        super().begin_task(task)
        if task.info.index:
            n_old = len(self.old(task.info))
            self.held_out.fill_(int(self.config.holdout * len(self.exemplars)) // n_old)

    def order(self, features: Tensor, count: int) -> Tensor:
        """See ``OrderedReplay.order``."""
        return herding(features, count)

    def corrected(self, z: Tensor) -> Tensor:
        """Correct logits z (B, num_outputs) to zc; outputs of tasks to come stay as they are."""
        if not len(self.pairs):
            return z
        table = torch.cat([torch.eye(1, 2, device=z.device), *self.pairs])
        known = self.owner * (self.owner < len(table))
        scale, shift = table.index_select(0, known).unbind(1)
        return z * scale + shift

    def uncorrected(self, images: Tensor) -> Tensor:
        """The head's outputs, (B, num_outputs)."""
        return super().logits(images, None)

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.logits``; the task id is not used."""
        z = self.uncorrected(images)
        return self.corrected(z) if self.config.apply_at_eval else z

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``; of the phase ``train``."""
        if self.teacher is None:
            return super().objective(task)
        temperature, cross_entropy = self.config.temperature, self.cross_entropy(task.info)
        old = self.old(task.info)
        lam = len(old) / (len(old) + len(task.info.classes))

        def loss(batch: Batch) -> Losses:
            zc = self.corrected(self.uncorrected(batch.images))
            with torch.no_grad():
                target = self.corrected(self.taught(batch.images)).index_select(1, old)
            kept = soft_cross_entropy(zc.index_select(1, old), target, temperature)
            return {
                "cross_entropy": (1 - lam) * cross_entropy(zc, batch.labels),
                "distillation": lam * kept,
            }

        return loss

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``train`` and ``bias``, the second on the images held out of the first."""
        (first,) = super().phases(task)
        if not task.info.index:
            return [first]
        rest, held = self.split(task)
        drop_last = self.context.train.drop_last
        train = replace(first, batches=lambda: self.one_pass(rest, drop_last=drop_last))
        if not len(held):
            return [train]
        cross_entropy = self.cross_entropy(task.info)
        bias = self.second_phase(
            "bias",
            [self.pairs[-1]],
            lambda: held,
            lambda batch: cross_entropy(
                self.corrected(self.uncorrected(batch.images)), batch.labels
            ),
            validate=self.config.apply_at_eval,
        )
        return [train, bias]

    def split(self, task: Task) -> tuple[Examples, Examples]:
        """Split the task's data and the memory into images to train on and images held out."""
        new, h = task.train, int(self.held_out)
        stored = self.exemplars.labels[: len(self.exemplars)]
        held_new = first_of_each(new.labels, task.info.classes, h)
        held_old = first_of_each(stored, self.old(task.info).tolist(), h)
        rest, held = (
            concat([new.subset(n.nonzero()[:, 0]), *self.stored(o.nonzero()[:, 0])])
            for n, o in ((~held_new, ~held_old), (held_new, held_old))
        )
        return rest, held

    def end_task(self, task: Task) -> None:
        """Choose exemplars."""
        self.choose_exemplars(task)

    def diagnostics(self) -> dict[str, float]:
        """Number of images stored; h; the newest pair."""
        alpha, beta = self.pairs[-1].flatten().tolist() if len(self.pairs) else (1.0, 0.0)
        own = {"held_out_per_class": float(self.held_out), "alpha": alpha, "beta": beta}
        return super().diagnostics() | own


def first_of_each(labels: Tensor, classes: Sequence[int], count: int) -> Tensor:
    """Mark the first ``count`` images of each class, but never all of them: bool (N,)."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for c in classes:
        positions = (labels == c).nonzero()[:, 0]
        chosen[positions[: max(0, min(count, len(positions) - 1))]] = True
    return chosen


def _check(config: BiC.Config, context: Context) -> None:
    """Refuse options and streams that cannot work, before training."""
    stream = context.stream
    if sum(len(task.classes) for task in stream.tasks) > stream.num_outputs:
        raise UserError(
            "benchmark",
            "bic corrects the outputs of each task, but here tasks share outputs",
            "take a class-incremental stream",
        )
    n_old, share = len(context.last_old), config.holdout
    if int(share * config.memory_size) < n_old:
        least = next(m for m in itertools.count(int(n_old / share)) if int(share * m) >= n_old)
        raise UserError(
            "method.memory_size",
            f"{share:g} of {config.memory_size} images is less than one of each of "
            f"{n_old} old classes",
            f"at least {least}",
        )
