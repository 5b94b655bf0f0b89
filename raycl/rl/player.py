"""The player: a policy that plays games to be scored or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raycl.rl.policy import Policy

Actions = Literal["greedy", "sampled"]


class Player:
    """A policy playing some games side by side, each on a seed.

    Args:
        policy: The policy.
        how: ``greedy``: the most probable action; ``sampled``: one drawn as in training, with a
            generator for each game, so that a game is the same whichever others are beside it.
        seeds: Seeds of the games.
    """

    def __init__(self, policy: Policy, how: Actions, seeds: Sequence[int]) -> None:
        self.policy, self.how = policy, how
        self._draws = [np.random.default_rng(seed) for seed in seeds]

    @torch.no_grad()
    def actions(self, obs: Tensor, game: int, rows: Sequence[int] | None = None) -> Tensor:
        """Choose actions, int64 (B,).

        Args:
            obs: uint8 (B, C, H, W).
            game: Index in the sequence.
            rows: Indices of the games that these observations are from; by default all.
        """
        if self.how == "greedy":
            return self.policy.greedy(obs, game)
        draws = self._draws if rows is None else [self._draws[row] for row in rows]
        logits, _ = self.policy.heads(self.policy.features(obs), game)
        below = torch.softmax(logits, 1).cpu().cumsum(1)  # on CUDA it is not deterministic
        points = torch.tensor([[draw.random()] for draw in draws])
        return (below <= points).sum(1).clamp_(max=logits.shape[1] - 1).to(obs.device)
