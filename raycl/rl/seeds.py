"""Seeds of the games that are played for scores and for pictures."""

from __future__ import annotations

import numpy as np

from raycl.rl.config import SequenceConfig
from raycl.training.randomness import Seeds

EVALUATION, VALIDATION = 10, 11
"""Purposes of seeds; those of ``Seeds`` are 1 and 2."""


def game_seeds(data_seed: int, purpose: int, game: int, count: int) -> tuple[int, ...]:
    """Of each game played, the same whenever it is asked for; the first ones for any count.

    Args:
        data_seed: ``Seeds.data`` of the trial.
        purpose: ``EVALUATION`` or ``VALIDATION``.
        game: Index in the sequence.
        count: How many games.
    """
    seeds = np.random.SeedSequence([data_seed, purpose, game]).generate_state(count)
    return tuple(int(seed) >> 1 for seed in seeds)  # the emulator's are int32


def first_seed(config: SequenceConfig, game: int) -> int:
    """Of the first game that a trial's scores on ``game`` are the mean of."""
    seeds = Seeds.derive(config.seed, **config.fixed_seeds.model_dump())
    return game_seeds(seeds.data, EVALUATION, game, 1)[0]
