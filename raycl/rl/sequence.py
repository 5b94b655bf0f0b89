"""One trial on a sequence of games: the twin of ``raycl.training.run.Run``, stepped the same way.

``advance`` makes some updates of PPO, moves on to the next game, and fills a row of ``R`` at a
game's end. Needs Ray: the games may be played in processes of their own.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from raycl.rl.algorithm import SequencePPO, algorithm_config
from raycl.rl.benchmarks.base import build_games
from raycl.rl.config import SequenceConfig
from raycl.rl.env_runner import Job
from raycl.rl.methods.base import build_method, find_method
from raycl.rl.policy import build_policy, plasticity
from raycl.rl.scores import Scores
from raycl.rl.seeds import EVALUATION, VALIDATION, game_seeds
from raycl.trial.costs import Costs
from raycl.trial.randomness import Randomness, Seeds
from raycl.trial.run import Row, Shelf, TrainingError, add_histograms
from raycl.trial.sharing import first_method

ROWS_PER_GAME = 200
"""Number of rows in which a game's training is reported, if it has as many updates."""
RECENT = 100
"""Number of training games whose mean is the reported return."""


class SequenceRun:
    """A method on a sequence of games, with one seed.

    Args:
        config: The finished trial configuration.
        device: Device of the learner: ``"cpu"`` or ``"cuda"``.
        env_runners: Processes that play; 0: this one.

    Attributes:
        progress: Emulator frames trained on so far, over all games.
        trained: Called when a game has been trained, before its end.
    """

    trained: Callable[[], None]
    shelf: Shelf | None = None

    def __init__(
        self,
        config: SequenceConfig | Mapping[str, Any],
        device: str | torch.device = "cpu",
        env_runners: int = 0,
    ) -> None:
        self.config = SequenceConfig.model_validate(config)
        self.device = torch.device(device)
        self.seeds = Seeds.derive(self.config.seed, **self.config.fixed_seeds.model_dump())
        self.random = Randomness(self.seeds, self.device, self.config.threads)
        self.benchmark = build_games(self.config.benchmark)
        self.games = self.benchmark.games[: self.config.tasks]
        if self.config.train.envs % max(1, env_runners):
            raise ValueError(f"{env_runners} runners cannot share {self.config.train.envs} envs")
        frames = self.config.train.batch_size * self.benchmark.frames_per_step
        self.updates: int = self.benchmark.config.frames // frames
        if not self.updates:
            raise ValueError(f"an update takes {frames} frames, more than a game has")
        self.frames_per_update = frames
        if env_runners:  # RLlib only logs what the constructor of a runner raises
            with torch.random.fork_rng(devices=[]):
                build_policy(self.config)
        self.algorithm = SequencePPO(
            algorithm_config(
                self.config,
                updates=self.updates,
                input_shape=self.benchmark.input_shape,
                init_seed=self.seeds.init,
                data_seed=self.seeds.data,
                env_runners=env_runners,
                gpus=float(self.device.type == "cuda"),
            )
        )
        references = self.benchmark.references[: len(self.games)]
        self.scores = Scores(self.games, references, self.updates * frames)
        self.costs = Costs(self.device)
        self.histograms: dict[str, list[list[int]]] = {}
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.game = self.update = 0
        self._begun = False
        self._last: Row = {}
        self._open: Row | None = None
        self.trained = lambda: None

    # ------------------------------------------------------------------ stepping

    @property
    def done(self) -> bool:
        """Whether every game has been learnt."""
        return self.game == len(self.games)

    @property
    def exact(self) -> bool:
        """Whether no game was begun anew inside it, after a restore or for a lost runner."""
        return not self.algorithm.disturbed

    @property
    def progress(self) -> int:
        """Emulator frames trained on so far."""
        return (self.game * self.updates + self.update) * self.frames_per_update

    @property
    def last_row(self) -> Row:
        """The row ``advance`` returned last; survives a restore."""
        return dict(self._last)

    def advance(self) -> Row:
        """Make some updates; at the end of a game, also finish that.

        Returns:
            A flat row of numbers and short strings; the last one also holds ``result``.
        """
        if self.done:
            raise RuntimeError("the run is done")
        self._enter_game()
        row: Row = {"task": self.game, "phase": self.games[self.game], "updates": self.updates}
        if self._open is not None:  # a state of this very point was loaded
            row, self._open = self._open, None
        else:
            row |= self._train()
            row |= {"epoch": self.update - 1, "at_task_end": False}  # counted from 0, as epochs are
            row["progress"] = self.progress
            if self.update == self.updates:
                self._open = dict(row)
                self.trained()
                self._open = None
        if self.update == self.updates:
            row |= self._finish_game()
        else:
            every = self.benchmark.config.evaluation.every
            if every and self.update % every == 0:
                row |= self._evaluate(self.game, fill=False)
        finished = self.game == len(self.games)
        row |= {"tasks_done": self.game, "finished": finished}
        if finished:
            row["result"] = self.result()
        self._last = row
        return dict(row)

    def result(self) -> dict[str, Any]:
        """The result of the run as plain JSON: matrices, metrics, curves, cost, seeds."""
        found = self.scores.as_dict(self.benchmark.config.evaluation.episodes) | {
            "cost": self.costs.totals() | {"frames": float(self.progress)},
            "tasks": list(self.games),
            "seeds": self.seeds.as_dict(),
        }
        return found | ({"histograms": self.histograms} if self.histograms else {})

    def picture_files(self) -> dict[str, bytes]:
        """There are none: games are played again from the keepsakes when pictures are wanted."""
        return {}

    def close(self) -> None:
        """End all processes that play games."""
        self.algorithm.stop()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The state from which a run goes on: tensors and plain values only.

        The games in progress are not part of it: after a restore they start anew, so that a run
        that was stopped inside a game equals another only in distribution. At the end of a game it
        is the same to the last bit, on the same hardware.
        """
        learner = self.algorithm.learner
        return {
            "config": self.config.model_dump(mode="json"),
            "position": [self.game, self.update, self._begun],
            "policy": learner.policy.state_dict(),
            "method": learner.method.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "scores": self.scores.state_dict(),
            "recent": list(self.recent),
            "histograms": self.histograms,
            "costs": self.costs.state_dict(),
            "last": self._last,
            "random": self.random.state_dict(),
            "exact": self.exact,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, in a run that was just built from the same configuration.

        Raises:
            ValueError: The state is of another sequence, or of another configuration.
        """
        self._check(state["config"], state["policy"])
        self._load(state)

    def shared_state(self) -> dict[str, Any]:
        """See ``TrialRun``; before a game's end with the observations that the end works on."""
        state = self.state_dict()
        del state["config"]
        if self._open is None:
            return state
        state["open"] = self._open
        state["observations"] = torch.from_numpy(self.algorithm.observations)
        if self.game > 0:
            return state
        base = first_method(self.config.method, find_method)
        if base["name"] != self.config.method["name"]:
            before, policy = self.random.state_dict(), self.algorithm.learner.policy
            names = build_method(base, copy.deepcopy(policy)).state_dict().keys()
            self.random.load_state_dict(before)
            state["method"] = {k: v for k, v in state["method"].items() if k in names}
        return state

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """See ``TrialRun``."""
        own = self.algorithm.learner.method.state_dict()
        self._load({**state, "method": {**own, **state["method"]}})

    def _load(self, state: Mapping[str, Any]) -> None:
        self.game, self.update, self._begun = state["position"]
        learner = self.algorithm.learner
        learner.policy.load_state_dict(state["policy"])
        learner.method.load_state_dict(state["method"])
        learner.optimizer.load_state_dict(state["optimizer"])
        self.scores.load_state_dict(state["scores"])
        self.recent = deque(state["recent"], maxlen=RECENT)
        self.histograms = {name: list(rows) for name, rows in state["histograms"].items()}
        self.costs.load_state_dict(state["costs"])
        self._last = dict(state["last"])
        if self._begun:
            self.algorithm.begin_game(self.game, self.update)
        self.algorithm.changed()
        self._open = dict(state["open"]) if "open" in state else None
        if "observations" in state:
            self.algorithm.observations = state["observations"].numpy()
        self.algorithm.disturbed = not state.get("exact", True)
        self.random.load_state_dict(state["random"])

    def keepsake(self) -> dict[str, Any]:
        """The policy after the last finished game and its scores, from which GIFs are drawn."""
        row = self.game - 1
        found = {"score": self.scores.test, "normalised": self.scores.normalised(self.scores.test)}
        return {
            "config": self.config.model_dump(mode="json"),
            "games": list(self.games),
            "num_actions": list(self.algorithm.learner.policy.num_actions),
            "game": row,
            "policy": {k: v.cpu() for k, v in self.algorithm.learner.policy.state_dict().items()},
            "scores": {
                name: [None if math.isnan(v) else float(v) for v in matrix[row]]
                for name, matrix in found.items()
            },
        }

    def _check(self, config: Mapping[str, Any], policy: Mapping[str, torch.Tensor]) -> None:
        own = self.config.model_dump(mode="json")
        kept = build_games(config["benchmark"])
        if kept.games != self.benchmark.games:
            raise ValueError(
                f"the checkpoint is of the games {', '.join(kept.games)}, "
                f"the run of {', '.join(self.benchmark.games)}"
            )
        count = sum(name.startswith("actors.") and name.endswith(".bias") for name in policy)
        heads = [len(policy[f"actors.{i}.bias"]) for i in range(count)]
        needed = list(self.algorithm.learner.policy.num_actions)
        if heads != needed:
            raise ValueError(
                f"the checkpoint has heads for {heads} actions, the games need {needed}"
            )
        if any(config[key] != own[key] for key in own if key != "threads"):
            raise ValueError("the checkpoint is of another configuration")

    # ------------------------------------------------------------------ parts of a step

    def _enter_game(self) -> None:
        if self._begun:
            return
        if self.game == 0 and self.benchmark.config.evaluation.zero_shot:
            self.algorithm.changed()
            for game, score in self._play(range(len(self.games)), EVALUATION).items():
                self.scores.untrained[game] = score
                self.scores.evaluation[self.games[game]].append([0, score])
        self.update, self._begun = 0, True
        self.recent.clear()
        self.algorithm.begin_game(self.game)

    def _train(self) -> Row:
        """Make the updates up to the next row."""
        every = self.benchmark.config.evaluation.every or self.updates
        step = -(-self.updates // ROWS_PER_GAME)
        stops = (self.update - self.update % step + step, self.update - self.update % every + every)
        stop = min(*stops, self.updates)
        self.costs.start()
        started, first = time.perf_counter(), self.update
        sums: dict[str, float] = {}
        seconds = {"sample": 0.0, "learn": 0.0}
        lengths: list[int] = []
        while self.update < stop:
            self.algorithm.train()
            self.update += 1
            for name, value in self._means().items():
                sums[name] = sums.get(name, 0.0) + value
            for name, value in self.algorithm.seconds.items():
                seconds[name] += value
            for rollout in self.algorithm.rollouts:
                self.recent.extend(rollout.scores)
                lengths += rollout.lengths
        count = self.update - first
        steps = count * self.config.train.batch_size
        self.costs.examples += steps
        self.costs.stop()
        row: Row = {f"train/{name}": value / count for name, value in sums.items()}
        row["time/steps_per_s"] = steps / (time.perf_counter() - started)
        row |= {f"time/{name}_s": value / count for name, value in seconds.items()}
        if self.recent:
            row["train/return"] = statistics.fmean(self.recent)
            curve = self.scores.training[self.games[self.game]]
            curve.append([self.progress, row["train/return"]])
        if lengths:
            row["train/length"] = statistics.fmean(lengths)
        return row

    def _means(self) -> dict[str, float]:
        means = self.algorithm.learner.means()
        name = next((name for name, value in means.items() if not math.isfinite(value)), None)
        if name is not None:
            raise TrainingError(
                f"{name} became {means[name]} on {self.games[self.game]}, update {self.update}: "
                "try a lower lr or max_grad_norm"
            )
        return means

    def _finish_game(self) -> Row:
        learner = self.algorithm.learner
        self.costs.start()
        before = copy.deepcopy(learner.policy.state_dict())
        observations = self._observations()
        row: Row = {f"method/{k}": v for k, v in plasticity(learner.policy, observations).items()}
        self.algorithm.end_game(self.random.method)
        self.costs.stop()
        game = self.game
        self.game, self.update, self._begun = game + 1, 0, False
        row |= self._evaluate(game, fill=True)
        row |= self._consolidation_cost(game, before)
        row |= self.scores.row(game)
        row |= {f"cost/{name}": value for name, value in self._costs().items()}
        row |= {f"method/{k}": float(v) for k, v in learner.method.diagnostics().items()}
        add_histograms(self.histograms, learner.method.histograms(), self.game)
        return row | {"at_task_end": True}

    def _observations(self) -> torch.Tensor:
        return torch.from_numpy(self.algorithm.observations).to(self.device)

    def _costs(self) -> dict[str, float]:
        learner = self.algorithm.learner
        plain = sum(p.numel() for p in learner.policy.parameters())
        both = torch.nn.ModuleList([learner.policy, learner.method])
        return self.costs.measure(both, plain, 0) | {"frames": float(self.progress)}

    # ------------------------------------------------------------------ scores

    def _evaluate(self, game: int, fill: bool) -> Row:
        """Score the games seen so far, or all of them; at a game's end, write them into ``R``."""
        evaluation = self.benchmark.config.evaluation
        separate = self.algorithm.learner.method.separate
        seen = range(game if separate else 0, game + 1)
        wanted = range(len(self.games)) if fill and evaluation.zero_shot and not separate else seen
        if fill and separate:
            self.scores.keep(game)
        row: Row = {}
        for column, score in self._play(wanted, EVALUATION).items():
            name = self.games[column]
            self.scores.evaluation[name].append([self.progress, score])
            row[f"curve/score/{name}"] = score
            row[f"curve/normalised/{name}"] = self.scores.percent(column, score)
            if fill:
                self.scores.test[game, column] = score
        if fill and evaluation.validation_episodes:
            for column, score in self._play(seen, VALIDATION).items():
                self.scores.validation[game, column] = score
        return row

    def _consolidation_cost(self, game: int, before: dict[str, torch.Tensor]) -> Row:
        """Percent lost on a game by the method's work at its end, such as BLIP's rounding."""
        after = self.algorithm.learner.policy.state_dict()
        if all(torch.equal(after[name], value) for name, value in before.items()):
            return {}
        score = self._play([game], EVALUATION, before)[game]
        lost = self.scores.percent(game, score) - self.scores.percent(
            game, float(self.scores.test[game, game])
        )
        return {"method/consolidation_cost": lost}

    def _play(
        self, games: Any, purpose: int, state: Mapping[str, torch.Tensor] | None = None
    ) -> dict[int, float]:
        """Play each game and return its mean raw score; the same purpose has the same seeds."""
        evaluation = self.benchmark.config.evaluation
        validating = purpose == VALIDATION
        count = evaluation.validation_episodes if validating else evaluation.episodes
        jobs: list[Job] = []
        for game in games:
            seeds = game_seeds(self.seeds.data, purpose, game, count)
            jobs += self.algorithm.split(Job(game, seeds), len(games))
        found = self.algorithm.scores(jobs, state)
        return {
            game: statistics.fmean(s for job in jobs if job.game == game for s in found[job])
            for game in games
        }
