"""Random play, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from envs.vector import SequentialAtari


class Played(NamedTuple):
    before: np.ndarray[Any, Any]
    observations: np.ndarray[Any, Any]
    rewards: np.ndarray[Any, Any]
    terminated: np.ndarray[Any, Any]
    truncated: np.ndarray[Any, Any]
    infos: dict[str, Any]


def play(env: SequentialAtari, steps: int, *, seed: int | None = 0) -> Iterator[Played]:
    """Random actions from a seeded start; without a seed, on from where the game is."""
    generator = np.random.default_rng(0)
    before = env.reset(seed=seed)[0]
    for _ in range(steps):
        step = env.step(generator.integers(0, env.num_actions, env.num_envs))
        yield Played(before, *step)
        before = step[0]
