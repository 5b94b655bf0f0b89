"""Environments by their ids in Gymnasium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs
from envs import games
from envs.single import Atari
from envs.vector import SequentialAtari


def make(name: str = "raycl/Boxing-v0", **options: Any) -> Atari:
    env = gymnasium.make(name, **options).unwrapped
    assert isinstance(env, Atari)
    return env


@pytest.mark.parametrize("preset", ["fast", "faithful"])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize(
    "name,options",
    [
        ("raycl/SpaceInvaders-v0", {}),
        ("raycl/Boxing-v0", {"training": False}),
        ("raycl/Sequence-v0", {"games": "blip3"}),
    ],
)
def test_check_env(
    name: str, options: dict[str, Any], preset: str, render_mode: str | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(name, preset=preset, render_mode=render_mode, **options))


def test_every_game_has_an_id() -> None:
    ids = {key for key in gymnasium.registry if str(key).startswith("raycl/")}
    assert ids == {f"raycl/{game}-v0" for game in (*games.names(), "Sequence")}
    assert make("raycl/KungFuMaster-v0").games == ("KungFuMaster",)


def test_registering_again_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.register()
    assert dict(gymnasium.registry) == before


def test_vector_is_the_vector_environment() -> None:
    env = gymnasium.make_vec(
        "raycl/Sequence-v0", num_envs=3, games=["Pong", "Boxing"], training=False
    )
    assert isinstance(env, SequentialAtari)
    assert (env.num_envs, env.games, env.training) == (3, ("Pong", "Boxing"), False)
    env.reset(seed=0)
    assert env.step(np.zeros(3, dtype=np.int64))[0].shape == (3, 4, 84, 84)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_single_environments_in_gymnasiums_own_vector() -> None:
    env = gymnasium.make_vec("raycl/SpaceInvaders-v0", num_envs=2, vectorization_mode="sync")
    assert isinstance(env, SyncVectorEnv)
    env.action_space.seed(0)
    env.reset(seed=0)
    ends = sum(int(env.step(env.action_space.sample())[2].sum()) for _ in range(500))
    assert ends >= 2


def test_one_is_the_vector_of_one() -> None:
    """Observation by observation over lives and games, but for the last of an episode."""
    one = make("raycl/SpaceInvaders-v0")
    many = SequentialAtari("SpaceInvaders", 1)
    generator = np.random.default_rng(0)
    observation, _ = one.reset(seed=17)
    np.testing.assert_array_equal(observation, many.reset(seed=[17])[0][0])
    scores = []
    for _ in range(900):
        action = int(generator.integers(6))
        observation, reward, terminated, truncated, info = one.step(action)
        observations, rewards, ends, cuts, _ = many.step(np.array([action]))
        assert (reward, terminated, truncated) == (rewards[0], ends[0], cuts[0])
        if info:
            scores.append((info["score"], info["steps"]))
            assert terminated
            assert observation[:3].any()  # the last of this game, no first one of the next
        if terminated:
            observation, _ = one.reset()
        np.testing.assert_array_equal(observation, observations[0])
    assert scores
    assert scores == [(game.score, game.steps) for game in many.finished_games()]


def test_an_episode_that_is_over_needs_a_reset() -> None:
    env = make("raycl/Pong-v0", max_frames=80)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


def test_reset_in_the_middle_starts_anew() -> None:
    env = make("raycl/Pong-v0")
    env.reset(seed=0)
    for _ in range(30):
        observation, *_ = env.step(0)
    assert observation[:3].any()
    observation, _ = env.reset()
    assert not observation[:3].any()


def test_a_sequence_changes_its_game() -> None:
    env = make("raycl/Sequence-v0", games="blip6")
    assert (env.game, env.action_space.n) == ("KungFuMaster", 14)  # type: ignore[attr-defined]
    env.set_task(5)
    assert (env.task, env.game) == (5, "SpaceInvaders")
    assert env.action_space.n == 6  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(5)
    with pytest.raises(ValueError, match="action 6"):
        env.step(6)
    env.set_task(5)
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_what_follows_a_seed_repeats_through_a_change_of_game() -> None:
    def start() -> list[Any]:
        env = make("raycl/Sequence-v0", games=["Pong", "Breakout"])
        env.reset(seed=5)
        env.set_task(1)
        return [env.reset()[0] for _ in range(4)]

    np.testing.assert_array_equal(start(), start())


def test_pictures() -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    screen = env.render()
    assert (screen.shape, screen.dtype) == ((210, 160, 3), np.uint8)


def test_unknown_game_in_a_sequence() -> None:
    with pytest.raises(games.UnknownGame, match="'Pong'"):
        gymnasium.make("raycl/Sequence-v0", games=["Pongg"])


MAKE = """
import gymnasium, sys
env = gymnasium.make("envs:raycl/Boxing-v0")
env.reset(seed=0)
env.step(0)
print(sys.modules["envs"].__file__)
print({"ray", "raycl", "torch"} & set(sys.modules))
"""


def made_in(directory: Path) -> None:
    """Made by its id alone, from a directory that holds the package, as Ray's workers have it."""
    code = f"import sys; sys.path.insert(0, {str(directory)!r})\n{MAKE}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where, loaded = done.stdout.split("\n")[:2]
    assert Path(where) == directory / "envs" / "__init__.py"
    assert loaded == "set()"


ROOT = Path(envs.__file__).parent.parent


def test_from_a_directory_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    for file in (ROOT / "envs").glob("*.py"):
        (tmp_path / "envs" / file.name).write_bytes(file.read_bytes())
    made_in(tmp_path)


def test_from_a_wheel(tmp_path: Path) -> None:
    source, wheels, unpacked = (tmp_path / name for name in ("source", "wheels", "unpacked"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("envs", "raycl"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(wheels), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert (unpacked / "envs" / "py.typed").is_file()
    made_in(unpacked)
