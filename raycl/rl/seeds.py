"""Seeds of all games that are played: for training, for scores and for pictures."""

from __future__ import annotations

import numpy as np

from raycl.rl.config import SequenceConfig
from raycl.trial.randomness import Seeds

EVALUATION, VALIDATION, TRAINING = 10, 11, 12
"""Purposes of seeds; those of ``Seeds`` are 1 and 2."""


def game_seeds(data_seed: int, purpose: int, game: int, count: int) -> tuple[int, ...]:
    """One seed for each game played; a larger ``count`` extends the same list.

    Args:
        data_seed: ``Seeds.data`` of the trial.
        purpose: ``EVALUATION`` or ``VALIDATION``.
        game: Index in the sequence.
        count: Number of games.
    """
    return _seeds([data_seed, purpose, game], count)


def training_seeds(data_seed: int, game: int, update: int, count: int) -> tuple[int, ...]:
    """One seed for each environment; every start of a game gets seeds that no other start has.

    Args:
        data_seed: ``Seeds.data`` of the trial.
        game: Index in the sequence.
        update: Updates made on the game before: above 0 after a restore, or in a new runner.
        count: Number of environments.
    """
    return _seeds([data_seed, TRAINING, game, update], count)


def _seeds(key: list[int], count: int) -> tuple[int, ...]:
    words = np.random.SeedSequence(key).generate_state(count)
    return tuple(int(word) >> 1 for word in words)  # seeds of the emulator are int32


def first_seed(config: SequenceConfig, game: int) -> int:
    """Seed of the first of those games whose mean is a trial's score on ``game``."""
    seeds = Seeds.derive(config.seed, **config.fixed_seeds.model_dump())
    return game_seeds(seeds.data, EVALUATION, game, 1)[0]
