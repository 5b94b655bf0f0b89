"""``SequentialAtari`` against the ``AtariVectorEnv`` it stands on, and what ALE itself does."""

from __future__ import annotations

import time
from collections.abc import Callable

import ale_py
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from envs import games
from envs.vector import SequentialAtari

pytestmark = pytest.mark.perf

ROUNDS, AGENT_STEPS = 8, 3_200


def cheapest(*functions: Callable[[], None]) -> list[float]:
    """CPU seconds, of all threads, of the cheapest call of each, taken in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for i, function in enumerate(functions):
            started = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - started)
    return best


@pytest.mark.parametrize("num_envs,num_threads", [(1, 1), (8, 1), (16, 2)])
@pytest.mark.parametrize("game", ["Boxing", "SpaceInvaders"])
def test_adapter(
    game: str, num_envs: int, num_threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same games, seeds and actions, so that both emulate the same frames."""
    ours = SequentialAtari(game, num_envs, num_threads=num_threads)
    bare = AtariVectorEnv(
        games.rom(game),
        num_envs,
        num_threads=num_threads,
        autoreset_mode=AutoresetMode.SAME_STEP,
        life_loss_info=True,
        reward_clipping=False,
    )
    steps = AGENT_STEPS // num_envs
    generator = np.random.default_rng(0)
    actions = generator.integers(0, games.num_actions(game), (steps, num_envs))
    seeds = np.arange(num_envs)
    ours.reset(seed=seeds.tolist())
    bare.reset(seed=seeds)

    def adapted() -> None:
        for row in actions:
            ours.step(row)
        ours.finished_games()

    def alone() -> None:
        for row in actions:
            bare.step(row)

    ours_s, bare_s = cheapest(adapted, alone)
    ratio = bare_s / ours_s
    with capsys.disabled():
        print(
            f"\n{game}, {num_envs} envs, {num_threads} threads: {AGENT_STEPS / ours_s:,.0f} agent "
            f"steps per CPU-s, {ratio:.3f} of AtariVectorEnv alone ({AGENT_STEPS / bare_s:,.0f})"
        )
    assert ratio >= 0.95


@pytest.mark.parametrize("game", games.SEQUENCES["blip3"])
def test_presets_and_the_emulator_alone(game: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Four frames of ALE without a picture are the ceiling of any environment: for the record."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    path = roms.get_rom_path(games.rom(game))
    assert path is not None
    ale.loadROM(path)
    legal = ale.getMinimalActionSet()
    generator = np.random.default_rng(0)
    actions = generator.integers(0, len(legal), (AGENT_STEPS // 8, 8))

    def emulator() -> None:
        for action in actions.ravel().tolist():
            for _ in range(4):
                ale.act(legal[action])
            if ale.game_over():
                ale.reset_game()

    def player(env: SequentialAtari) -> Callable[[], None]:
        env.reset(seed=0)

        def steps() -> None:
            for row in actions:
                env.step(row)

        return steps

    presets = [SequentialAtari(game, 8, preset=preset) for preset in ("fast", "faithful")]
    drawn = SequentialAtari(game, 8, render_mode="rgb_array")
    times = cheapest(emulator, *map(player, (*presets, drawn)))
    rates = [f"{AGENT_STEPS / seconds:,.0f}" for seconds in times]
    with capsys.disabled():
        print(
            f"\n{game}, agent steps per CPU-s: emulator {rates[0]}, fast {rates[1]}, "
            f"faithful {rates[2]}, fast with pictures {rates[3]}"
        )
    assert times[2] < 2 * times[1]
