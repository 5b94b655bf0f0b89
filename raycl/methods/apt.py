"""Two vectors per block that move the class token, averaged over tasks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.methods._prompted import Learner, PromptMethod, Prompts, Sizes
from raycl.methods.base import Context
from raycl.nn.prompted_vit import BlockPrompts, KeysValues


class NormalisedHead(nn.Module):
    """A linear layer whose rows have length 1, on features of mean 0 and variance 1.

    logit_k = LayerNorm(z) . W_k / |W_k| + b_k, without scale and shift of the normalisation.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, outputs) of features (B, width)."""
        normal = F.layer_norm(features, features.shape[-1:], eps=1e-5)
        return F.linear(normal, F.normalize(self.linear.weight, dim=1), self.linear.bias)


class Additions(Learner):
    """Vectors that are added to key and value of the class token in every block.

    Attributes:
        vectors: E, (2 depth, C): row 2l for the key and 2l + 1 for the value in block l.
        average: Its average over tasks, with which images are classified; zeros at first.
    """

    queried = False
    average: Tensor

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.blocks = tuple(range(sizes.depth))
        self.vectors = nn.Parameter(torch.empty(2 * sizes.depth, sizes.width))
        nn.init.trunc_normal_(self.vectors, std=0.02)
        self.register_buffer("average", torch.zeros(2 * sizes.depth, sizes.width))

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, None]:
        """See ``Learner.prompts``: E in training, its average in inference."""
        rows = self.average if task is None else self.vectors
        pairs = [KeysValues(rows[2 * block], rows[2 * block + 1]) for block in self.blocks]
        return {b: BlockPrompts(class_token=pairs[b]) for b in self.blocks}, None

    @torch.no_grad()
    def end(self) -> None:
        """Update the average: E after the first task, then ema * average + (1 - ema) * E."""
        share = self.config.ema if self.index else 0.0
        self.average.mul_(share).add_(self.vectors, alpha=1 - share)

    def make_head(self, outputs: int) -> nn.Module:
        """See ``Learner.make_head``: rows of length 1 on normalised features."""
        return NormalisedHead(self.sizes.width, outputs)


class APT(PromptMethod):
    """One pair of vectors per block moves key and value of the class token; no pool, no query.

    Paper:
        "Achieving More with Less: Additive Prompt Tuning for Rehearsal-Free Class-Incremental
        Learning", 2025, arXiv 2503.07979, as the code of Zhang et al., "Continual Distillation
        Learning", arXiv 2407.13911, has it.

    In every block l, E_2l is added to the key of the class token and E_2l+1 to its value, behind
    the projection. E goes on from task to task; images are classified with its average, which is E
    after the first task and ``ema`` * average + (1 - ``ema``) * E after each later one. The head
    has rows of length 1 and reads normalised features. Loss: cross-entropy over the classes of the
    task. No epoch can be selected, because the average follows only when the task has ended.

    Departures: the prompt dropout of that code is never applied, and its linear layers that nothing
    reads are not here. ``ema`` is that of its scripts. ``anchor: first_task`` is not in it.
    """

    class Config(PromptMethod.Config):
        """Options of the method ``apt``."""

        ema: float = Field(
            0.7, ge=0, le=1, description="share of the old average in the new one, from task 2 on"
        )

    learner = Additions

    @classmethod
    def check(cls, context: Context) -> None:
        """See ``PromptMethod.check``: the average changes when the task has ended."""
        if context.train.select != "last":
            what = "apt predicts with an average that changes after the last epoch only"
            raise UserError("train.select", what, "set it to last")
