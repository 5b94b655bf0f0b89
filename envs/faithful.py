"""The faithful preset: the wrappers around the games of BLIP's reference (arXiv 2105.04444).

They are those of OpenAI Baselines, from the emulator outwards:

1. a limit of emulator frames, no-ops counted, whose end is an ordinary ``terminated``;
2. 1 to 30 frames of NOOP at the start of a game;
3. four frames per step, pixel-wise maximum of the last two, in colour;
4. raw score and steps of whole games;
5. a lost life ends an episode; the next one starts with a step of NOOP in the same game;
6. where action 1 is FIRE, every episode starts with a step of action 1 (FIRE) and one of action 2;
7. grey by OpenCV's weights, 84 x 84 by area;
8. rewards -1, 0 or 1 (in training; ``envs.vector``);
9. an episode that ends starts anew in the same step;
10. a stack of four, zero at the start of every episode.

Departures: N games are played one after another in this process instead of in 16 processes. If the
NOOP of 5 ends the game, the next one begins, where the reference loses the end and then fails
(stable-baselines3, issue 1060). If action 2 of 6 ends an episode, the observation is that of the
next one instead of the one before. A game can be dropped before its end.

Outside of training the games are the same, but rewards are raw and ``terminated`` means the end of
a game. Rewards of the steps of 5 and 6 are in the score, and in no step.

Differences from the fast preset (``envs.fast``): 1 (108,000 frames, ``truncated``, no-ops not
counted), 2 (0 to 29 frames, 0 to 28 after FIRE), 3 (maximum of grey values), 5 and 6 (one frame of
FIRE before the no-ops of a new game, nothing after a lost life), 10 (the stack goes on over a lost
life). What 3 makes of 1,000 screens of random play: none of them differs in Boxing and
SpaceInvaders; in Jamesbond 33 % of the screens, by up to 36 grey levels in 0.04 % of the pixels; in
KungFuMaster 57 %, 15 levels, 0.2 %; in Krull 87 %, 25 levels, 0.2 %; in Riverraid 86 %, 34 levels,
1.6 %.
"""

from __future__ import annotations

from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py.env import AtariEnv

from envs import games
from envs.base import Finished, Pixels, Step

MAX_FRAMES = {"SpaceInvaders": 300_000}  # gym's old registry: 100,000 steps of its own skip, 3 here
DEFAULT_MAX_FRAMES = 400_000
MAX_NOOPS = 30
SKIP = 4

Result = tuple[Pixels, float, bool, bool, dict[str, Any]]
Start = tuple[Pixels, dict[str, Any]]
_Wrapper = gymnasium.Wrapper[Pixels, Any, Pixels, Any]


class Frames(_Wrapper):
    """Drives the emulator directly, to read the screen only where it is used.

    Items 1 to 3 of the list at the top of this file.

    Args:
        env: An ``AtariEnv`` in colour, with ``frameskip=1`` and no sticky actions.
        actions: ALE's names of the actions.
        max_frames: Emulator frames after which a game is over.
    """

    def __init__(self, env: AtariEnv, actions: list[ale_py.Action], max_frames: int) -> None:
        super().__init__(env)
        self.ale = env.ale
        self.screen = np.zeros((*self.ale.getScreenDims(), 3), dtype=np.uint8)
        self._actions, self._max_frames, self._frames = actions, max_frames, 0
        self._last = np.zeros((2, *self.screen.shape), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """A new game, after no-ops whose number is drawn from the environment's own stream."""
        self._begin(seed)
        for _ in range(int(self.env.np_random.integers(1, MAX_NOOPS + 1))):
            if self._frame(ale_py.Action.NOOP)[1]:
                self._begin(None)
        self.screen = self.ale.getScreenRGB()
        return self.screen, {}

    def _begin(self, seed: int | None) -> None:
        self.env.reset(seed=seed)
        self._frames = 0

    def _frame(self, action: ale_py.Action) -> tuple[float, bool]:
        """One emulator frame: its reward, and whether the game is over."""
        reward = float(self.ale.act(action))
        self._frames += 1
        return reward, self.ale.game_over() or self._frames >= self._max_frames

    def step(self, action: int) -> Result:
        """Four frames, or fewer if the game ends: then what is seen is an old picture."""
        total, over = 0.0, False
        for i in range(SKIP):
            reward, over = self._frame(self._actions[action])
            total += reward
            if i >= SKIP - 2:
                self.ale.getScreenRGB(self._last[i - SKIP + 2])
            if over:
                break
        self.screen = self._last.max(axis=0)
        return self.screen, total, over, False, {"cut": over and not self.ale.game_over()}


class Score(_Wrapper):
    """Counts the score of whole games, before the outer wrappers change rewards and ends.

    Item 4 of the list at the top of this file.

    Args:
        env: The game whose score is counted.
        index: Index of the emulator.
        finished: Grows by one for each game played to its end.
    """

    def __init__(self, env: _Wrapper, index: int, finished: list[Finished]) -> None:
        super().__init__(env)
        self.games = 0
        self._index, self._finished = index, finished
        self._score, self._steps = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """A new game."""
        self._score, self._steps = 0.0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: int) -> Result:
        """Take a step and count it."""
        observation, reward, over, truncated, info = self.env.step(action)
        self._score += float(reward)
        self._steps += 1
        if over:
            self.games += 1
            cut = bool(info.get("cut"))
            self._finished.append(Finished(self._index, self._score, self._steps, cut))
        return observation, float(reward), over, truncated, info


