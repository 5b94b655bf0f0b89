"""Prompts that are weighted sums of components, some new ones for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.methods._prompted import Learner, PromptMethod, Prompts, Sizes
from raycl.nn.prompt_pools import orthogonality_penalty, orthonormal_rows, weighted
from raycl.nn.prompted_vit import BlockPrompts, halves


class Components(Learner):
    """Components of prompts for each of some blocks; those of earlier tasks stay as they are.

    Attributes:
        keys: K of each block, (size, query_width).
        attention: A of each block, (size, query_width): what of a query a component looks at.
        components: P of each block, (size, length, C).
        share: Components of a task, n.
    """

    prefixed = True

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        most = min(sizes.query_width, config.length * sizes.width)
        if not sizes.tasks <= config.size <= most:
            what = f"{config.size} components, but {sizes.tasks} to {most} work"
            hint = f"{sizes.tasks} tasks need one each, and more than {most} cannot be orthogonal"
            raise UserError("method.size", what, hint)
        self.blocks, self.share = config.blocks, config.size // sizes.tasks
        self.keys, self.attention = nn.ParameterList(), nn.ParameterList()
        self.components = nn.ParameterList()
        for _ in self.blocks:
            for kind in (self.keys, self.attention):
                kind.append(nn.Parameter(torch.zeros(config.size, sizes.query_width)))
            shape = config.size, config.length, sizes.width
            self.components.append(nn.Parameter(torch.zeros(shape)))

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Draw the components of the current task: orthonormal rows of K, A and P."""
        start, end = self.index * self.share, (self.index + 1) * self.share
        for block in zip(self.keys, self.attention, self.components, strict=True):
            for rows in block:
                flat = rows.flatten(1)
                flat[start:end] = orthonormal_rows(flat[:start], self.share, generator)

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, Tensor | None]:
        """See ``Learner.prompts``: sums over the components of all tasks so far."""
        prompts: dict[int, BlockPrompts] = {}
        penalties = []
        if self.index < 0:
            return prompts, None
        for number, block in enumerate(self.blocks):
            parts = (self.keys, self.attention, self.components)
            keys, attention, components = self._in_use([p[number] for p in parts], task)
            rows = weighted(query, attention, keys, components)
            prompts[block] = BlockPrompts(front=halves(rows))
            if task is not None and self.config.mu:
                used = (keys, attention, components.flatten(1))
                penalties += [orthogonality_penalty(part) for part in used]
        return prompts, self.config.mu * torch.stack(penalties).sum() if penalties else None

    def constants(self) -> list[Tensor]:
        """See ``Learner.constants``: the components of earlier tasks."""
        start = max(0, self.index) * self.share
        return [rows[:start] for rows in (*self.keys, *self.attention, *self.components)]

    def _in_use(self, parts: Sequence[Tensor], task: int | None) -> list[Tensor]:
        """Rows of all tasks so far; in training, rows of earlier tasks are without gradient."""
        start, end = self.index * self.share, (self.index + 1) * self.share
        if task is None:
            return [rows[:end] for rows in parts]
        return [torch.cat([rows[:start].detach(), rows[start:end]]) for rows in parts]


class CODAPrompt(PromptMethod):
    """A prompt is a sum of components weighted by the image; each task adds some of its own.

    Paper:
        Smith et al., "CODA-Prompt: Continual Decomposed Attention-based Prompting for
        Rehearsal-Free Continual Learning", CVPR 2023, arXiv 2211.13218, as the code of Zhang et
        al., "Continual Distillation Learning", arXiv 2407.13911, has it.

    In each of ``blocks`` there are keys K, attention vectors A and components P. The prompt of an
    image with the query q (the network's feature vector) is sum_m cos(q * A_m, K_m) P_m over the
    components of all tasks so far; its first half stands before the keys, its second half before
    the values. Before a task, its ``size // tasks`` rows of K, A and P are drawn and made
    orthonormal to all rows before them; rows of earlier tasks are constants. Loss: cross-entropy
    over the classes of the task, and ``mu`` times the sum over blocks and over K, A, P of
    mean((R R^T - I)^2), R being the rows in use.

    Departures: none from that code. ``mu`` is 0, as in all of its scripts. ``aux_loss_scale``, a
    factor of the penalty, is 2 by default, which its two GPUs amount to; 1 is the formula.
    ``anchor: first_task`` is not in it.
    """

    class Config(PromptMethod.Config):
        """Options of the method ``coda_prompt``."""

        size: int = Field(
            100,
            ge=1,
            description="components in all, size // tasks for each task; at most as many as "
            "a query has numbers",
        )
        length: int = Field(8, ge=2, multiple_of=2, description="rows of a prompt, keys and values")
        mu: float = Field(0.0, ge=0, description="weight of the penalty for rows not orthonormal")
        blocks: tuple[int, ...] = Field(
            (0, 1, 2, 3, 4), min_length=1, description="blocks with components, from 0"
        )

    learner = Components
