"""The fast preset: ale-py's C++ ``AtariVectorEnv``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from envs import games
from envs.base import Finished, Pixels, Step

MAX_FRAMES = 108_000  # half an hour at 60 Hz


class FastGames:
    """One game in N emulators of one ``AtariVectorEnv``. Arguments: ``envs.base.Preset``.

    Four emulator frames per step, pixel-wise maximum of the last two (of grey values), 84 x 84 by
    area, a stack of four, no sticky actions. A game starts with one frame of FIRE where the game
    has it, and 0 to 29 frames of NOOP (0 to 28 after FIRE). A lost life is told
    (``life_loss_info``), nothing else happens: the game and the stack go on. ``episodic_life``
    would start a new game at each lost life. A game is cut (``truncated``) after 108,000 frames,
    those before the first step not counted.
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
    ) -> None:
        def make(**options: Any) -> AtariVectorEnv:
            return AtariVectorEnv(
                games.rom(game),
                num_envs,
                num_threads=min(num_threads, num_envs),
                max_num_frames_per_episode=MAX_FRAMES if max_frames is None else max_frames,
                repeat_action_probability=0.0,
                full_action_space=full_action_space,
                autoreset_mode=AutoresetMode.SAME_STEP,
                life_loss_info=training,
                reward_clipping=False,  # clipping in the emulator would lose the raw score
                **options,
            )

        self._vector: AtariVectorEnv | None = make()
        self._twin: AtariVectorEnv | None = None
        if render:
            # It plays the same games with the same seeds and actions, in colour and full size.
            height, width = games.screen(game)
            self._twin = make(grayscale=False, stack_num=1, img_height=height, img_width=width)
        self._finished, self._num_envs = finished, num_envs
        self._screens: Pixels | None = None

    def reset(self, seeds: npt.NDArray[np.int64] | None) -> Pixels:
        """Start N games; see ``envs.base.Preset``."""
        assert self._vector is not None
        observations: Pixels
        observations, info = self._vector.reset(seed=seeds)
        if self._twin is not None:
            self._screens, twin = self._twin.reset(seed=seeds)
            self._check(info, twin)
        self._frame = info["episode_frame_number"]
        self._score = np.zeros(self._num_envs)
        self._steps = np.zeros(self._num_envs, dtype=np.int64)
        return observations

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """One agent step; see ``envs.base.Preset``."""
        assert self._vector is not None
        observations, rewards, terminated, truncated, info = self._vector.step(actions)
        if self._twin is not None:
            self._screens, *_, twin = self._twin.step(actions)
            self._check(info, twin)
        self._score += rewards
        self._steps += 1
        frame = info["episode_frame_number"]
        final = None
        if "final_obs" in info:  # somewhere an episode has ended
            # A lost life is "terminated" too, and "lives" already belongs to the next game. A new
            # game is recognised by its frame counter, which starts anew. After a game that was
            # cut within 30 frames the counter may be higher, because no-ops count.
            over = truncated | (frame <= self._frame)
            if over.any():
                final = info["final_obs"]
                self._note(over, truncated)
        self._frame = frame
        return Step(observations, rewards, terminated, truncated, final)

    def _note(self, over: npt.NDArray[np.bool_], cut: npt.NDArray[np.bool_]) -> None:
        for env in map(int, np.flatnonzero(over)):
            score, steps = float(self._score[env]), int(self._steps[env])
            self._finished.append(Finished(env, score, steps, bool(cut[env])))
        self._score[over] = 0.0
        self._steps[over] = 0

    def _check(self, info: dict[str, Any], twin: dict[str, Any]) -> None:
        if not np.array_equal(info["episode_frame_number"], twin["episode_frame_number"]):
            raise RuntimeError("the pictures are out of step with the game")

    def frames(self) -> tuple[Pixels, ...]:
        """The pictures on the screens; the maximum of two frames, so that nothing flickers."""
        assert self._screens is not None
        return tuple(self._screens[:, 0])

    def close(self) -> None:
        """Let the emulators go: their threads join when the object does."""
        self._vector = self._twin = None
