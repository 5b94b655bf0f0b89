"""The run of a sequence on RLlib: order, weights, schedule, resume, accounting."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sequence_making import UPDATES, Make, same, state, tiny

from raycl import registry
from raycl.rl.algorithm import RunnersLostError, SequencePPO
from raycl.rl.env_runner import Job, Weights
from raycl.rl.ppo import normalised
from raycl.rl.sequence import SequenceRun
from raycl.trial.run import Known, TrainingError

pytestmark = pytest.mark.usefixtures("cluster")
METHODS = registry.names("raycl.rl.methods")


def rest(run: SequenceRun) -> list[dict[str, Any]]:
    """All rows to the end."""
    rows = []
    while not run.done:
        rows.append(run.advance())
    return rows


def test_rows_say_where_a_run_is_and_the_last_one_what_came_out(make: Make) -> None:
    run = make(tiny(benchmark={"evaluation": {"episodes": 2, "max_frames": 400, "every": 2}}))
    rows = rest(run)
    assert [row["epoch"] for row in rows] == [0, 1, 2] * 2
    assert [row["phase"] for row in rows] == ["Boxing"] * 3 + ["KungFuMaster"] * 3
    assert [row["tasks_done"] for row in rows] == [0, 0, 1, 1, 1, 2]
    assert [row["progress"] for row in rows] == [256 * i for i in range(1, 7)]  # frames
    assert ["curve/score/Boxing" in row for row in rows] == [False, True, True] * 2
    assert ["curve/score/KungFuMaster" in row for row in rows] == [False] * 4 + [True] * 2
    assert all(row["time/steps_per_s"] > 0 for row in rows)
    assert {key for row in rows for key in row if "/" not in key} <= Known.__annotations__.keys()
    result = rows[-1]["result"]
    score, percent = result["matrices"]["score"], result["matrices"]["normalised"]
    assert score[0][1] is None
    assert [row["curve/score/Boxing"] for row in (rows[2], rows[5])] == [score[0][0], score[1][0]]
    low, high = result["references"]["Boxing"]
    assert percent[1][0] == pytest.approx(100 * (score[1][0] - low) / (high - low))
    assert result["cost"]["frames"] == 6 * 256 == 4 * result["cost"]["examples"]
    frames = [point[0] for point in result["curves"]["evaluation"]["Boxing"]]
    assert frames == [512, 768, 1280, 1536]


def test_the_untrained_network_and_games_to_come_are_scored_if_asked_for(make: Make) -> None:
    evaluation = {"episodes": 1, "max_frames": 400, "zero_shot": True, "validation_episodes": 1}
    result = rest(make(tiny(benchmark={"evaluation": evaluation})))[-1]["result"]
    assert None not in result["baseline"]["score"] + result["matrices"]["score"][0]
    assert "zero_shot_transfer" in result["metrics"]["normalised"]
    assert "average_performance" in result["validation_metrics"]["normalised"]


@pytest.mark.parametrize("method", METHODS)
def test_a_game_leaves_the_heads_of_the_others_as_they_were(make: Make, method: str) -> None:
    run = make(tiny(method))
    before = state(run)
    for game, other in ((0, 1), (1, 0)):
        for _ in range(UPDATES):
            run.advance()
        after = state(run)
        for heads in ("actors", "critics"):
            assert same(before, after, f"{heads}.{other}.")
            assert not same(before, after, f"{heads}.{game}.")
        assert not same(before, after, "trunk.")
        before = after


def test_a_frozen_trunk_and_the_returns_of_the_game_before(make: Make) -> None:
    method = {"name": "finetune", "freeze_trunk": True}
    run = make(tiny().model_copy(update={"method": method}))
    for _ in range(UPDATES):
        run.advance()
    before = state(run)
    run.recent.append(1e6)  # of the first game
    rest(run)
    assert 1e6 not in run.recent
    assert same(before, state(run), "trunk.")
    assert not same(before, state(run), "actors.1.")


def test_a_game_ends_with_the_newest_observations(make: Make) -> None:
    """A game's end sees what came after each step of the last rollout, as BLIP's code does."""
    run = make(tiny())
    runner = run.algorithm.env_runner_group.local_env_runner
    step, after, told = runner.env.step, [], []
    runner.env.step = lambda actions: (after.append((found := step(actions))[0].copy()), found)[1]
    method = run.algorithm.learner.method
    method.end_game = lambda _policy, _game, obs, _generator: told.append(obs.numpy())  # type: ignore[assignment,method-assign]
    for _ in range(UPDATES):
        run.advance()
    assert np.array_equal(told[0], np.concatenate(after[-16:]))
    assert not np.array_equal(told[0], run.algorithm.rollouts[0].arrays["obs"])


def test_every_step_of_the_optimiser_is_followed_by_one_projection(make: Make) -> None:
    run = make(tiny("blip"))
    method, calls = run.algorithm.learner.method, []
    after_step = method.after_step
    method.after_step = lambda policy: (calls.append(1), after_step(policy))[1]  # type: ignore[method-assign,assign,func-returns-value]
    run.advance()
    assert len(calls) == 2 * 4  # epochs x minibatches


def test_the_learning_rate_falls_over_each_game_and_adam_starts_anew(make: Make) -> None:
    run = make(tiny())
    learner, rates = run.algorithm.learner, []
    for update in range(2 * UPDATES):
        if update == UPDATES:
            assert learner.optimizer.state  # of the first game, until the second begins
        row = run.advance()
        rates.append(learner.optimizer.param_groups[0]["lr"])
        assert row["train/lr"] == rates[-1]  # of the update that was made, not the next one
        steps = {int(s["step"]) for s in learner.optimizer.state.values()}
        assert steps == {8 * (update % UPDATES + 1)}
    assert rates == pytest.approx([0.001 * (1 - j / UPDATES) for j in range(UPDATES)] * 2)


def test_an_epoch_is_a_permutation_of_the_rollout(make: Make) -> None:
    run = make(tiny())
    learner, seen = run.algorithm.learner, []
    loss = learner.compute_loss_for_module

    def spy(*, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        seen.append(batch["advantages"].clone())
        found: torch.Tensor = loss(batch=batch, **kwargs)
        return found

    learner.compute_loss_for_module = spy
    run.advance()
    raw = run.algorithm.rollouts[0].arrays["advantages"]
    wanted = normalised(torch.from_numpy(raw)).sort().values
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert torch.equal(first.sort().values, wanted)
    assert torch.equal(second.sort().values, wanted)
    assert not torch.equal(first, second)
    assert not torch.equal(first, normalised(torch.from_numpy(raw)))  # the first one too


def test_what_was_played_has_the_probabilities_that_the_learner_computes(make: Make) -> None:
    """Equal weights make every ratio 1, so the first surrogate is -mean(A) = 0."""
    run = make(tiny())
    learner, first = run.algorithm.learner, []
    loss = learner.compute_loss_for_module

    def spy(*, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        if not first:
            with torch.no_grad():
                arrays = run.algorithm.rollouts[0].arrays
                obs = torch.from_numpy(arrays["obs"])
                logits, values = learner.policy.heads(learner.policy.features(obs), 0)
                chosen = torch.log_softmax(logits, 1)[range(len(obs)), arrays["actions"]]
                first.append((chosen - torch.from_numpy(arrays["log_probs"])).abs().max())
                first.append((values - torch.from_numpy(arrays["values"])).abs().max())
        found: torch.Tensor = loss(batch=batch, **kwargs)
        return found

    learner.compute_loss_for_module = spy
    run.advance()
    assert max(first) < 1e-5


def _played(run: SequenceRun) -> list[dict[str, torch.Tensor]]:
    """Weights of the runners after a rollout."""
    run.algorithm._collect()
    remote = run.algorithm.config.num_env_runners
    found: list[dict[str, torch.Tensor]] = run.algorithm.env_runner_group.foreach_env_runner(
        lambda r: r.module.state_dict(), local_env_runner=not remote
    )
    assert len(found) == max(1, remote)
    assert all(name.startswith("policy.") for names in found for name in names)
    return [{k.removeprefix("policy."): v for k, v in weights.items()} for weights in found]


def _check_weights(run: SequenceRun) -> None:
    algorithm = run.algorithm
    run.advance()
    assert all(same(weights, state(run)) for weights in _played(run))
    for _ in range(2):  # no update, and twice in a row
        with torch.no_grad():
            algorithm.learner.policy.actors[0].bias += 1  # type: ignore[operator]
        algorithm.changed()
    assert all(same(weights, state(run)) for weights in _played(run))
    before = state(run)
    algorithm.end_game(run.random.method)  # BLIP rounds
    assert not same(before, state(run), "trunk.")
    assert all(same(weights, state(run)) for weights in _played(run))


def test_the_runner_has_the_learners_weights_whatever_changed_them(make: Make) -> None:
    _check_weights(make(tiny("blip")))


def test_runners_in_processes_of_their_own(make: Make) -> None:
    """One run for all of it: processes take long to start."""
    local, remote = make(tiny("blip")), make(tiny("blip"), 2)
    assert same(state(local), state(remote))  # initial weights depend on the seed alone
    job = Job(0, (11, 12, 13))
    for run in (local, remote):
        run.algorithm.changed()
    wanted = [local.algorithm.scores([job])[job] for _ in range(2)]
    parts = remote.algorithm.split(job, 1)
    assert [part.seeds for part in parts] == [(11, 13), (12,)]
    scores = remote.algorithm.scores(parts)
    spread = dict(zip((11, 13, 12), scores[parts[0]] + scores[parts[1]], strict=True))
    assert wanted[0] == wanted[1] == [spread[seed] for seed in (11, 12, 13)]
    _check_weights(remote)
    assert [rollout.worker for rollout in remote.algorithm.rollouts] == [1, 2]
    ends = [rollout.arrays["obs"].reshape(16, 2, -1)[-1] for rollout in remote.algorithm.rollouts]
    assert len(np.unique(np.concatenate(ends), axis=0)) == 4  # no two play the same


def test_a_run_stopped_at_the_end_of_a_game_goes_on_to_the_last_bit(make: Make) -> None:
    whole = make(tiny("blip"))
    saved = None
    while not whole.done:
        if whole.advance()["at_task_end"] and saved is None:
            saved = whole.state_dict()
            torch.save(saved, io.BytesIO())  # can be written
            saved = _copied(saved)
    assert saved is not None
    resumed = make(tiny("blip"))
    resumed.load_state_dict(saved)
    assert resumed.last_row["tasks_done"] == 1
    rest(resumed)
    assert same(state(whole), state(resumed))
    assert whole.scores.test.tolist()[1] == resumed.scores.test.tolist()[1]
    assert whole.exact
    assert resumed.exact
    methods = [run.algorithm.learner.method.state_dict() for run in (whole, resumed)]
    assert same(*methods)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return value


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right or (left != left and right != right))  # both NaN


def test_a_run_stopped_inside_a_game_keeps_its_place(make: Make) -> None:
    whole = make(tiny("online_ewc"))
    for _ in range(UPDATES + 1):
        whole.advance()
    saved = _copied(whole.state_dict())
    resumed = make(tiny("online_ewc"))
    resumed.load_state_dict(saved)
    assert same(state(whole), state(resumed))
    learner = resumed.algorithm.learner
    assert (resumed.game, resumed.update, resumed.progress) == (1, 1, 4 * 256)
    row = resumed.advance()
    assert whole.exact
    assert not resumed.exact, "games that were in progress have begun anew"
    later = make(tiny("online_ewc"))
    later.load_state_dict(_copied(resumed.state_dict()))
    assert not later.exact, "and stay so"
    assert (row["phase"], row["epoch"]) == ("KungFuMaster", 1)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * (1 - 1 / UPDATES))
    assert {int(s["step"]) for s in learner.optimizer.state.values()} == {16}
    assert resumed.algorithm.env_runner_group.local_env_runner.env.game == "KungFuMaster"


@pytest.mark.parametrize("method, updates", [("blip", UPDATES), ("scratch", UPDATES + 1)])
def test_everything_comes_back_from_a_checkpoint(make: Make, method: str, updates: int) -> None:
    """What is read at the end of a game and inside one, and written again, is the same."""
    evaluation = {"episodes": 1, "max_frames": 400, "every": 2, "zero_shot": True}
    config = tiny(method, benchmark={"evaluation": evaluation | {"validation_episodes": 1}})
    run = make(config)
    for _ in range(updates):
        run.advance()
    run.recent.append(3.0)  # no game ends in so few steps
    run.scores.training["Boxing"].append([256, 3.0])
    saved = _copied(run.state_dict())
    resumed = make(config)
    torch.rand(3)  # the process's generator has moved on
    resumed.load_state_dict(saved)
    again = resumed.state_dict()
    assert bool(saved["histograms"]) == (method == "blip")
    assert saved["costs"]["measured"]
    assert saved.keys() == again.keys()
    for name in saved:
        assert _equal(saved[name], again[name]), name


def test_the_policy_of_a_cut_sequence_has_the_heads_of_its_games(make: Make) -> None:
    run = make(tiny(tasks=1))
    rest(run)
    found = run.keepsake()
    assert (found["games"], found["num_actions"], found["game"]) == (["Boxing"], [18], 0)
    assert len(found["scores"]["score"]) == 1


def test_runners_that_cannot_share_the_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 runners cannot share 4 envs"):
        SequenceRun(tiny(), "cpu", 3)


def test_a_checkpoint_of_other_games_or_heads_is_refused_in_one_line(make: Make) -> None:
    run = make(tiny())
    saved = run.state_dict()
    other = make(tiny(benchmark={"games": ["Boxing", "Krull"]}))
    with pytest.raises(ValueError, match=r"games Boxing, KungFuMaster, the run of Boxing, Krull$"):
        other.load_state_dict(saved)
    full = make(tiny(benchmark={"full_action_space": True}))
    with pytest.raises(
        ValueError, match=r"heads for \[18, 14\] actions, the games need \[18, 18\]"
    ):
        full.load_state_dict(saved)
    with pytest.raises(ValueError, match="another configuration"):
        make(tiny(seed=1)).load_state_dict(saved)


def test_a_trial_that_plays_itself_has_the_threads_of_its_cpus(make: Make) -> None:
    before = torch.get_num_threads()
    try:
        run = make(tiny(threads=2))
        run.advance()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_seed_has_other_initial_weights(make: Make) -> None:
    assert not same(state(make(tiny())), state(make(tiny(seed=1))), "trunk.")


def test_a_runner_that_fails_says_why(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tiny())
    run.advance()
    runner = run.algorithm.env_runner_group.local_env_runner
    monkeypatch.setattr(runner.policy, "act", lambda *_: (torch.full((4,), 18),) * 3)
    with pytest.raises(RuntimeError, match="action 18 of environment 0 is not in 0 to 17"):
        run.advance()


def test_no_runner_left_ends_the_trial_to_be_retried(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tiny())
    monkeypatch.setattr("raycl.rl.algorithm.PATIENCE_S", 0.5)
    monkeypatch.setattr("raycl.rl.algorithm.PAUSE_S", 0.1)
    monkeypatch.setattr(run.algorithm.env_runner_group, "foreach_env_runner", lambda *_, **__: [])
    monkeypatch.setattr(run.algorithm, "restore_env_runners", lambda _: [])
    with pytest.raises(RunnersLostError, match="no env runner"):
        run.advance()


class Group:
    """Two env runners in name; the first one hangs."""

    def __init__(self) -> None:
        self._worker_manager = self
        self.lost: set[int] = set()
        self.asked: list[list[int]] = []
        self.cleared = False

    def healthy_actor_ids(self) -> list[int]:
        return [worker for worker in (1, 2) if worker not in self.lost]

    healthy_env_runner_ids = healthy_actor_ids

    def actors(self) -> dict[int, str]:
        return {1: "first", 2: "second"}

    def set_actor_state(self, worker: int, healthy: bool) -> None:
        self.lost.add(worker)

    def foreach_env_runner(self, _: Any, *, remote_worker_ids: list[int], **__: Any) -> list[Any]:
        self.asked.append(remote_worker_ids)
        return [(SimpleNamespace(worker=2), "")] if 2 in remote_worker_ids else []

    def clear(self) -> None:
        self.cleared = True

    def stop(self) -> None:
        assert self.cleared, "RLlib would ask a runner that hangs, and wait for ever"


def of_group(group: Group) -> SequencePPO:
    """An algorithm that has nothing but its runners."""
    found = SequencePPO.__new__(SequencePPO)
    found.config = SimpleNamespace(num_env_runners=2)
    found.env_runner_group = group
    found.game = found.update = 0
    found._session, found._weights, found._logdir = "", Weights(0, {}), "nowhere"
    return found


def test_a_runner_that_hangs_is_started_anew_and_another_plays_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "raycl.rl.algorithm.ray.kill", lambda actor, no_restart: killed.append((actor, no_restart))
    )
    group = Group()
    assert [rollout.worker for rollout in of_group(group)._collect()] == [2, 2]
    assert group.asked == [[1, 2], [2]]
    assert killed == [("first", False)]
    assert group.lost == {1}, "RLlib takes it back when it answers"


def test_the_end_waits_for_no_runner_that_hangs() -> None:
    group = Group()
    of_group(group).cleanup()
    assert group.cleared


@pytest.mark.slow
def test_runners_that_hang_in_processes_of_their_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in mid-game, which comes back; all of them at the end, when the run is closed."""
    run = make(tiny(), 2)
    run.advance()
    group = run.algorithm.env_runner_group
    monkeypatch.setattr("raycl.rl.algorithm.PATIENCE_S", 20.0)
    sleep = time.sleep
    group._worker_manager.foreach_actor(
        lambda _: sleep(3600), remote_actor_ids=[1], timeout_seconds=0
    )
    run.advance()
    assert [rollout.worker for rollout in run.algorithm.rollouts] == [2, 2]
    assert not run.exact
    while len(group.healthy_env_runner_ids()) < 2:
        run.algorithm.restore_env_runners(group)
    run.advance()
    assert [rollout.worker for rollout in run.algorithm.rollouts] == [1, 2]
    group._worker_manager.foreach_actor(lambda _: sleep(3600), timeout_seconds=0)
    run.close()


