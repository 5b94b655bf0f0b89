"""Prompts that all tasks share, and a prompt of its own for each task."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.methods._prompted import Learner, PromptMethod, Prompts, Sizes
from raycl.nn.prompt_pools import choose, cosines, joined, key_loss
from raycl.nn.prompted_vit import BlockPrompts, halves


class Experts(Learner):
    """General prompts of some blocks; expert prompts with keys of others.

    Attributes:
        general: Prompts of ``general_blocks``, (general_length, C) each.
        keys: Keys of the expert prompts of each block, (size, query_width).
        experts: Expert prompts of each block, (size, length, C).
    """

    prefixed = True

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        if config.size < sizes.tasks:
            what = f"{config.size} prompts are too few for {sizes.tasks} tasks: each has its own"
            raise UserError("method.size", what)
        self.blocks = (*config.general_blocks, *config.blocks)
        self.general, self.keys = nn.ParameterList(), nn.ParameterList()
        self.experts = nn.ParameterList()
        for _ in config.general_blocks:
            self.general.append(nn.Parameter(torch.rand(config.general_length, sizes.width)))
        for _ in config.blocks:
            self.keys.append(nn.Parameter(torch.rand(config.size, sizes.query_width)))
            shape = config.size, config.length, sizes.width
            self.experts.append(nn.Parameter(torch.rand(shape)))

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, Tensor | None]:
        """See ``Learner.prompts``.

        In training the expert of the task; in inference, in each block, the one with the closest
        key among all, those of tasks to come too.
        """
        prompts = {
            block: BlockPrompts(front=halves(rows))
            for block, rows in zip(self.config.general_blocks, self.general, strict=True)
        }
        losses = []
        for block, keys, experts in zip(self.config.blocks, self.keys, self.experts, strict=True):
            if task is None:
                rows = choose(cosines(query, keys), 1).rows
                prompts[block] = BlockPrompts(front=joined(experts, rows))
            else:
                prompts[block] = BlockPrompts(front=halves(experts[task]))
                losses.append(key_loss(cosines(query, keys[task : task + 1])))
        return prompts, torch.stack(losses).sum() if losses else None

    def constants(self) -> list[Tensor]:
        """See ``Learner.constants``: experts and keys of all other tasks."""
        others = [slice(0, self.index), slice(self.index + 1, None)]
        return [rows[part] for rows in (*self.keys, *self.experts) for part in others]


class DualPrompt(PromptMethod):
    """General prompts for all tasks in early blocks, and an expert prompt per task in later ones.

    Paper:
        Wang et al., "DualPrompt", ECCV 2022, arXiv 2204.04799, as the code of Zhang et al.,
        "Continual Distillation Learning", arXiv 2407.13911, has it.

    While task t is learnt, expert t stands before keys and values of each of ``blocks``; the loss
    is the cross-entropy over the task's classes and, summed over ``blocks``, the mean over images
    of 1 - cos(q, K_t), with the query q (the network's feature vector of the image) and the key
    K_t. In inference each block takes the expert whose key is closest. In ``general_blocks`` one
    prompt is shared by all tasks. All start uniform in (0, 1).

    Departures: none from that code. Experts of tasks to come, which nobody has trained, can be
    chosen in inference, as there. ``aux_loss_scale`` is 2 by default, which its two GPUs amount to;
    1 is the formula. ``anchor: first_task`` is not in it.
    """

    class Config(PromptMethod.Config):
        """Options of the method ``dual_prompt``."""

        size: int = Field(10, ge=1, description="expert prompts; at least one for each task")
        length: int = Field(20, ge=2, multiple_of=2, description="rows of an expert prompt")
        general_length: int = Field(6, ge=2, multiple_of=2, description="rows of a general prompt")
        blocks: tuple[int, ...] = Field(
            (2, 3, 4), min_length=1, description="blocks with expert prompts, from 0"
        )
        general_blocks: tuple[int, ...] = Field((0, 1), description="blocks with a general prompt")

        @model_validator(mode="after")
        def _apart(self) -> Self:
            if both := sorted({*self.blocks} & {*self.general_blocks}):
                raise ValueError(f"block {both[0]} has a general and an expert prompt: take one")
            return self

    learner = Experts