class EpisodicLife(_Wrapper):
    """Ends an episode at a lost life, while the game goes on.

    Item 5 of the list at the top of this file.

    Args:
        env: A game.
        ale: Its emulator.
    """

    def __init__(self, env: _Wrapper, ale: ale_py.ALEInterface) -> None:
        super().__init__(env)
        self.new_game = True
        self._ale, self._lives = ale, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """The next life; a new game if there is none, with a seed, or if ``new_game`` is set."""
        over = self.new_game or seed is not None
        if not over:
            observation, _, over, _, info = self.env.step(0)
        if over:
            observation, info = self.env.reset(seed=seed, options=options)
        self.new_game = False
        self._lives = self._ale.lives()
        return observation, info

    def step(self, action: int) -> Result:
        """A step, ``terminated`` if a life is lost."""
        observation, reward, over, truncated, info = self.env.step(action)
        self.new_game = over
        lives = self._ale.lives()
        lost = 0 < lives < self._lives
        self._lives = lives
        return observation, float(reward), over or lost, truncated, info


class FireReset(_Wrapper):
    """Starts every episode with actions 1 and 2, where action 1 is FIRE (item 6 above)."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Start the next episode, and take its first two steps."""
        observation, info = self.env.reset(seed=seed, options=options)
        for action in (1, 2):
            observation, _, done, _, info = self.env.step(action)
            if done:
                observation, info = self.env.reset()
        return observation, info


class Warp(gymnasium.ObservationWrapper[Pixels, Any, Pixels]):
    """Shrinks screens to 84 x 84 grey values (item 7 above)."""

    def observation(self, observation: Pixels) -> Pixels:
        """Shrink a screen (H, W, 3) to grey values (84, 84)."""
        grey = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA), dtype=np.uint8)


class _Emulator:
    """One game in its wrappers."""

    def __init__(
        self,
        game: str,
        index: int,
        full_action_space: bool,
        max_frames: int,
        finished: list[Finished],
    ) -> None:
        raw = AtariEnv(
            games.rom(game),
            frameskip=1,
            repeat_action_probability=0.0,
            full_action_space=full_action_space,
        )
        ale = raw.ale
        actions = ale.getLegalActionSet() if full_action_space else ale.getMinimalActionSet()
        self.frames = Frames(raw, actions, max_frames)
        self.score = Score(self.frames, index, finished)
        self.life = EpisodicLife(self.score, ale)
        fire = len(actions) > 2 and actions[1] == ale_py.Action.FIRE
        self.env = Warp(FireReset(self.life) if fire else self.life)


class FaithfulGames:
    """One game in N emulators, one after another. Arguments: ``envs.base.Preset``.

    ``num_threads`` is not used. Never ``truncated``.
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
        if max_frames is None:
            max_frames = MAX_FRAMES.get(game, DEFAULT_MAX_FRAMES)
        self._emulators = [
            _Emulator(game, i, full_action_space, max_frames, finished) for i in range(num_envs)
        ]
        self._training = training
        self._stack = np.zeros((num_envs, 4, 84, 84), dtype=np.uint8)

    def reset(self, seeds: npt.NDArray[np.int64] | None) -> Pixels:
        """Start N games; see ``envs.base.Preset``."""
        self._stack = np.zeros_like(self._stack)
        for i, emulator in enumerate(self._emulators):
            emulator.life.new_game = True
            seed = None if seeds is None else int(seeds[i])
            self._stack[i, 3], _ = emulator.env.reset(seed=seed)
        return self._stack

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """One agent step; see ``envs.base.Preset``."""
        num_envs = len(self._emulators)
        stack = np.empty_like(self._stack)  # never the array of the step before, which is kept
        stack[:, :3] = self._stack[:, 1:]
        rewards = np.zeros(num_envs)
        done = np.zeros(num_envs, dtype=np.bool_)
        over = np.zeros(num_envs, dtype=np.bool_)
        final: Pixels | None = None
        for i, emulator in enumerate(self._emulators):
            games_before = emulator.score.games
            stack[i, 3], rewards[i], done[i], _, _ = emulator.env.step(int(actions[i]))
            if done[i]:
                final = np.zeros_like(stack) if final is None else final
                final[i] = stack[i]
                stack[i, :3] = 0
                stack[i, 3], _ = emulator.env.reset()
                # Looked up only now, because the first step of the next life may end the game too.
                over[i] = emulator.score.games > games_before
        self._stack = stack
        return Step(
            observations=stack,
            rewards=rewards,
            terminated=done if self._training else over,
            truncated=np.zeros(num_envs, dtype=np.bool_),
            final=final,
        )

    def frames(self) -> tuple[Pixels, ...]:
        """The pictures on the screens; the maximum of two frames, so that nothing flickers."""
        return tuple(emulator.frames.screen for emulator in self._emulators)

    def close(self) -> None:
        """Let the emulators go."""
        self._emulators = []
