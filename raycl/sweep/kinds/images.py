"""Trials on streams of images, as ``kinds`` has them in its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycl import registry
from raycl.datasets.base import Dataset
from raycl.errors import Problem, UserError
from raycl.methods.base import Method
from raycl.networks.base import Tensors, find_network
from raycl.sweep.kinds.kind import NETWORKS, Kind, Part, Shown
from raycl.trial.run import Row, TrialRun

_LENGTHS = ("tasks", "angles", "datasets")
"""Options of benchmarks that say, as a number or a list, how many tasks there are."""


def tasks(benchmark: Mapping[str, Any], data: Mapping[str, Dataset]) -> int:
    """Tasks of the stream."""
    from raycl.training.run import build_benchmark

    return len(build_benchmark(benchmark).stream(data, 0).info.tasks)


def smoke(data: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One epoch on each of two tasks; on one, where a benchmark says that it has no more."""
    lengths = [block.get(name) for block in benchmarks for name in _LENGTHS]
    counts = [len(one) if isinstance(one, list) else one for one in lengths]
    known = [count for count in counts if isinstance(count, int)]
    return {"train.epochs": 1, "stop.tasks": min([2, *known])}


def fits(
    benchmark: Mapping[str, Any], blocks: Mapping[str, Any], resources: Mapping[str, Any]
) -> None:
    """Images have no environments, and not every method can change networks.

    Raises:
        Problem: Env runners are asked for, or several networks for a method that keeps one.
    """
    from raycl.training.check import check_networks

    if resources["env_runners"]:
        raise Problem(("resources", "env_runners"), "is for games; images need none")
    network, config = find_network(blocks["network"])
    name = blocks["method"]["name"]
    method = registry.find("raycl.methods", Method, name)  # type: ignore[type-abstract]
    try:
        check_networks(method, name, network.per_task(config) or ())
    except UserError as error:
        raise Problem(("method", "name"), error.what, error.hint) from error


def probes(method: Any) -> bool:
    """Whether a method's class has features that a linear probe can read."""
    from raycl.training.probe import has_features

    return has_features(method)


def build(
    config: Mapping[str, Any],
    data: Mapping[str, Dataset],
    device: str,
    resources: Mapping[str, Any],
    weights: Mapping[str, Tensors] | None = None,
) -> TrialRun:
    """The run of a finished configuration."""
    from raycl.training.run import Run

    return Run(config, data, device, weights)


def _cells(row: Row, tasks: int) -> list[str]:
    accuracy = row.get("validation/average_accuracy")
    return [
        f"{min(row['task'] + 1, tasks)}/{tasks}" if "task" in row else "",
        str(row.get("phase", "starting")),
        str(row["epoch"] + 1) if "epoch" in row else "",
        "" if accuracy is None else f"{accuracy:.1f}",
    ]


def _where(row: Row, tasks: int) -> str:
    if "task" not in row:
        return "starting"
    accuracy = row.get("validation/average_accuracy")
    task = min(row["task"] + 1, tasks)
    known = "" if accuracy is None else f" ({accuracy:.1f} %)"
    return f"task {task}/{tasks} epoch {row.get('epoch', 0) + 1}{known}"


def _headline(row: Row) -> str:
    result = row.get("result")
    if not result:
        return f"after {row.get('tasks_done', 0)} tasks"
    readout, metrics = next(iter(result["metrics"].items()))
    return f"average accuracy ({readout}) {metrics['average_accuracy']:.1f} %"


SHOWN = Shown(
    columns=("task", "phase", "epoch", "validation %"),
    left=frozenset({"phase"}),
    cells=_cells,
    where=_where,
    headline=_headline,
)


IMAGES = Kind(
    name="images",
    parts={
        "benchmark": Part("raycl.benchmarks", "Benchmark"),
        "method": Part("raycl.methods", "Method"),
        "network": NETWORKS,
    },
    train="raycl.nn.optim:TrainConfig",
    metrics="raycl.training.metrics:METRICS",
    against_bound="raycl.training.metrics:AGAINST_BOUND",
    readouts=("class", "task", "domain"),
    asks=True,
    search_metric="validation/average_accuracy",
    validation=("validation",),
    validation_hint="the default is 0.1",
    seeds=("class_order", "init", "data"),
    tasks=tasks,
    needs_data=True,
    settings=lambda method: frozenset(method.settings),
    probes=probes,
    fits=fits,
    smoke=smoke,
    published=lambda benchmarks: {},
    build=build,
    shown=SHOWN,
    evaluation="evaluate",
)
