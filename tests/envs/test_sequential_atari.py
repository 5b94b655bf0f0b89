"""``SequentialAtari``: what both presets promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from atari_playing import play
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from envs import games
from envs.games import UnknownGame
from envs.vector import PRESETS, SEEDS, SequentialAtari

both = pytest.mark.parametrize("preset", ["fast", "faithful"])


@both
def test_spaces_are_the_same_for_every_game(preset: str) -> None:
    env = SequentialAtari("blip6", 2, preset=preset)
    spaces = (env.observation_space, env.single_observation_space, env.action_space)
    for task, game in enumerate(games.SEQUENCES["blip6"]):
        env.set_task(task)
        observations, infos = env.reset(seed=0)
        assert (env.task, env.game) == (task, game)
        assert env.num_actions == games.num_actions(game) == env.num_actions_of[task]
        assert (env.observation_space, env.single_observation_space, env.action_space) == spaces
        assert infos == {}
        assert env.observation_space.contains(observations)
    assert env.single_observation_space.shape == (4, 84, 84)
    assert env.single_action_space.n == 18
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@both
def test_types_of_a_step(preset: str) -> None:
    env = SequentialAtari("Pong", 3, preset=preset)
    for step in play(env, 3):
        assert step.observations.shape == (3, 4, 84, 84)
        assert step.observations.dtype == np.uint8
        assert (step.rewards.dtype, step.rewards.shape) == (np.dtype(np.float32), (3,))
        assert step.terminated.dtype == step.truncated.dtype == np.bool_
        assert step.infos == {}


@both
def test_a_new_task_plays_as_a_new_environment_does(preset: str) -> None:
    changed = SequentialAtari(["Pong", "SpaceInvaders"], 2, preset=preset)
    for _ in play(changed, 5):
        pass
    changed.set_task(1)
    new = SequentialAtari("SpaceInvaders", 2, preset=preset)
    for a, b in zip(play(changed, 20, seed=3), play(new, 20, seed=3), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.rewards, b.rewards)


@both
def test_a_seed_repeats_and_another_does_not(preset: str) -> None:
    env = SequentialAtari("Breakout", 4, preset=preset)
    first, again, other = (
        [step.observations for step in play(env, 30, seed=seed)] for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not all(np.array_equal(first[0][0], row) for row in first[0])  # nor within one


@both
@pytest.mark.parametrize("seed", [5, [5, 6, 7, 8]])
def test_what_follows_a_seed_repeats_through_a_change_of_game(preset: str, seed: Any) -> None:
    def start() -> Any:
        env = SequentialAtari(["Pong", "Breakout"], 4, preset=preset)
        env.reset(seed=seed)
        env.set_task(1)
        return env.reset()[0]

    np.testing.assert_array_equal(start(), start())


def test_seeds_of_different_numbers_are_disjoint() -> None:
    env = SequentialAtari("Pong", 16)
    seen: set[int] = set()
    for number in (0, 1, 2, 77, 4_000, SEEDS - 2, SEEDS - 1):
        seeds = env._seeds(number)
        assert seeds is not None
        assert seeds.min() >= 0
        assert seeds.max() < 2**31
        assert not seen & set(seeds.tolist())
        seen |= set(seeds.tolist())
    assert len(seen) == 7 * 16


@both
def test_seeds_one_by_one(preset: str) -> None:
    env = SequentialAtari("Breakout", 3, preset=preset)
    observations, _ = env.reset(seed=[9, 9, 12])
    np.testing.assert_array_equal(observations[0], observations[1])
    *_, last = play(env, 40, seed=np.array([4, 2**31 - 1, 4]))  # type: ignore[arg-type]
    assert last.observations.any()


@pytest.mark.parametrize("seed", [-1, SEEDS, [1], [1, -1], [1, 2**31]])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        SequentialAtari("Pong", 2).reset(seed=seed)


@both
@pytest.mark.parametrize(
    "actions,words",
    [
        ([0, 6], "SpaceInvaders: action 6 of environment 1 is not in 0 to 5"),
        ([-1, 0], "SpaceInvaders: action -1 of environment 0 is not in 0 to 5"),
        ([0, 17], "action 17 of environment 1"),
        ([0.0, 1.0], "actions must be 2 whole numbers, not float64"),
        ([0], r"whole numbers, not int64 of shape \(1,\)"),
    ],
)
def test_actions_out_of_range_never_reach_the_emulator(
    preset: str, actions: list[float], words: str
) -> None:
    env = SequentialAtari("SpaceInvaders", 2, preset=preset)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        env.step(np.array(actions))
    env.step(np.array([5, 0], dtype=np.int32))  # which it survives


@both
def test_full_action_space(preset: str) -> None:
    env = SequentialAtari(["SpaceInvaders", "Pong"], 1, preset=preset, full_action_space=True)
    assert env.num_actions_of == (18, 18)
    env.reset(seed=0)
    env.step(np.array([17]))


@both
def test_training_clips_rewards_and_scores_stay_raw(preset: str) -> None:
    env = SequentialAtari("SpaceInvaders", 2, preset=preset)
    rewards = [step.rewards for step in play(env, 700)]
    finished = env.finished_games()
    assert set(np.unique(rewards)) == {0.0, 1.0}
    assert finished
    assert all(game.score % 5 == 0 for game in finished)  # what an invader is worth
    assert max(game.score for game in finished) > 30
    assert env.finished_games() == []


@both
def test_outside_of_training_episodes_are_games(preset: str) -> None:
    env = SequentialAtari("SpaceInvaders", 2, preset=preset, training=False)
    ends = np.array([step.terminated for step in play(env, 900)])
    finished = env.finished_games()
    assert [int(ends[:, i].sum()) for i in (0, 1)] == [
        sum(game.env == i for game in finished) for i in (0, 1)
    ]
    assert finished


@both
def test_scores_of_games_not_fetched_end_with_the_task(preset: str) -> None:
    env = SequentialAtari(["SpaceInvaders", "Pong"], 2, preset=preset)
    for _ in play(env, 700):
        pass
    env.set_task(1)
    assert env.finished_games() == []


@both
def test_observations_of_the_past_stay_what_they_were(preset: str) -> None:
    env = SequentialAtari("Breakout", 2, preset=preset)
    kept = [(step.observations, step.observations.copy()) for step in play(env, 60)]
    assert all(np.array_equal(a, b) for a, b in kept)


@both
def test_screens_show_what_is_observed(preset: str) -> None:
    """Frames come in colour and full size, also past the end of a life and of a game."""
    env = SequentialAtari("SpaceInvaders", 2, preset=preset, render_mode="rgb_array")
    ends = 0
    for step in play(env, 700):
        screens = env.render()
        ends += int(step.terminated.sum())
        assert [screen.shape for screen in screens] == [(210, 160, 3)] * 2
        for screen, observation in zip(screens, step.observations, strict=True):
            grey = cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY)
            small = cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(small, observation[-1])
    assert len(env.finished_games()) >= 2
    assert ends >= 6


@both
def test_screens_of_another_size(preset: str) -> None:
    game = next(game for game in games.names() if games.screen(game) != (210, 160))
    env = SequentialAtari(game, 1, preset=preset, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.array([0]))
    assert env.render()[0].shape == (*games.screen(game), 3)


@both
def test_a_picture_changes_nothing(preset: str) -> None:
    drawn = SequentialAtari("Boxing", 2, preset=preset, render_mode="rgb_array")
    plain = SequentialAtari("Boxing", 2, preset=preset)
    for a, b in zip(play(drawn, 50), play(plain, 50), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)


@both
def test_order_of_calls(preset: str) -> None:
    env = SequentialAtari(["Pong", "Boxing"], 1, preset=preset, render_mode="rgb_array")
    for call in (lambda: env.step(np.array([0])), env.render):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    env.set_task(1)
    with pytest.raises(ResetNeeded):
        env.step(np.array([0]))
    with pytest.raises(ValueError, match="task 2: the sequence has 2 games"):
        env.set_task(2)
    with pytest.raises(ValueError, match="task -1"):
        env.set_task(-1)
    env.close()
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"preset": "quick"}, "preset 'quick': one of fast, faithful"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"render_mode": "human"}, "render_mode 'human'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SequentialAtari("Pong", **options)


def test_bad_games() -> None:
    with pytest.raises(UnknownGame, match="did you mean 'Pong'"):
        SequentialAtari(["Boxing", "Pongg"], 1)


def test_no_pictures_without_a_render_mode() -> None:
    env = SequentialAtari("Pong", 1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        env.render()


def _threads() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("render_mode,emulators", [(None, 1), ("rgb_array", 2)])
def test_threads_end_at_close_and_at_a_change_of_game(
    render_mode: str | None, emulators: int
) -> None:
    before = _threads()
    env = SequentialAtari(["Pong", "Boxing"], 4, num_threads=3, render_mode=render_mode)
    env.reset(seed=0)
    first = _threads() - before
    assert len(first) >= emulators  # and no more than there are cores
    env.set_task(1)
    second = _threads() - before
    assert len(second) == len(first)
    assert not first & second
    env.close()
    assert not second & _threads()


def test_threads_change_nothing() -> None:
    one, three = (SequentialAtari("Krull", 4, num_threads=n) for n in (1, 3))
    for a, b in zip(play(one, 60), play(three, 60), strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.rewards, b.rewards)


@pytest.mark.slow
@both
def test_every_game_plays(preset: str) -> None:
    for game in games.names():
        env = SequentialAtari(game, 1, preset=preset, render_mode="rgb_array")
        *_, last = play(env, 40)
        assert last.observations.any(), game
        assert env.render()[0].shape == (*games.screen(game), 3)
        env.close()


def test_a_game_that_is_in_already_is_put_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    fast: Any = PRESETS["fast"]

    def preset(game: str, *arguments: Any, **options: Any) -> Any:
        made.append(game)
        return fast(game, *arguments, **options)

    monkeypatch.setitem(PRESETS, "fast", preset)  # type: ignore[arg-type]
    env = SequentialAtari(["Boxing", "KungFuMaster"])
    env.set_task(0)
    assert made == ["Boxing"]
    env.set_task(1)
    env.reset(seed=0)
    env.set_task(1)  # it has been played
    assert made == ["Boxing", "KungFuMaster", "KungFuMaster"]
    env.close()
