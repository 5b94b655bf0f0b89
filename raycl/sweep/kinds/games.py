"""Trials on sequences of games, as ``kinds`` has them in its table. RLlib is imported by runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raycl.datasets.base import Dataset
from raycl.errors import Problem
from raycl.networks.base import Tensors, find_network
from raycl.rl.benchmarks.base import build_games
from raycl.sweep.kinds.kind import NETWORKS, Kind, Part, Shown
from raycl.trial.run import Row, TrialRun

_SMALL = {"envs": 4, "rollout": 32, "minibatches": 4, "epochs": 1}
"""PPO of ``--smoke``."""


def tasks(benchmark: Mapping[str, Any], data: Mapping[str, Dataset]) -> int:
    """Games of the sequence."""
    return len(build_games(benchmark).games)


def fits(
    benchmark: Mapping[str, Any], blocks: Mapping[str, Any], resources: Mapping[str, Any]
) -> None:
    """Check for one update per game or more, equal shares of environments, and one network.

    Raises:
        Problem: Names what is otherwise.
    """
    if not find_network(blocks["network"])[0].games:
        what = f"{blocks['network']['name']} is for images; all games of a sequence share a network"
        raise Problem(("network", "name"), what)
    train = blocks["train"]
    steps = train["envs"] * train["rollout"]
    least = steps * build_games(benchmark).frames_per_step
    if benchmark["frames"] < least:
        what = (
            f"must be at least {least:,}, one update ({train['envs']} envs x {train['rollout']} "
            f"steps x {least // steps} frames), not {benchmark['frames']:,}"
        )
        raise Problem(("benchmark", "frames"), what)
    runners = resources["env_runners"]
    if train["envs"] % max(1, runners):
        what = f"{runners} runners cannot share the {train['envs']} of train.envs equally"
        divisors = [str(n) for n in range(1, train["envs"] + 1) if train["envs"] % n == 0]
        raise Problem(("resources", "env_runners"), what, f"use 0, {', '.join(divisors)}")


def smoke(data: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Four updates on each of two games, played and scored by the trial itself."""
    found: dict[str, Any] = {"resources.env_runners": 0}
    found |= {f"train.{key}": value for key, value in _SMALL.items()}
    found["stop.tasks"] = min(2, *(tasks(block, {}) for block in benchmarks))
    for i, block in enumerate(benchmarks):
        path = f"benchmark[{i}]" if isinstance(data["benchmark"], list) else "benchmark"
        step = build_games(block).frames_per_step
        found[f"{path}.frames"] = 4 * step * _SMALL["envs"] * _SMALL["rollout"]
        found[f"{path}.evaluation.episodes"] = 1
        found[f"{path}.evaluation.max_frames"] = 1000
        found[f"{path}.evaluation.every"] = None
        if block["evaluation"]["validation_episodes"]:
            found[f"{path}.evaluation.validation_episodes"] = 1
    return found


def published(benchmarks: Iterable[Mapping[str, Any]]) -> Mapping[str, Iterable[str]]:
    """The raw score of each game may be compared with what others printed: ``score/GAME``."""
    return {"score": dict.fromkeys(game for b in benchmarks for game in build_games(b).games)}


def build(
    config: Mapping[str, Any],
    data: Mapping[str, Dataset],
    device: str,
    resources: Mapping[str, Any],
    weights: Mapping[str, Tensors] | None = None,
) -> TrialRun:
    """The run of a finished configuration; each of its processes reads weights files itself."""
    from raycl.rl.sequence import SequenceRun  # RLlib: seconds

    return SequenceRun(config, device, int(resources["env_runners"]))


def _update(row: Row) -> str:
    return f"{row['epoch'] + 1:,}/{row['updates']:,}" if "updates" in row else ""


def _cells(row: Row, tasks: int) -> list[str]:
    found = row.get("train/return")
    return [
        f"{min(row['task'] + 1, tasks)}/{tasks}" if "task" in row else "",
        str(row.get("phase", "starting")),
        _update(row),
        "" if found is None else f"{found:z,.1f}",
        f"{row['time/steps_per_s']:,.0f}" if "time/steps_per_s" in row else "",
    ]


def _where(row: Row, tasks: int) -> str:
    game, name, update, found, _ = _cells(row, tasks)
    if not game:
        return name
    return f"game {game} {name} update {update}" + (f" (return {found})" if found else "")


def _headline(row: Row) -> str:
    result = row.get("result")
    if not result:
        return f"after {row.get('tasks_done', 0)} games"
    average = result["metrics"]["normalised"]["average_performance"]
    return f"average performance {average:z.1f} % of the reference"


SHOWN = Shown(
    columns=("game", "name", "update", "return", "steps/s"),
    left=frozenset({"name"}),
    cells=_cells,
    where=_where,
    headline=_headline,
)


GAMES = Kind(
    name="games",
    parts={
        "benchmark": Part("raycl.rl.benchmarks", "GameSequence"),
        "method": Part("raycl.rl.methods", "SequenceMethod"),
        "network": NETWORKS,
    },
    train="raycl.rl.config:PPOConfig",
    metrics="raycl.rl.metrics:METRICS",
    against_bound=None,
    readouts=("normalised",),
    asks=False,
    search_metric="validation/average_performance",
    validation=("evaluation", "validation_episodes"),
    validation_hint="10 would do",
    seeds=("init", "data"),
    tasks=tasks,
    needs_data=False,
    settings=lambda method: frozenset({"normalised"}),
    probes=None,
    fits=fits,
    smoke=smoke,
    published=published,
    build=build,
    shown=SHOWN,
    evaluation="benchmark.evaluation (episodes, every)",
)
