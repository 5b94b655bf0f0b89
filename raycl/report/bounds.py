"""Metrics relative to the upper bound that the sweep file names, and notes about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raycl.report import partial
from raycl.report.load import TrackedRun
from raycl.training.metrics import AGAINST_BOUND

Result = Mapping[str, Any]


def prepare(runs: Sequence[TrackedRun], spec: Mapping[str, Any]) -> list[TrackedRun]:
    """Add the metrics ``AGAINST_BOUND`` to runs whose seed the upper bound has, too.

    Args:
        runs: Finished runs.
        spec: The sweep file.
    """
    bounds = _bounds(runs, spec)
    return [_with_bound(run, bounds.get((run.benchmark, run.seed))) for run in runs]


def notes(runs: Sequence[TrackedRun], spec: Mapping[str, Any]) -> Iterable[str]:
    """Notes that say what these metrics are, and which runs have none."""
    label = _label(spec)
    if label is None or not runs:
        return
    bounds = _bounds(runs, spec)
    if not bounds:
        yield f"no omega: {label}, the upper bound, has not finished"
        return
    yield (
        f"omega = 100 mean over t of A_t / A_UB,t, with A_t the average accuracy after task t and "
        f"A_UB,t that of {label} with the same seed, as in figure 5 of arXiv 2106.09701; "
        "deviations there are over n, here over n - 1"
    )
    several = len({run.benchmark for run in runs}) > 1
    lacking: dict[str, list[str]] = {}
    for run in runs:
        name = f"{run.method} seed {run.seed}" + (f" on {run.benchmark}" if several else "")
        for why, readouts in _missing(run, bounds.get((run.benchmark, run.seed)), label).items():
            lacking.setdefault(why, []).append(name + readouts)
    for why, names in lacking.items():
        yield f"omega leaves out {', '.join(names)}: {why}"


def _missing(run: TrackedRun, bound: TrackedRun | None, label: str) -> dict[str, str]:
    """Why a run has no omega, and in which of its readouts: empty where in all of them."""
    if run.result is None:
        return {}
    found: dict[str, list[str]] = {}
    for readout, metrics in run.result["metrics"].items():
        if not _has(metrics):
            found.setdefault(_why(run.result, bound, label, readout), []).append(readout)
    every = len(run.result["metrics"])
    return {
        why: "" if len(readouts) == every else f" ({', '.join(readouts)})"
        for why, readouts in found.items()
    }


def _why(result: Result, bound: TrackedRun | None, label: str, readout: str) -> str:
    """Why a readout of a run has no omega."""
    if bound is None or bound.result is None:
        return f"{label} has not finished with that seed"
    if result["tasks"] != bound.result["tasks"]:
        return f"{label} has other tasks"
    if readout not in bound.result["matrices"]:
        return f"{label} has no such readout"
    if any(partial.leaves_out(found, readout) for found in (result, bound.result)):
        return "not every row of the matrices was measured"
    return f"the average accuracy of {label} is 0 after a task"


def _has(metrics: Mapping[str, float]) -> bool:
    return any(name in metrics for name in AGAINST_BOUND)


def _label(spec: Mapping[str, Any]) -> str | None:
    label: str | None = (spec.get("report") or {}).get("upper_bound")
    return label


def _bounds(
    runs: Sequence[TrackedRun], spec: Mapping[str, Any]
) -> dict[tuple[str, int], TrackedRun]:
    """The upper bound's run by benchmark and seed."""
    return {(run.benchmark, run.seed): run for run in runs if run.method == _label(spec)}


def _with_bound(run: TrackedRun, bound: TrackedRun | None) -> TrackedRun:
    if bound is None or run.result is None or bound.result is None:
        return run
    if run.result["tasks"] != bound.result["tasks"]:
        return run
    metrics = {
        readout: {**found, **_relative(run.result, bound.result, readout)}
        for readout, found in run.result["metrics"].items()
    }
    images = partial.prepare_bound(run.result, bound.result)
    return replace(run, result={**run.result, **images, "metrics": metrics})


def _relative(result: Result, bound: Result, readout: str) -> dict[str, float]:
    """Metrics of one readout; none if one of the two runs lacks it, or the upper bound is 0."""
    if readout not in bound["matrices"] or readout not in result["matrices"]:
        return {}
    metrics = {}
    for name, metric in AGAINST_BOUND.items():
        try:
            metrics[name] = metric.function(result["matrices"][readout], bound["matrices"][readout])
        except ValueError:
            continue
    return metrics
