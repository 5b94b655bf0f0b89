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
        if run.result is not None and not any(map(_has, run.result["metrics"].values())):
            name = f"{run.method} seed {run.seed}" + (f" on {run.benchmark}" if several else "")
            lacking.setdefault(_why(run, bounds, label), []).append(name)
    for why, names in lacking.items():
        yield f"omega leaves out {', '.join(names)}: {why}"


def _why(run: TrackedRun, bounds: Mapping[tuple[str, int], TrackedRun], label: str) -> str:
    """Why a run has no omega."""
    bound = bounds.get((run.benchmark, run.seed))
    both = [one.result for one in (run, bound) if one is not None and one.result is not None]
    if bound is not None and any(map(partial.leaves_out, both)):
        return "not every row of the matrices was measured"
    return f"{label} has not finished with that seed"


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
