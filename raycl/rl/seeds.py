"""Seeds of all games that are played: for training, for scores and for pictures."""

from __future__ import annotations

import numpy as np

from raycl.rl.config import SequenceConfig
from raycl.training.randomness import Seeds

EVALUATION, VALIDATION, TRAINING = 10, 11, 12
"""Purposes of seeds; those of ``Seeds`` are 1 and 2."""


def game_seeds(data_seed: int, purpose: int, game: int, count: int) -> tuple[int, ...]:
    """Of each game played, the same whenever it is asked for; the first ones for any count.

    Args:
        data_seed: ``Seeds.data`` of the trial.
        purpose: ``EVALUATION`` or ``VALIDATION``.
        game: Index in the sequence.
        count: How many games.
    """
    return _seeds([data_seed, purpose, game], count)


def training_seeds(data_seed: int, game: int, update: int, count: int) -> tuple[int, ...]:
    """Of each environment, for a start of a game that no other start shares.

    Args:
        data_seed: ``Seeds.data`` of the trial.
        game: Index in the sequence.
        update: Updates made on the game before: above 0 after a restore, or in a new runner.
        count: How many environments.
    """
    return _seeds([data_seed, TRAINING, game, update], count)


def _seeds(key: list[int], count: int) -> tuple[int, ...]:
    words = np.random.SeedSequence(key).generate_state(count)
    return tuple(int(word) >> 1 for word in words)  # the emulator's are int32


def first_seed(config: SequenceConfig, game: int) -> int:
    """Of the first game that a trial's scores on ``game`` are the mean of."""
    seeds = Seeds.derive(config.seed, **config.fixed_seeds.model_dump())
    return game_seeds(seeds.data, EVALUATION, game, 1)[0]
