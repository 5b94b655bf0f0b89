"""The faithful preset, wrapper by wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from ale_py.env import AtariEnv
from atari_playing import play

import envs.faithful
from envs import games
from envs.base import Finished
from envs.faithful import EpisodicLife, FaithfulGames, FireReset, Frames, Score
from envs.vector import SequentialAtari


def raw(game: str) -> AtariEnv:
    return AtariEnv(games.rom(game), frameskip=1, repeat_action_probability=0.0)


def frames(game: str, max_frames: int = 400_000) -> Frames:
    env = raw(game)
    return Frames(env, env.ale.getMinimalActionSet(), max_frames)


def limit(env: SequentialAtari) -> int:
    playing: Any = env._playing
    return int(playing._emulators[0].frames._max_frames)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every action that reaches the emulator, resets included."""
    actions: list[int] = []
    step = Frames.step

    def noted(self: Frames, action: int) -> Any:
        actions.append(action)
        return step(self, action)

    monkeypatch.setattr(Frames, "step", noted)
    return actions


# ---------------------------------------------------------------- pixels of the two presets


@pytest.mark.parametrize(
    "game, levels, screens",
    [
        ("KungFuMaster", 15, 0.57),
        ("Boxing", 0, 0.0),
        ("Jamesbond", 36, 0.33),
        ("Krull", 25, 0.87),
        ("Riverraid", 34, 0.86),
        ("SpaceInvaders", 0, 0.0),
    ],
)
def test_pixels_differ_as_the_docstring_says(game: str, levels: int, screens: float) -> None:
    """The maximum of two screens before they are made grey, or after: half of the 1,000 steps."""

    def small(grey: Any) -> Any:
        return cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA).astype(int)

    env = raw(game)
    env.reset(seed=0)
    actions, draw = env.ale.getMinimalActionSet(), np.random.default_rng(0)
    largest, differing = 0, 0
    for _ in range(500):
        action = actions[draw.integers(len(actions))]
        colours, greys = [], []
        for i in range(4):
            env.ale.act(action)
            if env.ale.game_over():
                env.reset()
            if i >= 2:
                colours.append(env.ale.getScreenRGB())
                greys.append(env.ale.getScreenGrayscale())
        faithful = small(cv2.cvtColor(np.maximum(*colours), cv2.COLOR_RGB2GRAY))
        found = int(np.abs(faithful - small(np.maximum(*greys))).max())
        largest, differing = max(largest, found), differing + bool(found)
    assert levels / 2 <= largest <= levels
    assert differing / 500 == pytest.approx(screens, abs=0.2)
    text = " ".join(str(envs.faithful.__doc__).split()).partition("random play:")[2]
    assert not levels or f"{levels} grey" in text.partition(game)[2] or f"{levels} levels" in text


# ---------------------------------------------------------------- 1: limit of frames


def test_limits_are_those_of_the_reference() -> None:
    assert limit(SequentialAtari("SpaceInvaders", 1, preset="faithful")) == 300_000
    assert limit(SequentialAtari("Boxing", 1, preset="faithful")) == 400_000
    assert limit(SequentialAtari("Boxing", 1, preset="faithful", max_frames=800)) == 800


