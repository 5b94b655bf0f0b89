"""What scores are played with: weights, seeds, whole games."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sequence_making import UPDATES, Make, same, state, tiny

from envs.base import Finished
from raycl.rl.env_runner import Job, Order
from raycl.rl.player import Player
from raycl.rl.seeds import game_seeds, training_seeds

pytestmark = pytest.mark.usefixtures("cluster")


def test_every_start_of_a_game_has_seeds_of_its_own(make: Make) -> None:
    run = make(tiny())
    runner = run.algorithm.env_runner_group.local_env_runner
    reset, context = runner.env.reset, runner.config.env_config

    def seeds(game: int = 0, update: int = 0, worker: int = 0, data: int = 7) -> list[int]:
        told: list[int] = []
        runner.env.reset = lambda seed: (told.extend(seed), reset(seed=seed))[1]
        runner.worker_index, runner.config.env_config = worker, context | {"seed": data}
        runner._start(Order(run.algorithm.weights(), game, update, "any"))
        return told

    whole = seeds()
    assert seeds() == whole
    others = [seeds(game=1), seeds(update=1), seeds(update=2), seeds(data=8), seeds(worker=2)]
    scored = [game_seeds(7, purpose, game, 4) for purpose in (10, 11) for game in (0, 1)]
    everything = [seed for some in [whole, *others, *scored] for seed in some]
    assert len(set(everything)) == len(everything) == 40
    runner.num_envs, runner.env = 2, runner.benchmark.make(2, training=True)
    reset = runner.env.reset
    assert seeds(worker=1) + seeds(worker=2) == whole  # however many runners share them


def test_a_row_is_played_with_what_the_end_of_the_game_left(make: Make) -> None:
    """BLIP rounds first; what that costs is the score before it less the one after it."""
    run = make(tiny("blip", benchmark={"evaluation": {"episodes": 2, "validation_episodes": 3}}))
    runner, end = run.algorithm.env_runner_group.local_env_runner, run.algorithm.end_game
    played: list[tuple[Job, dict[str, torch.Tensor]]] = []
    before: list[dict[str, torch.Tensor]] = []

    def scores(job: Job) -> list[float]:
        weights = runner.policy.state_dict()
        played.append((job, {name: value.clone() for name, value in weights.items()}))
        return [float(len(played))] * len(job.seeds)

    runner._scores = scores
    run.algorithm.end_game = lambda generator: (before.append(state(run)), end(generator))[1]
    for _ in range(UPDATES):
        row = run.advance()
    data, left = run.seeds.data, state(run)
    evaluation, validation = Job(0, game_seeds(data, 10, 0, 2)), Job(0, game_seeds(data, 11, 0, 3))
    assert [job for job, _ in played] == [evaluation, validation, evaluation]
    assert not same(before[0], left)
    assert [same(weights, left) for _, weights in played] == [True, True, False]
    assert same(played[2][1], before[0])
    assert (run.scores.test[0, 0], run.scores.validation[0, 0]) == (1, 2)
    low, high = run.scores.references[0]
    assert row["method/consolidation_cost"] == pytest.approx(100 * (3 - 1) / (high - low))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_game_that_is_over_rests_while_the_others_are_played(make: Make, threads: int) -> None:
    runner = make(tiny()).algorithm.env_runner_group.local_env_runner
    runner.config.env_config = runner.config.env_config | {"threads": threads}
    left = {11: 3, 12: 2, 13: 5}  # steps of the game on each seed
    closed: list[int] = []

    class Scripted:
        def set_task(self, game: int) -> None:
            assert game == 1

        def reset(self, seed: list[int]) -> Any:
            (self.seed,) = seed
            return np.zeros((1, 4, 84, 84), np.uint8), {}

        def step(self, actions: Any) -> Any:
            assert actions.shape == (1,)
            left[self.seed] -= 1
            assert left[self.seed] >= 0, "a game that is over was stepped"
            return np.zeros((1, 4, 84, 84), np.uint8), None, None, None, {}

        def finished_games(self) -> list[Finished]:
            return [] if left[self.seed] else [Finished(0, float(self.seed), 1)]

        def close(self) -> None:
            closed.append(self.seed)

    def made(count: int, *, training: bool) -> Scripted:
        assert (count, training) == (1, False)  # raw rewards, no end at a lost life
        return Scripted()

    runner.benchmark.make = made
    assert runner._scores(Job(1, (11, 12, 13))) == [11.0, 12.0, 13.0]
    assert closed == [11, 12, 13]
    assert set(left.values()) == {0}


def test_scores_are_those_of_games_that_go_on_side_by_side(make: Make) -> None:
    """To the bit: the same games in one environment that plays on until the last one is over."""
    seeds, game = (3, 4, 5), 1
    games = {"games": ["Boxing", "SpaceInvaders"], "evaluation": {"actions": "sampled"}}
    run = make(tiny(benchmark=games))
    run.algorithm.changed()
    found = run.algorithm.scores([Job(game, seeds)])[Job(game, seeds)]
    policy = run.algorithm.learner.policy
    env: Any = run.benchmark.make(3, training=False)
    env.set_task(game)
    obs, _ = env.reset(seed=list(seeds))
    player = Player(policy, "sampled", seeds)
    ends: dict[int, Finished] = {}
    while len(ends) < 3:
        left = [i for i in range(3) if i not in ends]
        chosen = np.zeros(3, np.int64)
        with torch.inference_mode():
            chosen[left] = player.actions(torch.from_numpy(obs[left]), game, left).numpy()
        obs, *_ = env.step(chosen)
        for end in env.finished_games():
            ends.setdefault(end.env, end)
    env.close()
    assert found == [ends[i].score for i in range(3)]
    assert len({end.steps for end in ends.values()}) > 1  # some rested


def test_scores_are_played_as_the_sweep_file_says(make: Make) -> None:
    job = Job(0, (3, 4))
    asked: list[str] = []
    for how in ("greedy", "sampled"):
        evaluation = {"episodes": 2, "max_frames": 400, "actions": how}
        run = make(tiny(benchmark={"evaluation": evaluation}))
        run.algorithm.changed()
        policy = run.algorithm.env_runner_group.local_env_runner.policy
        greedy = policy.greedy
        policy.greedy = lambda *a, greedy=greedy: (asked.append("greedy"), greedy(*a))[1]
        run.algorithm.scores([job])
        assert bool(asked) == (how == "greedy")
        asked.clear()


def test_seeds_of_training_are_those_of_no_score_and_of_no_generator() -> None:
    training = training_seeds(7, 10, 10, 8)
    assert not set(training) & {s for p in (10, 11) for s in game_seeds(7, p, 10, 8)}
    own = np.random.SeedSequence(7).generate_state(8) >> 1  # of ``Randomness``
    assert not set(training_seeds(7, 0, 0, 8)) & set(own.tolist())


def test_the_reported_return_is_a_mean_over_the_last_games(make: Make) -> None:
    run = make(tiny())
    run.advance()
    rollout = run.algorithm.rollouts[0]
    run.algorithm._collect = lambda: [replace(rollout, scores=[1.0, 6.0], lengths=[10, 30])]
    row = run.advance()
    assert row["train/return"] == pytest.approx(np.mean([*run.recent]))
    assert list(run.recent)[-2:] == [1.0, 6.0]
    assert row["train/length"] == 20


def test_weights_of_ones_own_keep_their_scores(make: Make) -> None:
    evaluation = {
        "episodes": 1,
        "max_frames": 400,
        "every": 2,
        "zero_shot": True,
        "validation_episodes": 1,
    }
    run = make(tiny("scratch", benchmark={"evaluation": evaluation}))
    runner, played = run.algorithm.env_runner_group.local_env_runner, []

    def scores(job: Job) -> list[float]:
        played.append(job.game)
        return [float(len(played))]

    runner._scores = scores
    while not run.done:
        row = run.advance()
    result = row["result"]
    assert played == [0, 1, 0, 0, 0, 1, 1, 1]  # untrained; then the current game alone
    assert result["baseline"]["score"] == [1, 2]
    assert result["matrices"]["score"] == [[4, 2], [4, 7]]
    assert result["validation_matrices"]["score"] == [[5, None], [5, 8]]
    metrics = result["metrics"]["normalised"]
    assert metrics["average_performance"] == metrics["learning_performance"]
    assert metrics["forgetting"] == metrics["zero_shot_transfer"] == 0
