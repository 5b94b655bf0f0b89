"""N emulators that play one game of a sequence at a time."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs import games as all_games
from envs.base import Finished, Pixels, Preset
from envs.faithful import FaithfulGames
from envs.fast import FastGames

PRESETS: dict[str, type[Preset]] = {"fast": FastGames, "faithful": FaithfulGames}
FRAMES_PER_STEP = 4
NUM_ACTIONS = 18
SEEDS = 1 << 16
_STRIDE = (1 << 31) // SEEDS  # ALE's seeds have 31 bits

Actions = npt.NDArray[np.int64]


class SequentialAtari(VectorEnv[Pixels, Actions, npt.NDArray[Any]]):
    """N emulators that play one game of a sequence; ``set_task`` switches to another game.

    The spaces are the same for every game: Box(4, 84, 84) uint8 and Discrete(18). A game takes
    the actions below ``num_actions`` only. An episode that ends starts anew in the same step
    (``AutoresetMode.SAME_STEP``): the observation is the first of the next episode, and
    ``infos["final_obs"]`` (N, 4, 84, 84), valid where ``truncated``, is the last one of those that
    were cut. In training a lost life is ``terminated`` and rewards are -1, 0 or 1; otherwise
    episodes are whole games and rewards are raw. Raw scores of whole games are to be had from
    ``finished_games`` in both.

    Args:
        games: A sequence's name, one game, or games in order; see ``envs.games.sequence``.
        num_envs: N.
        preset: ``"fast"`` or ``"faithful"``; see ``envs.fast`` and ``envs.faithful``.
        training: Clip rewards, and end an episode at a lost life.
        full_action_space: All 18 actions in every game instead of its minimal set.
        max_frames: After so many emulator frames a game is cut; None: the preset's own limit.
        num_threads: Threads of the emulators; not used by ``"faithful"``.
        render_mode: ``"rgb_array"`` for ``render``. The fast preset then plays each game twice.

    Raises:
        UnknownGame: No game has that name.
        ValueError: Another argument is out of its range.
    """

    metadata: dict[str, Any] = {
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 60 // FRAMES_PER_STEP,
    }
    task: int
    _fresh: bool
    _playing: Preset | None = None  # until __init__ is through, for __del__

    def __init__(
        self,
        games: str | Sequence[str],
        num_envs: int = 1,
        *,
        preset: str = "fast",
        training: bool = True,
        full_action_space: bool = False,
        max_frames: int | None = None,
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        self.games = all_games.sequence(games)
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r}: None or 'rgb_array'")
        if not 1 <= num_envs <= _STRIDE:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 to {_STRIDE}")
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be at least 1")
        if max_frames is not None and max_frames < FRAMES_PER_STEP:
            raise ValueError(f"max_frames is {max_frames}; a step is {FRAMES_PER_STEP} frames")
        self.num_envs, self.preset, self.training = num_envs, preset, training
        self.render_mode = render_mode
        self._options: dict[str, Any] = {
            "training": training,
            "full_action_space": full_action_space,
            "max_frames": max_frames,
            "num_threads": num_threads,
            "render": render_mode is not None,
        }
        self.num_actions_of = tuple(
            NUM_ACTIONS if full_action_space else all_games.num_actions(game) for game in self.games
        )
        self.single_observation_space = Box(0, 255, (4, 84, 84), dtype=np.uint8)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = Discrete(NUM_ACTIONS)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.final: Pixels | None = None
        self._finished: list[Finished] = []
        self.set_task(0)

    @property
    def game(self) -> str:
        """Name of the game being played."""
        return self.games[self.task]

    @property
    def num_actions(self) -> int:
        """Actions of the game being played."""
        return self.num_actions_of[self.task]

    def set_task(self, index: int) -> None:
        """Switch to a game of the sequence; ``reset`` must follow. Scores not fetched are lost.

        Raises:
            ValueError: There is no such game in the sequence.
        """
        if not 0 <= operator.index(index) < len(self.games):
            raise ValueError(f"task {index}: the sequence has {len(self.games)} games, from 0 on")
        if self._playing is not None:
            if self._fresh and index == self.task:
                return  # it is in already, and nothing has been played
            self._playing.close()
        self.task = int(index)
        self._finished.clear()
        self._playing = PRESETS[self.preset](
            self.game, self.num_envs, finished=self._finished, **self._options
        )
        self._fresh, self._started = True, False

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Pixels, dict[str, Any]]:
        """Start N new games; those being played are dropped, without a score.

        Args:
            seed: A number below 65,536 gives each emulator a seed that no emulator gets from
                another number; a sequence holds ALE's own seeds, one per emulator. None goes on
                with the streams of random numbers there are.
            options: Not used; there are no options.

        Returns:
            Observations (N, 4, 84, 84), and an empty dictionary.

        Raises:
            ValueError: A seed is out of range, or there are not N of them.
        """
        playing = self._open()
        self._started = False
        if seed is None and self._fresh:
            # New emulators would start from the clock; what was seeded stays repeatable.
            seeds: npt.NDArray[np.int64] | None = self.np_random.integers(
                1 << 31, size=self.num_envs
            )
        else:
            seeds = self._seeds(seed)
        observations = playing.reset(seeds)
        self._fresh, self._started = False, True
        return observations, {}

    def _seeds(self, seed: int | Sequence[int] | None) -> npt.NDArray[np.int64] | None:
        if seed is None:
            return None
        if isinstance(seed, Sequence | np.ndarray):
            seeds = np.array([operator.index(one) for one in seed], dtype=np.int64)
            if len(seeds) != self.num_envs:
                raise ValueError(f"{len(seeds)} seeds for {self.num_envs} emulators")
            if (seeds < 0).any() or (seeds >= 1 << 31).any():
                raise ValueError("seeds of emulators must be 0 to 2**31 - 1")
            super().reset(seed=int(seeds[0]))  # what follows a change of game repeats, too
            return seeds
        number = operator.index(seed)
        if not 0 <= number < SEEDS:
            raise ValueError(f"seed is {number}; it must be 0 to {SEEDS - 1}")
        super().reset(seed=number)
        return number * _STRIDE + np.arange(self.num_envs, dtype=np.int64)

    def step(
        self, actions: Actions
    ) -> tuple[
        Pixels,
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Four emulator frames of N games.

        Args:
            actions: (N,) whole numbers from 0 to ``num_actions`` - 1.

        Returns:
            Observations (N, 4, 84, 84) uint8, rewards (N,) float32, terminated and truncated (N,)
            bool, infos.

        Raises:
            ValueError: An action is out of range, or there are not N of them.
            ResetNeeded: ``reset`` was not called before.
        """
        playing = self._open()
        if not self._started:
            raise ResetNeeded("call reset() before step()")
        step = playing.step(self._checked(actions))
        self.final = step.final
        rewards = np.sign(step.rewards) if self.training else step.rewards  # clipped in training
        infos: dict[str, Any] = {}
        if step.final is not None and step.truncated.any():
            infos["final_obs"] = step.final
        return (
            step.observations,
            rewards.astype(np.float32),
            step.terminated,
            step.truncated,
            infos,
        )

    def _checked(self, actions: npt.ArrayLike) -> Actions:
        """Refuse actions that ALE does not know: its threads would die and the step never end."""
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.game}: actions must be {self.num_envs} whole numbers, "
                f"not {array.dtype} of shape {array.shape}"
            )
        array = np.ascontiguousarray(array, dtype=np.int64)
        if array.view(np.uint64).max() >= self.num_actions:  # a negative one is huge
            env = int(np.flatnonzero((array < 0) | (array >= self.num_actions))[0])
            raise ValueError(
                f"{self.game}: action {array[env]} of environment {env} is not in "
                f"0 to {self.num_actions - 1}"
            )
        return array

    def finished_games(self) -> list[Finished]:
        """Games played to their end since the last call, in the order of their ends."""
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def render(self) -> tuple[Pixels, ...]:  # type: ignore[override]
        """The pictures on the screens after the last ``reset`` or ``step``.

        Returns:
            N arrays (H, W, 3) uint8, mostly 210 x 160. Where a game has just ended, it is the
            first screen of the next one.

        Raises:
            ValueError: ``render_mode`` is not ``"rgb_array"``.
            ResetNeeded: ``reset`` was not called before.
        """
        if self.render_mode is None:
            raise ValueError("to draw, make the environment with render_mode='rgb_array'")
        playing = self._open()
        if not self._started:
            raise ResetNeeded("call reset() before render()")
        return playing.frames()

    def _open(self) -> Preset:
        if self._playing is None:
            raise ValueError("the environment is closed")
        return self._playing

    def close_extras(self, **kwargs: Any) -> None:
        """Let the emulators and their threads go."""
        if self._playing is not None:
            self._playing.close()
            self._playing = None