def test_time_spent_on_long_games_is_no_silence(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that is lost late in its game is waited for like any other."""
    run = make(tiny())
    monkeypatch.setattr("raycl.rl.algorithm.PATIENCE_S", 0.3)
    monkeypatch.setattr("raycl.rl.algorithm.PAUSE_S", 0.01)
    monkeypatch.setattr(run.algorithm, "restore_env_runners", lambda _: [])
    answers = [0, 0, 1]

    def play(ids: list[int]) -> int:
        time.sleep(0.4 if len(answers) == 3 else 0)
        return answers.pop(0)

    run.algorithm._until(lambda: not answers, play, endless=True)
    answers[:] = [0, 0, 1]
    with pytest.raises(RunnersLostError):
        run.algorithm._until(lambda: not answers, play)


def test_a_lost_device_is_told_as_what_it_is(make: Make) -> None:
    run = make(tiny())

    def gone(_: Any) -> None:
        raise torch.AcceleratorError("the context is gone")

    with pytest.raises(torch.AcceleratorError):
        run.algorithm._ask(gone, [0], None)


def test_a_loss_that_is_no_number_is_an_error(make: Make) -> None:
    run = make(tiny())
    with torch.no_grad():
        run.algorithm.learner.policy.critics[0].bias.fill_(math.nan)  # type: ignore[operator,union-attr]
    with pytest.raises(TrainingError, match=r"became nan on Boxing, update 1: try a lower lr"):
        run.advance()


def test_a_cut_game_counts_on_what_was_still_to_come(make: Make) -> None:
    """A cut adds gamma V(last observation) to the reward: A = r + gamma V' - V at that step."""
    run = make(tiny())
    run.advance()
    runner = run.algorithm.env_runner_group.local_env_runner
    env, cut = runner.env, np.array([True, False, False, False])
    step, final = env.step, np.full((4, 4, 84, 84), 255, np.uint8)

    def cutting(actions: Any) -> Any:
        obs, reward, terminated, _, _ = step(actions)
        return obs, reward, terminated, cut.copy(), {"final_obs": final}

    env.step = cutting
    arrays = run.algorithm._collect()[0].arrays
    env.step = step
    with torch.no_grad():
        policy = runner.policy
        _, value = policy.heads(policy.features(torch.from_numpy(final[:1])), 0)
    gains = arrays["advantages"].reshape(16, 4)[:, 0]
    values = arrays["values"].reshape(16, 4)[:, 0]
    rewards = gains + values - 0.99 * float(value)
    assert np.allclose(rewards, rewards.round(), atol=1e-4)  # clipped: -1, 0 or 1


def test_nothing_is_left_behind(make: Make) -> None:
    folder = Path("~/ray_results").expanduser()
    before = set(folder.glob("*")) if folder.exists() else set()
    run = make(tiny())
    logs = Path(run.algorithm.logdir)
    assert logs.is_dir()
    run.close()
    assert not logs.exists()
    assert (set(folder.glob("*")) if folder.exists() else set()) == before
