"""The interface of a preset, which plays one game in N emulators for ``envs.vector``."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class Finished(NamedTuple):
    """A game that is over.

    Args:
        env: Index of the emulator.
        score: Raw score.
        steps: Agent steps.
        cut: Whether it was cut by its time limit.
    """

    env: int
    score: float
    steps: int
    cut: bool = False


class Step(NamedTuple):
    """The answer of N emulators to one action each.

    Args:
        observations: (N, 4, 84, 84) uint8; where a game is over, those of the next game.
        rewards: (N,) raw.
        terminated: (N,) bool.
        truncated: (N,) bool.
        final: (N, 4, 84, 84) uint8, the last observation of an episode, valid where
            ``observations`` show the next episode already; None if that is nowhere the case.
    """

    observations: Pixels
    rewards: npt.NDArray[Any]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final: Pixels | None


class Preset(Protocol):
    """One game in N emulators.

    Args (of the constructor):
        game: Name of the game.
        num_envs: N.
        training: A lost life ends an episode.
        full_action_space: All 18 actions instead of the minimal set.
        max_frames: After so many emulator frames a game is cut; None: the preset's own limit.
        num_threads: Threads of the emulators.
        render: ``frames`` will be called.
        finished: Grows by one for each game played to its end.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        training: bool,
        full_action_space: bool,
        max_frames: int | None,
        num_threads: int,
        render: bool,
        finished: list[Finished],
    ) -> None: ...

    def reset(self, seeds: npt.NDArray[np.int64] | None) -> Pixels:
        """Start N games. ``seeds``: one each, or None to go on with the emulators' streams."""

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """One agent step. ``actions``: (N,), each an action of the game."""

    def frames(self) -> tuple[Pixels, ...]:
        """The pictures on the screens: N arrays (H, W, 3)."""

    def close(self) -> None:
        """Let the emulators and their threads go."""
