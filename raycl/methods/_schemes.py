"""Ways in which a student with prompts learns from a teacher with prompts, as a table.

Each row of ``SCHEMES`` says which parts the student has beside its own, how they become prompts,
which logits follow the teacher's, and what is compared beside logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from raycl.errors import UserError
from raycl.methods._prompted import Learner, Prompts
from raycl.nn.distillation import decoupled_divergence, soft_divergence
from raycl.nn.distilled_prompts import (
    AttentionMapper,
    ComponentMapper,
    DistillationPrompts,
    PrefixMapper,
)
from raycl.nn.token_hints import LinearHint, Review

Keep = Literal["nothing", "last", "all"]


def _no_parts(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    return nn.Module()


def _no_prompts(parts: nn.Module, teacher: Prompts) -> Prompts:
    return {}


def _softened(config: Any, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return soft_divergence(logits, teacher, config.temperature)


def _decoupled(config: Any, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return decoupled_divergence(logits, teacher, labels)


@dataclass(frozen=True)
class Scheme:
    """A way in which a student learns from a teacher.

    Attributes:
        parts: (options, learners of student and teacher) to what the student trains beside its
            learner and head; it stays from task to task.
        added: (parts, the teacher's prompts) to prompts of the student beside its learner's.
        two_heads: Whether a second head follows the teacher, so that the first one follows the
            labels only.
        extra_token: Whether the second head reads a token of its own, not the first one's features.
        joint: Whether teacher and student take their steps together, batch by batch.
        soft: (options, student's and teacher's logits of the task's classes (B, K), columns of the
            right classes) to the loss of the logits; ``None``: no teacher.
        keep: Blocks whose outputs are compared.
        hint: (parts, outputs of the student's blocks, outputs of as many last blocks of the
            teacher) to the loss of features.
        hint_weight: Weight of that loss.
    """

    parts: Callable[[Any, Learner, Learner], nn.Module] = _no_parts
    added: Callable[[Any, Prompts], Prompts] = _no_prompts
    two_heads: bool = False
    extra_token: bool = False
    joint: bool = False
    soft: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None = _softened
    keep: Keep = "nothing"
    hint: Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None
    hint_weight: float = 0.0


def _linear_hint(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    return LinearHint(student.sizes.width, teacher.sizes.width)


def _review(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    depth = student.sizes.depth
    if teacher.sizes.depth < depth:
        what = f"review_kd needs a teacher of {depth} blocks or more, as the student has"
        raise UserError("method.teacher_network", f"{what}, not {teacher.sizes.depth}")
    return Review(student.sizes.width, teacher.sizes.width, depth)


def _token(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    return DistillationPrompts(student.sizes.width, uniform=False)


def _carrier(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    depth = student.sizes.depth
    blocks = min(12, depth) if config.kd_blocks is None else config.kd_blocks
    if blocks > depth:
        what = f"kd_blocks {blocks}, but the student has {depth} blocks"
        raise UserError("method.kd_blocks", what)
    return DistillationPrompts(student.sizes.width, blocks, config.kd_length)


def _mapper(config: Any, student: Learner, teacher: Learner) -> nn.Module:
    if not teacher.prefixed:
        what = "cdl_prompt maps prefixes of the teacher, and this learner makes none"
        raise UserError("method.scheme", what, "take l2p, dual_prompt or coda_prompt")
    widths = teacher.sizes.width, student.sizes.width
    count = teacher.config.size // teacher.sizes.tasks
    most = min(widths[0], teacher.config.length * widths[1])
    if config.mapper == "components" and not 1 <= count <= most:
        what = f"size {teacher.config.size} gives {count} components to map a teacher's prompts"
        raise UserError("method.learner.size", f"{what}: 1 to {most} work")

    def made() -> nn.Module:
        if config.mapper == "attention":
            return AttentionMapper(*widths)
        return ComponentMapper(*widths, count, teacher.config.length)

    return PrefixMapper({block: made() for block in teacher.blocks})


SCHEMES = {
    "none": Scheme(soft=None),
    "kd": Scheme(),
    "dkd": Scheme(soft=_decoupled),
    "fitnets": Scheme(
        parts=_linear_hint,
        keep="last",
        hint=lambda parts, student, teacher: parts(student[-1], teacher[-1]),
        hint_weight=0.1,
    ),
    "review_kd": Scheme(
        parts=_review,
        keep="all",
        hint=lambda parts, student, teacher: parts(student, teacher),
        hint_weight=0.2,
    ),
    "kd_token": Scheme(
        parts=_token,
        added=lambda parts, teacher: parts.prompts(),
        two_heads=True,
        extra_token=True,
    ),
    "kdp": Scheme(
        parts=_carrier,
        added=lambda parts, teacher: parts.prompts(),
        two_heads=True,
        extra_token=True,
    ),
    "cdl_prompt": Scheme(
        parts=_mapper,
        added=lambda parts, teacher: parts(teacher),
        two_heads=True,
        joint=True,
    ),
}
"""The schemes, by name."""
