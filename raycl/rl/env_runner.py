"""The env runner, which plays games: rollouts as arrays, and whole games for scores.

RLlib's own runner builds an episode object from every step. Here a rollout is a few arrays, filled
in place, which halves the time that is not the emulator's or the network's.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from raycl.nn.precision import round_weights
from raycl.rl.benchmarks.base import build_games
from raycl.rl.config import SequenceConfig
from raycl.rl.player import Player
from raycl.rl.policy import Policy
from raycl.rl.ppo import advantages
from raycl.rl.seeds import training_seeds

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Weights:
    """A policy's state with its version.

    Attributes:
        version: Increases whenever the weights change.
        state: ``Policy.state_dict()`` on the CPU, or a reference to it in the object store.
    """

    version: int
    state: Any

    def load(self) -> dict[str, torch.Tensor]:
        """The state itself, fetched if it is in the object store."""
        state = self.state
        found: dict[str, torch.Tensor] = (
            ray.get(state) if isinstance(state, ray.ObjectRef) else state
        )
        return found


@dataclass(frozen=True)
class Order:
    """An order to a runner; it is complete, so the runner may be new, late or restarted.

    Attributes:
        weights: Weights of the policy.
        game: Index in the sequence.
        update: Updates made on this game so far; seeds a runner that has to start the game anew.
        session: Distinct for each start of a game and each restore; a runner that sees a new one
            starts the game anew.
    """

    weights: Weights
    game: int
    update: int
    session: str


@dataclass(frozen=True)
class Rollout:
    """A rollout that a runner collected.

    Attributes:
        worker: The runner's index.
        arrays: ``obs`` uint8 (T N, C, H, W), ``actions`` int64, ``log_probs``, ``values``,
            ``advantages`` and ``returns`` float32, each (T N,).
        last: The observations after the last step, uint8 (N, C, H, W).
        scores: Raw scores of the games that ended meanwhile.
        lengths: Agent steps of those games.
        anew: Whether the runner began with it inside a game that others, or another process, have
            played to here.
    """

    worker: int
    arrays: Arrays
    last: NDArray[np.uint8]
    scores: list[float]
    lengths: list[int]
    anew: bool


@dataclass(frozen=True)
class Job:
    """Games to be played for a score.

    Attributes:
        game: Index in the sequence.
        seeds: One game for each.
    """

    game: int
    seeds: tuple[int, ...]


class ArrayEnvRunner(SingleAgentEnvRunner):  # type: ignore[misc]
    """Some of the environments of a trial, side by side.

    ``config.env_config`` is ``{"config": a SequenceConfig as JSON, "seed": the seed of the data,
    "threads": of the emulator}``.
    """

    def make_env(self) -> None:
        """RLlib's hook: the environments, not reset yet."""
        context = self.config.env_config
        torch.set_num_threads(context["threads"])
        self.trial = SequenceConfig.model_validate(context["config"])
        self.benchmark = build_games(self.trial.benchmark)
        self.num_envs = self.config.num_envs_per_env_runner
        self.env: Any = self.benchmark.make(
            self.num_envs, training=True, num_threads=context["threads"]
        )
        self._needs_initial_reset = True
        self._at = ""
        self._versions: dict[Policy, int] = {}
        self._rounded: Policy | None = None
        self._obs: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._generator = torch.Generator()

    @property
    def policy(self) -> Policy:
        """The policy that is scored."""
        found: Policy = self.module.policy
        return found

    @property
    def acting(self) -> Policy:
        """The policy that plays for training: with rounded weights where it also learns so."""
        if self.trial.train.precision == "float32":
            return self.policy
        if self._rounded is None:
            self._rounded = copy.deepcopy(self.policy)
            round_weights(self._rounded.trunk)
        return self._rounded

    def collect(self, order: Order) -> Rollout:
        """Play one rollout of the current game, and compute the advantages."""
        self._load(order.weights, self.acting)
        anew = self._at != order.session and order.update > 0
        if self._at != order.session:
            self._start(order)
        steps, envs = self.trial.train.rollout, self.num_envs
        if len(self._buffer) != steps:
            self._buffer = np.empty((steps, envs, *self.benchmark.input_shape), np.uint8)
        actions = np.empty((steps, envs), np.int64)
        log_probs, rewards, continues = (np.empty((steps, envs), np.float32) for _ in range(3))
        values = np.empty((steps + 1, envs), np.float32)
        with torch.inference_mode():
            for t in range(steps):
                self._buffer[t] = self._obs
                a, p, v = self._act(order.game)
                actions[t], log_probs[t], values[t] = a, p, v
                obs, reward, terminated, truncated, info = self.env.step(a)
                if truncated.any():  # cut short, not over: what was still to come counts
                    cut = truncated & ~terminated
                    ahead = self._values(info["final_obs"][cut], order.game)
                    reward[cut] += self.trial.train.gamma * ahead
                rewards[t], continues[t] = reward, ~(terminated | truncated)
                self._obs = obs
            values[steps] = self._values(self._obs, order.game)
        train = self.trial.train
        gains = advantages(rewards, values, continues, train.gamma, train.gae_lambda)
        arrays = {
            "obs": self._buffer.reshape(-1, *self.benchmark.input_shape),
            "actions": actions.ravel(),
            "log_probs": log_probs.ravel(),
            "values": values[:-1].ravel(),
            "advantages": gains.ravel(),
            "returns": (gains + values[:-1]).ravel(),
        }
        games = self.env.finished_games()
        scores, lengths = [game.score for game in games], [game.steps for game in games]
        return Rollout(self.worker_index, arrays, self._obs, scores, lengths, anew)

    def evaluate(self, weights: Weights, jobs: list[Job]) -> list[tuple[Job, list[float]]]:
        """Play full games, one for each seed, and return their raw scores."""
        self._load(weights, self.policy)
        return [(job, self._scores(job)) for job in jobs]

    # ------------------------------------------------------------------ parts

    def _load(self, weights: Weights, policy: Policy) -> None:
        if self._versions.get(policy) != weights.version:
            policy.load_state_dict(weights.load())
            self._versions[policy] = weights.version

    def _start(self, order: Order) -> None:
        """Start the game from its first frame, on seeds that no other start of it has."""
        self.env.set_task(order.game)
        first = max(0, self.worker_index - 1) * self.num_envs
        data_seed, count = self.config.env_config["seed"], first + self.num_envs
        seeds = training_seeds(data_seed, order.game, order.update, count)[first:]
        self._obs, _ = self.env.reset(seed=list(seeds))
        self._generator = torch.Generator(self._device).manual_seed(seeds[0])
        self.env.finished_games()
        self._at = order.session

    def _tensor(self, obs: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(obs).to(self._device)

    def _act(self, game: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        obs, precision = self._tensor(self._obs), self.trial.train.precision
        a, p, v = self.acting.act(obs, game, self._generator, precision)
        return a.cpu().numpy(), p.cpu().numpy(), v.cpu().numpy()

    def _values(self, obs: NDArray[np.uint8], game: int) -> NDArray[Any]:
        """Values (B,) of observations; B may be 0."""
        features = self.acting.features(self._tensor(obs), self.trial.train.precision)
        _, values = self.acting.heads(features, game)
        found: NDArray[Any] = values.cpu().numpy()
        return found

    def _scores(self, job: Job) -> list[float]:
        """Play each game to its end, in an environment of its own, which then rests."""
        envs: list[Any] = [self.benchmark.make(1, training=False) for _ in job.seeds]
        threads = self.config.env_config["threads"]
        obs = np.empty((len(envs), *self.benchmark.input_shape), np.uint8)
        scores: dict[int, float] = {}
        player = Player(self.policy, self.benchmark.config.evaluation.actions, job.seeds)

        def begin(i: int, seed: int) -> None:
            envs[i].set_task(job.game)
            obs[i : i + 1], _ = envs[i].reset(seed=[seed])

        def step(i: int, action: NDArray[np.int64]) -> None:
            obs[i : i + 1], *_ = envs[i].step(action)
            for game in envs[i].finished_games():
                scores[i] = game.score

        try:
            with ThreadPoolExecutor(threads) as pool:
                each = pool.map if threads > 1 else map
                list(each(begin, range(len(envs)), job.seeds))
                while left := [i for i in range(len(envs)) if i not in scores]:
                    with torch.inference_mode():
                        chosen = player.actions(self._tensor(obs[left]), job.game, left)
                    list(each(step, left, chosen.cpu().numpy()[:, None]))
        finally:
            for env in envs:
                env.close()
        return [scores[i] for i in range(len(envs))]
