"""One RLlib algorithm for a whole sequence of games.

Each order tells a runner everything (weights, game, session), so a runner that was restarted, or
that missed a synchronisation, is back on the right game with the right weights at its next
rollout. RLlib's own synchronisation of weights is not used: it ignores changes that no update
made, and drops a message when two follow each other.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.algorithms.ppo.ppo import PPOConfig as RLlibConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)

from raycl.rl.config import SequenceConfig
from raycl.rl.env_runner import ArrayEnvRunner, Job, Order, Rollout, Weights
from raycl.rl.learner import SequenceLearner
from raycl.rl.module import TaskModule

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_S = 180.0
"""Seconds that a rollout may take: an env runner that needs longer is started anew, and a trial
gives up, to be retried, if none has answered for so long. Games played for scores have no limit."""
PAUSE_S = 1.0
MAX_ACTIONS = 18
"""Full action set, declared for all games, so that RLlib never rebuilds anything."""


class RunnersLostError(RayError):
    """No env runner is left, or one has not started: the trial has to start again elsewhere."""


def algorithm_config(
    trial: SequenceConfig,
    *,
    updates: int,
    input_shape: tuple[int, int, int],
    init_seed: int,
    data_seed: int,
    env_runners: int,
    gpus: float,
) -> RLlibConfig:
    """Make RLlib's configuration of a trial.

    Args:
        trial: The trial.
        updates: Updates per game.
        input_shape: Shape of an observation.
        init_seed: Seed of the initial weights.
        data_seed: Seed of environments and sampled actions.
        env_runners: Processes that play; 0: the trial's own.
        gpus: GPUs of the learner, which lives in the trial's process.
    """
    plain, train = trial.model_dump(mode="json"), trial.train
    threads = 1 if env_runners else trial.threads  # a runner has one CPU
    spec = RLModuleSpec(module_class=TaskModule, model_config={"config": plain, "init": init_seed})
    observations = gym.spaces.Box(0, 255, input_shape, np.uint8)
    actions: gym.Space[np.int64] = gym.spaces.Discrete(MAX_ACTIONS)
    config: RLlibConfig = (
        RLlibConfig(algo_class=SequencePPO)
        .environment("raycl", observation_space=observations, action_space=actions)
        .environment(env_config={"config": plain, "seed": data_seed, "threads": threads})
        .env_runners(
            env_runner_cls=ArrayEnvRunner,
            num_env_runners=env_runners,
            num_envs_per_env_runner=train.envs // max(1, env_runners),
            create_local_env_runner=env_runners == 0,
            rollout_fragment_length=train.rollout,
            sample_timeout_s=PATIENCE_S,
        )
        .learners(
            learner_class=SequenceLearner,
            num_learners=0,
            num_gpus_per_learner=gpus,
            learner_config_dict={"config": plain, "updates": updates},
        )
        .rl_module(rl_module_spec=spec)
        .training(
            lr=train.lr,
            train_batch_size_per_learner=train.batch_size,
            minibatch_size=train.batch_size // train.minibatches,
            num_epochs=train.epochs,
            use_kl_loss=False,
        )
        .fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=5,
            max_num_env_runner_restarts=1000,
        )
        .reporting(
            min_time_s_per_iteration=0,
            min_sample_timesteps_per_iteration=0,
            min_train_timesteps_per_iteration=0,
        )
        .debugging(log_level="ERROR")
    )
    config._dont_auto_sync_env_runner_states = True  # there are none: orders say everything
    return config


class SequencePPO(PPO):  # type: ignore[misc]
    """PPO whose runners and learner change the game together.

    Attributes:
        game: Index of the current game.
        update: Updates made on it.
        rollouts: Rollouts of the last update, in the order of the runners.
        seconds: Time of the last update by its part, ``sample`` and ``learn``.
        disturbed: Whether a runner was lost, or began, inside a game.
    """

    def _setup_logdir(self) -> None:
        """Give Tune the folder it insists on; its own choice would litter the home folder."""
        self._logdir = tempfile.mkdtemp(prefix="raycl-")

    def setup(self, config: RLlibConfig) -> None:
        """RLlib's hook: runners and learner.

        Raises:
            RunnersLostError: A runner has not started, which RLlib only logs.
        """
        try:
            super().setup(config)
        except IndexError:  # RLlib has asked the first runner for its spaces
            self._check_runners()
            raise
        self._check_runners()
        self.game = self.update = 0
        self.rollouts: list[Rollout] = []
        self._newest: NDArray[np.uint8] | None = None
        self.seconds = {"sample": 0.0, "learn": 0.0}
        self.disturbed = False
        self._version = 0
        self._session = ""
        self._weights: Weights | None = None
        local = self.env_runner_group.local_env_runner
        if local is not None and self.learner.device.type == "cuda":
            local._device = self.learner.device
            local.module.to(local._device)

    def cleanup(self) -> None:
        """RLlib's hook: end all processes, also runners that hang, which RLlib would wait for."""
        self.env_runner_group._worker_manager.clear()
        super().cleanup()
        shutil.rmtree(self._logdir, ignore_errors=True)

    @property
    def learner(self) -> SequenceLearner:
        """The learner, which lives in this process."""
        found: SequenceLearner = self.learner_group._learner
        return found

    def changed(self) -> None:
        """Note that the weights were changed, so that runners load them again."""
        self._version += 1
        self._weights = None

    def weights(self) -> Weights:
        """The weights as they are now, for an order."""
        if self._weights is None:
            state = self.learner.policy.state_dict()
            copy = {name: value.detach().cpu() for name, value in state.items()}
            remote = self.config.num_env_runners > 0
            self._weights = Weights(self._version, ray.put(copy) if remote else copy)
        return self._weights

    # ------------------------------------------------------------------ training

    def begin_game(self, game: int, update: int = 0) -> None:
        """Start a game, or go on with it after a restore; see ``SequenceLearner.begin_game``."""
        self.game, self.update = game, update
        self._session = uuid.uuid4().hex
        self.learner.begin_game(game, update)
        self.changed()

    def training_step(self) -> None:
        """RLlib's hook: one rollout of all environments and one update."""
        started = time.perf_counter()
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            self.rollouts, self._newest = self._collect(), None
        runners = {rollout.worker for rollout in self.rollouts}
        if len(runners) < len(self.rollouts) or any(one.anew for one in self.rollouts):
            self.disturbed = True
        sampled = time.perf_counter()
        names = self.rollouts[0].arrays
        columns = {
            name: np.concatenate([rollout.arrays[name] for rollout in self.rollouts])
            if len(self.rollouts) > 1
            else self.rollouts[0].arrays[name]
            for name in names
        }
        count = len(columns["actions"])
        self.metrics.log_value(
            (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), count, reduce="lifetime_sum"
        )
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=count)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            self.learner_group.update(batch=batch)
        self.update += 1
        self.changed()
        self.seconds = {"sample": sampled - started, "learn": time.perf_counter() - sampled}

    @property
    def observations(self) -> NDArray[np.uint8]:
        """The newest observations, uint8 (n, C, H, W): those after each step of the last rollout.

        BLIP's code, too, has moved on by one step when it looks at them at a game's end.
        """
        if self._newest is None:
            pairs = [(one.arrays["obs"][len(one.last) :], one.last) for one in self.rollouts]
            self._newest = np.concatenate([part for pair in pairs for part in pair])
        return self._newest

    @observations.setter
    def observations(self, restored: NDArray[np.uint8]) -> None:
        self._newest = restored

    def end_game(self, generator: torch.Generator) -> None:
        """Hand the method the last rollout, collected just before the last update."""
        self.learner.end_game(self.observations, generator)
        self.changed()

    def split(self, job: Job, jobs: int) -> list[Job]:
        """Split a job into parts, so that ``jobs`` of its kind keep all runners busy."""
        parts = min(len(job.seeds), -(-max(1, self.config.num_env_runners) // jobs))
        return [Job(job.game, job.seeds[i::parts]) for i in range(parts)]

    def scores(
        self, jobs: Sequence[Job], state: Mapping[str, torch.Tensor] | None = None
    ) -> dict[Job, list[float]]:
        """Play whole games for their raw scores; what one runner leaves undone another does.

        Args:
            jobs: Games to play.
            state: State of the policy; by default its current one.
        """
        done: dict[Job, list[float]] = {}
        weights = self.weights()
        if state is not None:
            self.changed()  # a version of its own
            weights = Weights(self._version, {k: v.cpu() for k, v in state.items()})
            self.changed()

        def play(ids: list[int]) -> int:
            left = [job for job in jobs if job not in done]
            share = {worker: left[i :: len(ids)] for i, worker in enumerate(ids)}
            found = self._ask(lambda r: r.evaluate(weights, share[r.worker_index]), ids, None)
            done.update(pair for part in found for pair in part)
            return sum(map(len, found))

        self._until(lambda: len(done) == len(jobs), play, endless=True)
        return done

    # ------------------------------------------------------------------ runners

    def _check_runners(self) -> None:
        """Refuse to begin without a runner: one whose constructor has failed never comes back.

        Raises:
            RunnersLostError: With the last line of what each of them said.
        """
        group = self.env_runner_group
        ids = range(1, self.config.num_env_runners + 1)
        lost = sorted({*ids} - {*group.healthy_env_runner_ids()})
        if not lost:
            return
        answers = group._worker_manager.foreach_actor(
            "assert_healthy", healthy_only=False, remote_actor_ids=lost, timeout_seconds=PAUSE_S
        )
        said = [
            str(answer.get()).strip().rpartition("\n")[2] for answer in answers if not answer.ok
        ]
        why = "; ".join(dict.fromkeys(said)) or "lost meanwhile"
        names = ", ".join(map(str, lost))
        raise RunnersLostError(f"env runners that did not start: {names} of {len(ids)}: {why}")

    def _collect(self) -> list[Rollout]:
        """Collect a whole batch; the share of lost runners is played by the others."""
        order = Order(self.weights(), self.game, self.update, self._session)
        wanted = max(1, self.config.num_env_runners)
        found: list[Rollout] = []

        def play(ids: list[int]) -> int:
            some = ids[: wanted - len(found)]
            parts = self._ask(lambda r: r.collect(order), some, PATIENCE_S)
            found.extend(sorted(parts, key=lambda part: part.worker))
            self._restart({*some} - {part.worker for part in parts})
            return len(parts)

        self._until(lambda: len(found) == wanted, play)
        return found

    def _restart(self, silent: set[int]) -> None:
        """End runners that hang, which RLlib calls healthy; Ray starts them again, as lost ones."""
        manager = self.env_runner_group._worker_manager
        for worker in silent.intersection(manager.healthy_actor_ids()):
            log.warning("env runner %d has not answered: it is started anew", worker)
            ray.kill(manager.actors()[worker], no_restart=False)
            manager.set_actor_state(worker, healthy=False)

    def _until(
        self, done: Callable[[], bool], play: Callable[[list[int]], int], endless: bool = False
    ) -> None:
        """Let runners play until everything is done; restarted runners join in.

        Args:
            done: Whether everything is done.
            play: Lets some runners play, and tells how much of it is done now.
            endless: It waits however long they take; so that is no time without an answer.

        Raises:
            RunnersLostError: None has answered for ``PATIENCE_S``.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            remote = self.config.num_env_runners > 0
            ids = self.env_runner_group.healthy_env_runner_ids() if remote else [0]
            asked = time.monotonic()
            if ids and play(ids):
                deadline = time.monotonic() + PATIENCE_S
                continue
            if endless:
                deadline += time.monotonic() - asked
            if time.monotonic() > deadline:
                raise RunnersLostError(f"no env runner has answered for {PATIENCE_S:.0f} s")
            time.sleep(PAUSE_S)
            self.restore_env_runners(self.env_runner_group)

    def _ask(
        self, function: Callable[[ArrayEnvRunner], T], ids: list[int], timeout: float | None
    ) -> list[T]:
        """Ask the runners ``ids``, and return the answers of those that are not lost.

        Raises:
            RuntimeError: The function failed. RLlib alone would take it for a lost runner.
        """

        def guarded(runner: ArrayEnvRunner) -> tuple[T | None, str]:
            try:
                return function(runner), ""
            except (RayError, torch.AcceleratorError):
                raise  # a process or a device is gone, and the trial is tried again elsewhere
            except Exception:  # noqa: BLE001  (whatever it is, the driver has to know)
                return None, traceback.format_exc()

        local = self.config.num_env_runners == 0
        answers = self.env_runner_group.foreach_env_runner(
            guarded,
            local_env_runner=local,
            remote_worker_ids=None if local else ids,
            timeout_seconds=timeout,
        )
        failure = next((failure for _, failure in answers if failure), "")
        if failure:
            raise RuntimeError(f"an env runner failed: {failure}")
        return [answer for answer, _ in answers]
