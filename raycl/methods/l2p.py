"""A pool of prompts that images choose from by their keys."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raycl.methods._prompted import Learner, PromptMethod, Prompts, Sizes
from raycl.nn.prompt_pools import all_pairs_key_loss, choose, cosines, joined, key_loss
from raycl.nn.prompted_vit import BlockPrompts


class Pool(Learner):
    """Pools of prompts, one for each of some blocks.

    Attributes:
        keys: Keys of each pool, (size, query_width).
        pools: Prompts of each pool, (size, length, C).
    """

    prefixed = True

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.blocks = config.blocks
        self.keys, self.pools = nn.ParameterList(), nn.ParameterList()
        for _ in self.blocks:
            self.keys.append(nn.Parameter(torch.rand(config.size, sizes.query_width)))
            shape = config.size, config.length, sizes.width
            self.pools.append(nn.Parameter(torch.rand(shape)))

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, Tensor]:
        """See ``Learner.prompts``; the same in training and inference."""
        found, losses = {}, []
        for block, keys, pool in zip(self.blocks, self.keys, self.pools, strict=True):
            scores = cosines(query, keys)
            chosen = choose(scores, self.config.top)
            found[block] = BlockPrompts(front=joined(pool, chosen.rows))
            mean = self.config.key_loss == "mean"
            losses.append(key_loss(chosen.scores) if mean else all_pairs_key_loss(scores, chosen))
        return found, torch.stack(losses).sum()


class L2P(PromptMethod):
    """Learning to Prompt: each image takes the prompts whose keys are closest to its query.

    Paper:
        Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv 2112.08654, as
        the code of Zhang et al., "Continual Distillation Learning", arXiv 2407.13911, has it.

    With the query q (the network's feature vector of the image), prompts P_j with keys K_j and
    s_j = cos(q, K_j), the ``top`` prompts of largest s_j stand, one after another, before the keys
    and values of block 0: half of the rows of each are keys, half are values. Loss: cross-entropy
    over the classes of the task, and the mean over images of the sum over their prompts of
    1 - s_j. Keys and prompts start uniform in (0, 1); nothing is frozen or begins anew at a task.

    Departures: the paper puts chosen prompts as tokens before those of the image; that code, and
    this, extends keys and values ("L2P++"). ``blocks: [0, 1, 2, 3, 4]`` is its deep form.
    ``key_loss: all_pairs`` is what its first revision (2024) computes. ``aux_loss_scale`` is 2 by
    default, which its two GPUs amount to with ``key_loss: mean``; 1 is the formula. With
    ``all_pairs`` they amount to 0.5: each GPU sums over the pairs in its half of the batch, so that
    half of all pairs count. ``anchor: first_task`` is not in it.
    """

    class Config(PromptMethod.Config):
        """Options of the method ``l2p``."""

        size: int = Field(30, ge=1, description="prompts in the pool")
        length: int = Field(
            20, ge=2, multiple_of=2, description="rows of a prompt, keys and values"
        )
        top: int = Field(5, ge=1, description="prompts that each image takes")
        blocks: tuple[int, ...] = Field(
            (0,), min_length=1, description="blocks with a pool each, from 0; 'deep' is 0 to 4"
        )
        key_loss: Literal["mean", "all_pairs"] = Field(
            "mean",
            description="mean: over images, of 1 - cosine to their own prompts; all_pairs: over "
            "all pairs of an image and a prompt of any image, summed, as in the first revision",
        )

        @model_validator(mode="after")
        def _enough(self) -> Self:
            if self.top > self.size:
                raise ValueError(f"top {self.top} is more than the pool has: size {self.size}")
            return self

    learner = Pool
