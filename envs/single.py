"""One emulator as a plain Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete

from envs.base import Pixels
from envs.vector import SequentialAtari


class Atari(gymnasium.Env[Pixels, int]):
    """One emulator that plays one game of a sequence; ``set_task`` switches to another game.

    A ``SequentialAtari`` of one, without its autoreset: after ``terminated`` or ``truncated``,
    ``reset`` starts the next episode, which after a lost life is the same game. The action space
    is that of the game being played. At the end of a game ``info`` holds its raw ``score`` and its
    ``steps``. What is rendered then is the first screen of the next game.

    Args:
        games: A sequence's name, one game, or games in order; see ``envs.games.sequence``.
        preset, training, full_action_space, max_frames, render_mode: See ``SequentialAtari``.

    Raises:
        UnknownGame: No game has that name.
        ValueError: Another argument is out of its range.
    """

    metadata: dict[str, Any] = {
        key: SequentialAtari.metadata[key] for key in ("render_modes", "render_fps")
    }

    def __init__(
        self,
        games: str | Sequence[str],
        *,
        preset: str = "fast",
        training: bool = True,
        full_action_space: bool = False,
        max_frames: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._vector = SequentialAtari(
            games,
            1,
            preset=preset,
            training=training,
            full_action_space=full_action_space,
            max_frames=max_frames,
            render_mode=render_mode,
        )
        self.games, self.render_mode = self._vector.games, render_mode
        self.observation_space = self._vector.single_observation_space
        self._enter()

    @property
    def task(self) -> int:
        """Index of the game being played."""
        return self._vector.task

    @property
    def game(self) -> str:
        """Name of the game being played."""
        return self._vector.game

    def set_task(self, index: int) -> None:
        """Switch to a game of the sequence; ``reset`` must follow.

        Raises:
            ValueError: There is no such game in the sequence.
        """
        self._vector.set_task(index)
        self._enter()

    def _enter(self) -> None:
        self.action_space = Discrete(self._vector.num_actions)
        self._next: Pixels | None = None  # first observation of an episode that waits for reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Pixels, dict[str, Any]]:
        """Start the next episode; in the middle of an episode, or with a seed, start a new game.

        Args:
            seed: 0 to 2**31 - 1.
            options: Not used; there are no options.

        Returns:
            An observation (4, 84, 84) uint8, and an empty dictionary.
        """
        super().reset(seed=seed)
        if self._next is None or seed is not None:
            observations, _ = self._vector.reset(seed=None if seed is None else [seed])
            observation: Pixels = observations[0]
        else:
            observation = self._next
        self._next = None
        return observation, {}

    def step(self, action: int) -> tuple[Pixels, float, bool, bool, dict[str, Any]]:
        """Four emulator frames.

        Returns:
            An observation (4, 84, 84) uint8, reward, terminated, truncated, info.

        Raises:
            ValueError: The game has no such action.
            ResetNeeded: ``reset`` must come first.
        """
        if self._next is not None:
            raise ResetNeeded("the episode is over: call reset() before step()")
        observations, rewards, terminated, truncated, _ = self._vector.step(np.array([action]))
        observation: Pixels = observations[0]
        if terminated[0] or truncated[0]:
            self._next = observation
            if self._vector.final is not None:
                observation = self._vector.final[0]
        info = {}
        for finished in self._vector.finished_games():
            info = {"score": finished.score, "steps": finished.steps}
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Pixels:  # type: ignore[override]
        """The screen (H, W, 3) uint8 after the last ``reset`` or ``step``."""
        return self._vector.render()[0]

    def close(self) -> None:
        """Let the emulator go."""
        self._vector.close()
