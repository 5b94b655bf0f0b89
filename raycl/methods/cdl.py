"""A teacher and a student, both frozen transformers with prompts, learn the same stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods._distillation_options import SHARED, CDLConfig, find_learner
from raycl.methods._kept_teachers import KeptTeachers, check_kept, kept_state
from raycl.methods._prompted import (
    Answer,
    PromptedModel,
    PromptMethod,
    transformer,
)
from raycl.methods._schemes import SCHEMES
from raycl.methods.base import Context, Losses, Method, Phase, check_classes
from raycl.networks.base import Backbone, find_network
from raycl.nn.prompted_vit import BlockPrompts, KeysValues

ANSWERED = 256
"""Number of images at a time while the teacher answers for all images of a task."""
HEADS = ("head", "kd_head")
"""Predictors of a student with two heads: each head alone."""


class CDL(PromptMethod):
    """Continual distillation: a large network with prompts teaches a small one, task by task.

    Paper:
        Zhang et al., "Continual Distillation Learning: Knowledge Distillation in Prompt-based
        Continual Learning", arXiv 2407.13911, as its code has it. Its three versions and pages name
        the same things differently: ``kdp`` is KDP and D-CDL, ``kd_token`` is KD-Token and DeiT.

    Teacher and student have the same ``learner`` (the method of that name, with its options), and
    queries are the student network's feature vectors for both. In each task the teacher is trained
    first (phase ``teacher``), by cross-entropy and the loss of its keys; then it answers as in
    inference, and the student is trained (phase ``student``) by

        (1 - alpha) CE + alpha L + aux_loss_scale (keys + features),

    all over the classes of the task only. With z the student's logits, z' those of its second head,
    u the teacher's, and KD the divergence at ``temperature`` 2 times its square:

    - ``none``: cross-entropy alone, and a teacher that teaches nobody.
    - ``kd``: L = KD(u, z).
    - ``dkd``: L is decoupled (1 and 4, temperature 4).
    - ``fitnets``: ``kd``, and 0.1 times the mean squared difference between the teacher's last
      tokens and a linear map of the student's.
    - ``review_kd``: ``kd``, and 0.2 times that of all blocks, each joined with the deeper ones.
    - ``kd_token``: a second class token, from zero; a second head reads it; L = KD(u, z').
    - ``kdp``: the token starts uniform in (0, 1), and ``kd_blocks`` - 1 further blocks have a
      prefix of ``kd_length`` rows behind keys and values, which all tasks train.
    - ``cdl_prompt``: the teacher's prefixes, mapped to the student's width, stand before the
      student's own; a second head reads the same features; teacher and student take their steps
      together, in one phase ``student``, with the teacher's logits of training.

    A student with two heads answers with (1 - alpha) z + alpha z', with ``cdl_prompt`` with their
    mean. ``teacher``, ``head`` and ``kd_head`` are predictors with matrices of their own.

    With ``teacher: {trial: RUN/KEY}`` the prompts and head of the teacher come from a trial of this
    method with ``keep_teachers: true`` on the same stream, and its phase is left out; the student's
    matrix is bitwise that of a run which trains the teacher itself, if that trial has the same
    seed, block ``train`` and ``aux_loss_scale``; others are taken, too. Within a sweep nothing has
    to be said: trials whose teachers are the same train them once (``share: false``: each for
    itself).

    Departures: ``aux_loss_scale`` is 2 by default, which the two GPUs of the authors amount to; 1
    is the formula. ``mapper: components`` is what all stored runs of July 2024 used; ``attention``,
    older, is likely that of the paper's first version. ``query_backbone: own`` (a figure of the
    paper), ``apt_merge: after_teacher`` (there the teacher answers with an average that lacks the
    task) and ``anchor: first_task`` are not in the code. ``drop_last`` and the schedule
    ``coda_cosine`` are options of ``train``.
    """

    class Config(CDLConfig):
        """Options of the method ``cdl``."""

    predictors: tuple[str, ...] = ("teacher", *HEADS)

    def __init__(self, config: Any, context: Context) -> None:
        Method.__init__(self, config, context)
        self.scheme = SCHEMES[config.scheme]
        method, options = find_learner(config.learner), config.learner_config()
        self.backbone = self.frozen_network()
        width, own = self.backbone.num_features, config.query_backbone == "own"
        with _whose("network"):  # as the learner's own method makes it, before anything else
            self.student = self.make_model(method.learner, options, self.backbone, width)
        self.teacher_backbone = self.frozen_network(
            config.teacher_network, "method.teacher_network"
        )
        names = ("backbone.", "teacher_backbone.")
        self.fixed = names if config.anchor == "weights" else ()
        of_teacher = self.teacher_backbone.num_features if own else width
        with _whose("method.teacher_network"):
            teacher = self.teacher_backbone
            self.teacher = self.make_model(method.learner, options, teacher, of_teacher)
        learners = self.student.learner, self.teacher.learner
        self.parts = self.scheme.parts(config, *learners)
        outputs = context.stream.num_outputs
        self.kd_head = learners[0].make_head(outputs) if self.scheme.two_heads else None
        self.predictors = ("teacher", *(HEADS if self.scheme.two_heads else ()))
        self._check(context)
        self.kept = KeptTeachers(self._about()) if config.keep_teachers else None
        if config.teacher is not None:
            tensors = context.read_tensors(config.teacher)
            check_kept(tensors, config.teacher.trial, self._about(), len(context.networks))

    def _check(self, context: Context) -> None:
        """Refuse options, networks and streams that do not go together.

        Raises:
            UserError: Names the first problem.
        """
        method = find_learner(self.config.learner)
        method.check(context)
        check_classes(context.tasks)
        blocks = (*context.networks[:1], self.config.teacher_network)
        needs = [
            cls.normalisation(options)
            for cls, options in map(find_network, blocks)
            if options.untrained() != options
        ]
        if len(needs) == 2 and needs[0] != needs[1]:
            what = "its weights need images normalised otherwise than those of the student"
            raise UserError("method.teacher_network", what, "give both the same mean and std")
        if context.train.schedule.name == "plateau":
            what = "the plateau schedule follows a score, and the teacher has none"
            raise UserError("train.schedule", what)
        if self.scheme.hint is None:
            return
        tokens = [
            transformer(network).patch_embed.num_patches
            for network in (self.backbone, self.teacher_backbone)
        ]
        if tokens[0] != tokens[1]:
            what = f"{self.config.scheme} compares tokens: the student has {tokens[0]} of an image"
            raise UserError("method.teacher_network", f"{what}, the teacher {tokens[1]}")

    # ------------------------------------------------------------------ teachers of other trials

    def _about(self) -> dict[str, Any]:
        """Settings that a trial must share to take its teachers from this one."""
        config, stream = self.config, self.context.stream
        learner = config.learner_config().model_dump(mode="json")
        return {
            "method.learner": {k: v for k, v in learner.items() if k not in SHARED},
            "method.teacher_network": config.teacher_network,
            "method.query_backbone": config.query_backbone,
            "method.apt_merge": config.apt_merge,
            "network": self.context.networks[0] if config.query_backbone == "student" else None,
            "benchmark": [
                stream.class_names,
                [task.classes for task in stream.tasks],
                stream.input_shape,
                stream.mean,
                stream.std,
            ],
        }

    def add_task(self, task: TaskInfo) -> None:
        """Tell the learners which task it is, and make room for its teacher."""
        super().add_task(task)
        if self.kept is not None:
            self.kept.add(self.teacher)

    # ------------------------------------------------------------------ networks and queries

    def networks(self) -> Sequence[Backbone]:
        """See ``PromptMethod.networks``."""
        return [self.backbone, self.teacher_backbone]

    def models(self) -> Sequence[PromptedModel]:
        """See ``PromptMethod.models``."""
        return [self.student, self.teacher]

    def frozen_values(self, images: Tensor) -> Tensor:
        """The student network's query of each image, and behind it the teacher's own, if it has."""
        student = super().frozen_values(images)
        if self.config.query_backbone == "student" or not self.teacher.learner.queried:
            return student
        own: Tensor = self.teacher_backbone(images)
        return torch.cat([student, own], 1)

    def _queries(self, images: Tensor, frozen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries of student and teacher."""
        found, width = self.query(images, frozen), self.backbone.num_features
        if self.config.query_backbone == "student" or not self.teacher.learner.queried:
            return found, found
        return found[:, :width], found[:, width:]

    # ------------------------------------------------------------------ answers

    def taught(
        self, images: Tensor, query: Tensor, task: int | None = None, keep: Collection[int] = ()
    ) -> Answer:
        """The answer of the teacher; ``task`` as of ``Learner.prompts``."""
        return self.teacher(transformer(self.teacher_backbone), images, query, task, keep=keep)  # type: ignore[no-any-return]

    def answer(
        self,
        images: Tensor,
        frozen: Tensor | None,
        task: int | None = None,
        keep: Collection[int] = (),
    ) -> Answer:
        """See ``PromptMethod.answer``: the student, without the second head."""
        own, other = self._queries(images, frozen)
        prompts = self.teacher.learner.prompts(other, None)[0] if self.scheme.joint else {}
        return self._student(images, own, prompts, task, keep)

    def _student(
        self,
        images: Tensor,
        query: Tensor,
        teacher: Mapping[int, Any],
        task: int | None,
        keep: Collection[int] = (),
    ) -> Answer:
        """The answer of the student, given the teacher's prompts."""
        added = self.scheme.added(self.parts, teacher)
        return self.student(transformer(self.backbone), images, query, task, added, keep)  # type: ignore[no-any-return]

    def _second(self, answer: Answer) -> Tensor:
        """Logits of the student's second head."""
        assert self.kd_head is not None
        encoding = answer.encoding
        read = encoding.extra[:, -1] if self.scheme.extra_token else encoding.features
        return self.kd_head(read).float()  # type: ignore[no-any-return]

    def logits(
        self,
        images: Tensor,
        task_id: int | None,
        frozen: Tensor | None = None,
        predictor: str | None = None,
    ) -> Tensor:
        """See ``Method.logits``; the task id is not used."""
        if predictor == "teacher":
            return self.taught(images, self._queries(images, frozen)[1]).logits
        return self._of_student(images, frozen)[predictor or ""]

    def answers(self, images: Tensor, task_id: int | None, **frozen: Tensor) -> dict[str, Tensor]:
        """See ``Method.answers``: one pass through each network."""
        found = {
            **self._of_student(images, **frozen),
            "teacher": self.logits(images, None, **frozen, predictor="teacher"),
        }
        return {name: found[name] for name in ("", *self.predictors)}

    def _of_student(self, images: Tensor, frozen: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of the student, under an empty name, and of each head, if it has two."""
        answer = self.answer(images, frozen)
        if self.kd_head is None:
            return {"": answer.logits}
        second, alpha = self._second(answer), 0.5 if self.scheme.joint else self.config.alpha
        mean = (1 - alpha) * answer.logits + alpha * second
        return {"": mean, "head": answer.logits, "kd_head": second}

    # ------------------------------------------------------------------ losses

    def teaching(self, task: Task) -> Callable[[Batch], Losses]:
        """Loss of the teacher's phase: cross-entropy and the loss of its keys."""
        active, index = self.active(task.info), task.info.index

        def loss(batch: Batch) -> Losses:
            query = self._queries(batch.images, batch.frozen)[1]
            return self.terms(self.taught(batch.images, query, index), batch.labels, active)

        return loss

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``: the student's loss, on any images of the task."""
        return self._learning(task, self._said_now)

    def _learning(
        self, task: Task, said: Callable[[Batch, Tensor], Tensor]
    ) -> Callable[[Batch], Losses]:
        """Loss of the student's phase, and with it the teacher's where they learn together.

        Args:
            task: The current task.
            said: A batch and the teacher's queries to the teacher's logits.
        """
        active, index = self.active(task.info), task.info.index
        student, teacher = self._kept_blocks()

        def loss(batch: Batch) -> Losses:
            own, other = self._queries(batch.images, batch.frozen)
            if self.scheme.joint:
                taught = self.taught(batch.images, other, index)
                prompts = {b: _constant(p) for b, p in taught.prompts.items()}
                answer = self._student(batch.images, own, prompts, index)
                beside = self.terms(taught, batch.labels, active)
                terms = self._distilled(answer, taught.logits.detach(), batch.labels, active)
                return terms | {f"teacher_{name}": value for name, value in beside.items()}
            answer = self._student(batch.images, own, {}, index, student)
            if self.scheme.soft is None:
                return self.terms(answer, batch.labels, active)
            if self.scheme.hint is None:
                return self._distilled(answer, said(batch, other), batch.labels, active)
            with torch.no_grad():
                taught = self.taught(batch.images, other, keep=teacher)
            terms = self._distilled(answer, taught.logits, batch.labels, active)
            levels = [
                [found.encoding.kept[block][:, : found.encoding.own.shape[1]] for block in blocks]
                for found, blocks in ((answer, student), (taught, teacher))
            ]
            weight = self.config.aux_loss_scale * self.scheme.hint_weight
            return terms | {"features": weight * self.scheme.hint(self.parts, *levels)}

        return loss

    def _distilled(
        self, answer: Answer, teacher: Tensor, labels: Tensor, active: Tensor
    ) -> dict[str, Tensor]:
        """Terms of a student that follows labels and the teacher's logits."""
        assert self.scheme.soft is not None
        alpha, terms = self.config.alpha, self.terms(answer, labels, active)
        follows = answer.logits if self.kd_head is None else self._second(answer)
        columns = torch.searchsorted(active, labels)
        own, target = follows.index_select(1, active), teacher.index_select(1, active)
        terms["cross_entropy"] = (1 - alpha) * terms["cross_entropy"]
        return terms | {"distillation": alpha * self.scheme.soft(self.config, own, target, columns)}

    def _kept_blocks(self) -> tuple[range, range]:
        """Blocks of student and teacher whose outputs are compared, the shallowest first."""
        depths = (self.student.learner.sizes.depth, self.teacher.learner.sizes.depth)
        count = {"nothing": 0, "last": 1, "all": depths[0]}[self.scheme.keep]
        return range(depths[0] - count, depths[0]), range(depths[1] - count, depths[1])

    @torch.no_grad()
    def _said_now(self, batch: Batch, query: Tensor) -> Tensor:
        """The teacher's logits of a batch."""
        return self.taught(batch.images, query).logits

    def _said(self, task: Task) -> Callable[[Batch, Tensor], Tensor]:
        """Make a function to the teacher's logits of a batch; images that stay are asked once."""
        kept: list[Tensor] = []
        if self.context.augment is not None:
            return self._said_now

        @torch.no_grad()
        def said(batch: Batch, query: Tensor) -> Tensor:
            if not kept:
                kept.append(self._said_of_all(task))
            return kept[0].index_select(0, batch.index)

        return said

    def _said_of_all(self, task: Task) -> Tensor:
        """The teacher's logits of all training images of a task, (N, num_outputs)."""
        parts, order = [], []
        for batch in task.train.batches(ANSWERED):
            query = self._queries(batch.images, batch.frozen)[1]
            parts.append(self.taught(batch.images, query).logits)
            order.append(batch.index)
        return torch.cat(parts)[torch.cat(order).argsort()]

    # ------------------------------------------------------------------ phases

    def trainable(self) -> list[nn.Parameter]:
        """Prompts, head and further parts of the student; the teacher's, where they go together."""
        modules = [self.student, self.parts, *([self.kd_head] if self.kd_head else [])]
        if self.scheme.joint:
            modules.append(self.teacher)
        return [parameter for module in modules for parameter in module.parameters()]

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``teacher`` and ``student``; in the first task, ``anchor`` of both before."""
        *anchors, train = super().phases(task)
        student = replace(train, name="student", loss=self._learning(task, self._said(task)))
        if self.scheme.joint or self.config.teacher is not None:
            return [*anchors, student]
        teacher = replace(
            train,
            name="teacher",
            optimizer=lambda: self.make_optimizer(self.teacher.parameters()),
            loss=self.teaching(task),
            before=self.begin_teacher,
            after=self.end_teacher,
            score=None,
            patience=None,
            validate=False,
            draws="teacher",
            result=self.teacher,
        )
        return [*anchors, teacher, student]

    def anchors(self, task: Task, train: Phase) -> list[Phase]:
        """See ``PromptMethod.anchors``: one phase for each network."""
        head = self.teacher.head
        teacher = self.anchor_phase(task, train, "teacher_anchor", self.teacher_backbone, head)
        return [*super().anchors(task, train), teacher]

    def begin_teacher(self) -> None:
        """Start the current task for the teacher."""
        self.teacher.learner.begin(self.context.method_generator)

    def end_teacher(self) -> None:
        """Finish the teacher's phase; from now on the teacher answers as in inference."""
        if self.config.apt_merge == "after_teacher":
            self.teacher.learner.end()
        if self.kept is not None:
            self.kept.keep(self.teacher)

    def begin_student(self) -> None:
        """Start the current task for the student, and for a teacher that learns along."""
        super().begin_student()
        if self.scheme.joint:
            self.begin_teacher()
        if self.config.teacher is not None:
            tensors = self.context.read_tensors(self.config.teacher)
            self.teacher.load_state_dict(kept_state(tensors, self.teacher.learner.index))

    def end_student(self) -> None:
        """Finish the current task."""
        super().end_student()
        if self.config.apt_merge == "after_student":
            self.teacher.learner.end()


@contextmanager
def _whose(network: str) -> Iterator[None]:
    """Name the place of a learner's error in this method: its options, or one of two networks."""
    try:
        yield
    except UserError as error:
        place = error.where.replace("method.", "method.learner.", 1)
        raise UserError(network if place == "network" else place, error.what, error.hint) from error


def _constant(prompts: BlockPrompts) -> BlockPrompts:
    """Prompts without gradient."""
    front = prompts.front
    rows = None if front is None else KeysValues(front.keys.detach(), front.values.detach())
    return replace(prompts, front=rows)
