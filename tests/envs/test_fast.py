"""The fast preset."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from atari_playing import play
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from envs import games
from envs.vector import SequentialAtari


class Started(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts a game as ``AtariVectorEnv`` does: a frame of FIRE if there is one, then no-ops."""

    def __init__(self, env: AtariEnv, game: str) -> None:
        super().__init__(env)
        self.frames, self._game = 0, game

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        fire = "FIRE" in games.action_meanings(self._game)
        for i in range(self.frames):
            observation, *_ = self.env.step(1 if fire and i == 0 else 0)
        return observation, info


@pytest.mark.parametrize("game", ["Breakout", "KungFuMaster", "SpaceInvaders"])
def test_fast_equals_gymnasiums_wrappers(game: str) -> None:
    """Bit by bit, through a whole game and into the next."""
    env = SequentialAtari(game, 1, training=False)
    raw = Started(AtariEnv(games.rom(game), frameskip=1, repeat_action_probability=0.0), game)
    warped = AtariPreprocessing(raw, noop_max=0, frame_skip=4, screen_size=84)
    reference = FrameStackObservation(warped, 4, padding_type="zero")

    generator = np.random.default_rng(0)
    observations, _ = env.reset(seed=1)
    fast: Any = env._playing
    raw.frames = int(fast._frame[0])
    expected, _ = reference.reset()
    over = 0
    for _ in range(1_200):
        np.testing.assert_array_equal(observations[0], expected)
        action = int(generator.integers(env.num_actions))
        observations, rewards, terminated, truncated, _ = env.step(np.array([action]))
        expected, reward, ended, cut, _ = reference.step(action)
        assert rewards[0] == reward
        assert (terminated[0], truncated[0]) == (ended, cut)
        if ended:
            over += 1
            raw.frames = int(fast._frame[0])
            expected, _ = reference.reset()
    assert over >= 1


@pytest.mark.parametrize("game", ["Breakout", "SpaceInvaders"])
def test_scores_are_those_of_the_other_autoreset_mode(game: str) -> None:
    """Games of the same seed and actions, against raw rewards summed where a step is an extra."""
    actions = np.random.default_rng(0).integers(0, games.num_actions(game), (8, 4_000))
    seed = 11
    env = SequentialAtari(game, 1)
    env.reset(seed=[seed])
    finished: list[tuple[float, int]] = []
    while len(finished) < 4:
        played = 0
        while not (ended := env.finished_games()):
            env.step(actions[len(finished), played : played + 1])
            played += 1
        assert (ended[0].env, ended[0].steps) == (0, played)
        finished.append((ended[0].score, ended[0].steps))

    bare = AtariVectorEnv(
        games.rom(game), 1, autoreset_mode=AutoresetMode.NEXT_STEP, reward_clipping=False
    )
    bare.reset(seed=seed)
    expected = []
    while len(expected) < 4:
        total, steps, over = 0.0, 0, False
        while not over:
            _, reward, terminated, _, _ = bare.step(actions[len(expected), steps : steps + 1])
            total, steps, over = total + reward[0], steps + 1, terminated[0]
        bare.step(np.array([0]))  # the step after the end only starts the next game
        expected.append((total, steps))
    assert finished == expected


def test_fast_a_lost_life_ends_an_episode_and_not_the_game() -> None:
    """Three lives: two lost and then the end. The game runs as it does outside of training."""
    training = SequentialAtari("SpaceInvaders", 2)
    scoring = SequentialAtari("SpaceInvaders", 2, training=False)
    lost = np.zeros(2, dtype=int)
    total = np.zeros(2)
    for a, b in zip(play(training, 900), play(scoring, 900), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.rewards, np.sign(b.rewards))
        lost += a.terminated
        total += b.rewards
        finished = training.finished_games()
        assert finished == scoring.finished_games()
        assert [game.env for game in finished] == np.flatnonzero(b.terminated).tolist()
        for game in finished:
            assert lost[game.env] == 3
            assert game.score == total[game.env]
            lost[game.env], total[game.env] = 0, 0.0
    assert not a.truncated.any()


def test_fast_stack_goes_on_over_a_life_and_is_empty_at_a_new_game() -> None:
    env = SequentialAtari("SpaceInvaders", 2)
    lives = ends = 0
    for step in play(env, 900):
        over = [game.env for game in env.finished_games()]
        for i in range(2):
            if i in over:
                ends += 1
                assert not step.observations[i, :3].any()
                assert step.observations[i, 3].any()
            else:
                lives += bool(step.terminated[i])
                np.testing.assert_array_equal(step.observations[i, :3], step.before[i, 1:])
    assert ends >= 2
    assert lives >= 4


@pytest.mark.parametrize("training", [True, False])
def test_fast_limit_of_frames_truncates(training: bool) -> None:
    env = SequentialAtari("Pong", 2, training=training, max_frames=200)
    last = {}
    for number, step in enumerate(play(env, 120), start=1):
        assert not step.terminated.any()
        finished = env.finished_games()
        assert bool(finished) == bool(step.infos)
        if finished:
            assert number % 50 == 0  # 200 frames, those of the start not counted
            assert step.truncated.all()
            assert [game.steps for game in finished] == [50, 50]
            final = step.infos["final_obs"]
            np.testing.assert_array_equal(final[:, :3], step.before[:, 1:])
            assert final[:, 3].any()
            assert not step.observations[:, :3].any()
            last = step.infos
    assert last


def test_fast_one_env_cut_leaves_the_others_alone() -> None:
    env = SequentialAtari("SpaceInvaders", 3, training=False, max_frames=1_600)
    cut = itertools.count()
    for step in play(env, 900):
        assert bool(step.infos) == bool(step.truncated.any())
        for i in np.flatnonzero(step.truncated):
            next(cut)
            np.testing.assert_array_equal(step.infos["final_obs"][i, :3], step.before[i, 1:])
        for i in np.flatnonzero(~(step.truncated | step.terminated)):
            np.testing.assert_array_equal(step.observations[i, :3], step.before[i, 1:])
    assert next(cut) > 0


def test_fast_has_no_sticky_actions() -> None:
    """Two emulators of one seed part as soon as their actions differ, and never before."""
    env = SequentialAtari("Pong", 2)
    env.reset(seed=[3, 3])
    for _ in range(100):
        observations, *_ = env.step(np.array([2, 2]))
        np.testing.assert_array_equal(observations[0], observations[1])


def test_fast_games_cut_at_once_are_all_told() -> None:
    """A game of one step: the next one may start at a later frame, as its no-ops count."""
    env = SequentialAtari("Boxing", 4, max_frames=4)
    for step in play(env, 20):
        assert step.truncated.all()
        assert step.infos["final_obs"].any(axis=(1, 2, 3)).all()
        assert [(game.env, game.steps) for game in env.finished_games()] == [
            (i, 1) for i in range(4)
        ]
