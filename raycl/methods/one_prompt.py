"""One prompt for all images and tasks."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.methods._prompted import Learner, PromptMethod, Prompts, Sizes
from raycl.nn.prompted_vit import BlockPrompts, halves


class One(Learner):
    """A prompt for each of some blocks, whatever the image.

    Attributes:
        rows: Rows of the prompt of each block, (length, C).
    """

    queried = False

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.blocks = config.blocks
        self.rows = nn.ParameterList()
        for _ in self.blocks:
            self.rows.append(nn.Parameter(torch.rand(config.length, sizes.width)))

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, None]:
        """See ``Learner.prompts``; the same in training and inference."""
        pairs = zip(self.blocks, self.rows, strict=True)
        return {block: BlockPrompts(front=halves(rows)) for block, rows in pairs}, None


class OnePrompt(PromptMethod):
    """A single prompt is trained by all tasks: what choosing among prompts has to beat.

    Paper:
        The baseline that users of Wang et al., "Learning to Prompt for Continual Learning", CVPR
        2022, arXiv 2112.08654, measured (issue 30 of its code): a pool of one prompt.

    The prompt stands before keys and values of block 0, half of its rows each, and starts uniform
    in (0, 1). Loss: cross-entropy over the classes of the task.

    Departures: it has as many rows as ``l2p`` puts there by default (5 prompts of 20), and no key,
    since there is nothing to choose. ``aux_loss_scale`` changes nothing here. ``anchor:
    first_task`` is not in that code.
    """

    class Config(PromptMethod.Config):
        """Options of the method ``one_prompt``."""

        length: int = Field(
            100, ge=2, multiple_of=2, description="rows of the prompt: as many as l2p puts there"
        )
        blocks: tuple[int, ...] = Field(
            (0,), min_length=1, description="blocks with a prompt each, from 0"
        )

    learner = One