def test_at_the_limit_a_game_is_terminated() -> None:
    env = frames("Pong", max_frames=100)
    env.reset(seed=0)
    noops = env.ale.getEpisodeFrameNumber()
    steps, over = 0, False
    while not over:
        _, _, over, truncated, _ = env.step(0)
        assert not truncated
        steps += 1
    assert steps == -(-(100 - noops) // 4)  # no-ops count; the last skip may be cut short
    assert env.ale.getEpisodeFrameNumber() == 100


def test_a_cut_game_has_a_score_and_another_follows() -> None:
    env = SequentialAtari("Pong", 2, preset="faithful", max_frames=200)
    ends = 0
    for step in play(env, 120):
        assert not step.truncated.any()
        assert step.infos == {}
        finished = env.finished_games()
        assert [game.env for game in finished] == np.flatnonzero(step.terminated).tolist()
        ends += len(finished)
        # 200 frames less 1 to 30 no-ops; two of the steps are those of FIRE and action 2
        assert all(43 <= game.steps <= 50 for game in finished)
    assert ends >= 4


# ---------------------------------------------------------------- 2: no-ops


def test_a_game_starts_with_1_to_30_noops() -> None:
    env = frames("Breakout")
    env.reset(seed=0)
    counts = []
    for _ in range(400):
        env.reset()
        counts.append(env.ale.getEpisodeFrameNumber())
    assert set(counts) == set(range(1, 31))
    assert np.mean(counts) == pytest.approx(15.5, abs=1.5)  # standard error 0.43


def test_noops_come_from_the_environments_seed() -> None:
    env = frames("Breakout")

    def starts(seed: int) -> list[int]:
        numbers = []
        for i in range(6):
            env.reset(seed=seed if i == 0 else None)
            numbers.append(env.ale.getEpisodeFrameNumber())
        return numbers

    assert starts(1) == starts(1)
    assert starts(1) != starts(2)


def test_a_noop_is_no_op_also_where_action_0_is_not() -> None:
    env = raw("Backgammon")
    assert games.action_meanings("Backgammon")[0] == "FIRE"
    acted: list[ale_py.Action] = []
    reset = Frames(env, env.ale.getMinimalActionSet(), 1_000)
    act = env.ale.act
    reset.ale = SimpleNamespace(  # type: ignore[assignment]
        act=lambda action: acted.append(action) or act(action),
        game_over=env.ale.game_over,
        getScreenRGB=env.ale.getScreenRGB,
    )
    reset.reset(seed=0)
    assert set(acted) == {ale_py.Action.NOOP}


# ---------------------------------------------------------------- 3: skip and maximum


def test_a_step_is_four_frames_and_the_maximum_of_the_last_two_in_colour() -> None:
    ours, bare = frames("Riverraid"), raw("Riverraid")
    ours.reset(seed=0)
    bare.reset(seed=0)
    for _ in range(ours.ale.getEpisodeFrameNumber()):
        bare.step(0)
    generator = np.random.default_rng(0)
    total = 0.0
    for _ in range(150):
        action = int(generator.integers(18))
        screen, reward, *_ = ours.step(action)
        steps = [bare.step(action) for _ in range(4)]
        np.testing.assert_array_equal(screen, np.maximum(steps[2][0], steps[3][0]))
        assert reward == sum(float(step[1]) for step in steps)
        total += reward
    assert total > 0


def test_a_game_that_ends_inside_the_skip_ends_there() -> None:
    env = frames("Pong", max_frames=50)
    env.reset(seed=0)
    before = env.ale.getEpisodeFrameNumber()
    while not env.step(0)[2]:
        before = env.ale.getEpisodeFrameNumber()
    assert env.ale.getEpisodeFrameNumber() == 50
    assert 50 - before <= 4


# ---------------------------------------------------------------- 4 and 5, on a scripted game


class Scripted(gymnasium.Env[Any, int]):
    """Lives after each step, and how many are the end. The observation counts steps."""

    end = 0

    def __init__(self, *lives: int) -> None:
        self.script: Iterator[int] = iter(lives)
        self.left, self.over = 3, True
        self.actions: list[int | str] = []
        self.ale = SimpleNamespace(lives=lambda: self.left)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.actions.append("reset")
        self.left, self.over = 3, False
        return np.array([len(self.actions)]), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "a game that is over was played on"
        self.actions.append(action)
        self.left = next(self.script)
        self.over = self.left == self.end
        return np.array([len(self.actions)]), 10.0, self.over, False, {}


def lives(env: Scripted, finished: list[Finished] | None = None) -> EpisodicLife:
    score = Score(env, 4, [] if finished is None else finished)  # type: ignore[arg-type]
    return EpisodicLife(score, env.ale)  # type: ignore[arg-type]


def test_a_lost_life_ends_an_episode_and_the_next_starts_with_a_noop() -> None:
    game, finished = Scripted(3, 2, 2, 1, 1, 0), []
    env = lives(game, finished)
    env.reset()
    assert [env.step(5)[2] for _ in range(2)] == [False, True]
    env.reset()
    assert game.actions == ["reset", 5, 5, 0]
    assert env.step(6)[2]
    env.reset()
    assert not finished
    assert env.step(7)[2]  # the last life
    assert finished == [Finished(4, 60.0, 6)]  # raw, no-ops of the lives included
    env.reset()
    assert game.actions == ["reset", 5, 5, 0, 6, 0, 7, "reset"]


def test_no_life_left_is_not_yet_the_end() -> None:
    """Qbert tells 0 lives for some frames before its game is over."""
    game = Scripted(1, 0, 0, -1)
    game.end = -1
    env = lives(game)
    env.reset()
    assert [env.step(5)[2] for _ in range(4)] == [True, False, False, True]


def test_a_game_that_ends_in_the_noop_of_a_life_is_started_anew() -> None:
    """Where the reference goes on in a game that is over, and fails."""
    finished: list[Finished] = []
    game = Scripted(2, 0, 3, 3, 2, 2)
    env = lives(game, finished)
    env.reset()
    assert env.step(5)[2]
    env.reset()
    assert game.actions == ["reset", 5, 0, "reset"]
    assert finished == [Finished(4, 20.0, 2)]
    assert not env.step(5)[2]  # of three lives again
    assert not env.step(5)[2]
    assert env.step(5)[2]


def test_a_game_that_ends_while_a_life_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of training too, where a lost life alone is not."""
    for training in (True, False):
        env = FaithfulGames(
            "SpaceInvaders",
            1,
            training=training,
            full_action_space=False,
            max_frames=None,
            num_threads=1,
            render=False,
            finished=(finished := []),
        )
        env.reset(np.array([0]))
        emulator = env._emulators[0]
        game = Scripted(2, 0, *[3] * 10)
        game.reset()
        emulator.life.env.env = game  # type: ignore[attr-defined]
        emulator.life._ale = game.ale  # type: ignore[assignment]
        emulator.env.observation = lambda _: np.ones((84, 84), np.uint8)  # type: ignore[method-assign]
        step = env.step(np.array([3]))
        assert step.terminated.tolist() == [True]
        assert game.actions == ["reset", 3, 0, "reset", 1, 2]
        assert len(finished) == 1
        assert not env.step(np.array([3])).terminated.any()


def test_a_seed_or_a_dropped_game_starts_anew() -> None:
    game = Scripted(*[3] * 10)
    env = lives(game)
    env.reset()
    env.step(5)
    env.reset(seed=1)
    env.step(5)
    env.new_game = True
    env.reset()
    assert game.actions == ["reset", 5, "reset", 5, "reset"]


# ---------------------------------------------------------------- 6: FIRE


def test_every_life_starts_with_fire_and_action_2(taken: list[int]) -> None:
    env = SequentialAtari("SpaceInvaders", 1, preset="faithful")
    env.reset(seed=0)
    assert taken == [1, 2]
    lost = over = 0
    for _ in range(800):
        taken.clear()
        terminated = env.step(np.array([5]))[2]
        if env.finished_games():
            over += 1
            assert taken == [5, 1, 2]
        elif terminated[0]:
            lost += 1
            assert taken == [5, 0, 1, 2]
        else:
            assert taken == [5]
    assert over >= 1
    assert lost >= 2


def test_no_fire_where_there_is_none(taken: list[int]) -> None:
    env = SequentialAtari("KungFuMaster", 1, preset="faithful")
    env.reset(seed=0)
    assert taken == []
    env = SequentialAtari("KungFuMaster", 1, preset="faithful", full_action_space=True)
    env.reset(seed=0)
    assert taken == [1, 2]


def test_an_episode_that_ends_while_firing_is_followed_by_the_next() -> None:
    game = Scripted(2, 2, 2, *[2] * 5)
    env: Any = FireReset(lives(game))  # type: ignore[arg-type]
    observation, _ = env.reset()
    assert game.actions == ["reset", 1, 0, 2]  # FIRE cost a life, and the next began with a no-op
    assert observation == [4]


# ---------------------------------------------------------------- 7 to 10


def test_warp_is_opencvs_grey_and_area() -> None:
    env = SequentialAtari("Riverraid", 1, preset="faithful", render_mode="rgb_array")
    for step in play(env, 60):
        grey = cv2.cvtColor(env.render()[0], cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(step.observations[0, 3], small)


def test_rewards_are_signs_in_training_and_raw_outside() -> None:
    envs = [SequentialAtari("Riverraid", 1, preset="faithful", training=t) for t in (True, False)]
    most = 0.0
    for a, b in zip(*(play(env, 300) for env in envs), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.rewards, np.sign(b.rewards))
        most = max(most, float(b.rewards.max()))
    assert most > 1, "no reward was raw"


def test_the_stack_is_empty_at_the_start_of_every_episode() -> None:
    for training in (True, False):
        env = SequentialAtari("SpaceInvaders", 2, preset="faithful", training=training)
        ends = lost = 0
        for step in play(env, 700):
            for i in range(2):
                if step.observations[i, :3].any():
                    np.testing.assert_array_equal(step.observations[i, :3], step.before[i, 1:])
                    assert not step.terminated[i]
                else:
                    lost += 1
                    assert step.observations[i, 3].any()
                    ends += bool(step.terminated[i])
        assert lost >= 6
        assert ends == (lost if training else len(env.finished_games()))


def test_games_play_on_without_an_error() -> None:
    """The reference fails in Riverraid sooner or later."""
    env = SequentialAtari("Riverraid", 2, preset="faithful")
    ends = sum(int(step.terminated.sum()) for step in play(env, 1_500))
    assert ends > len(env.finished_games()) >= 2


def test_the_first_screen_is_the_last_frame_of_the_noops() -> None:
    env = frames("Boxing")
    screen, _ = env.reset(seed=0)
    np.testing.assert_array_equal(screen, env.ale.getScreenRGB())
