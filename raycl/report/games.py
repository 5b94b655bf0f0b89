"""Additions to the results of games: raw scores as rows, transfer relative to ``scratch``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raycl.report.load import TrackedRun
from raycl.rl.benchmarks.base import normalise
from raycl.rl.metrics import METRICS, UndefinedError, forward_transfer, learning_areas

ALONE = "scratch"
"""Registered name of the method that learns every game from fresh weights."""
OWN_METRICS = ("learning_performance", "auc")
"""Metrics that have a meaning for ``scratch``: those of games right after they were learnt."""

Result = Mapping[str, Any]


def prepare(runs: Sequence[TrackedRun], spec: Mapping[str, Any]) -> list[TrackedRun]:
    """Complete the results of runs on games; runs on images stay as they are.

    Args:
        runs: Finished runs.
        spec: The sweep file.
    """
    alone = _labels(spec)
    completed = [
        run if run.result is None else _with_scores(run, run.method in alone) for run in runs
    ]
    references = {
        (run.benchmark, run.seed): run for run in reversed(completed) if run.method in alone[:1]
    }
    return [_with_transfer(run, references, alone) for run in completed]


def is_games(result: Result | None) -> bool:
    """Whether a result is that of a sequence of games."""
    return result is not None and "references" in result


def game_frames(result: Result) -> float:
    """Emulator frames that each game was trained on."""
    return float(result["cost"]["frames"]) / len(result["tasks"])


def percent(result: Result, game: str, points: Iterable[Sequence[float]]) -> list[list[float]]:
    """Turn a curve of raw scores into one in percent of the reference."""
    frames, scores = zip(*points, strict=True) if points else ((), ())
    percents = normalise(scores, [result["references"][game]] * len(scores))
    return [[f, p] for f, p in zip(frames, percents, strict=True) if p is not None]


def _labels(spec: Mapping[str, Any]) -> list[str]:
    """Labels of the methods that learn every game alone, in the order of the file."""
    entries = spec.get("methods") or [{"name": ALONE}]
    return [m.get("label") or m["name"] for m in entries if m["name"] == ALONE]


def _with_scores(run: TrackedRun, alone: bool) -> TrackedRun:
    """Add the last score on each game as a metric of its own."""
    result = run.result
    if result is None or not is_games(result):
        return run
    if alone:
        result = _own_only(result)
    matrix = result["matrices"]["score"]
    last = [row[i] for i, row in enumerate(matrix)] if alone else matrix[-1]
    scores = dict(zip(result["tasks"], last, strict=True))
    return replace(run, result={**result, "metrics": {**result["metrics"], "score": scores}})


def _own_only(result: Result) -> Result:
    """Remove scores of a game that were played with the weights of another game."""
    frames = game_frames(result)
    window = {game: (i * frames, (i + 1) * frames) for i, game in enumerate(result["tasks"])}
    evaluation = {
        game: [p for p in curve if window[game][0] < p[0] <= window[game][1]]
        for game, curve in result["curves"]["evaluation"].items()
    }
    metrics = result["metrics"]["normalised"]
    return {
        **result,
        "matrices": {
            name: [[v if i == t else None for i, v in enumerate(row)] for t, row in enumerate(rows)]
            for name, rows in result["matrices"].items()
        },
        "metrics": {"normalised": {k: metrics[k] for k in OWN_METRICS if k in metrics}},
        "curves": {**result["curves"], "evaluation": evaluation},
    }


def _with_transfer(
    run: TrackedRun, references: Mapping[tuple[str, int], TrackedRun], alone: Sequence[str]
) -> TrackedRun:
    """Add forward transfer, if the same seed has also learnt every game alone."""
    reference = references.get((run.benchmark, run.seed))
    if reference is None or run.method in alone or not is_games(run.result):
        return run
    assert run.result is not None
    assert reference.result is not None
    if run.result["tasks"] != reference.result["tasks"]:
        return run
    try:
        value = forward_transfer(_areas(run.result), _areas(reference.result))
    except UndefinedError:  # no game ended, or nothing is left to gain
        return run
    metrics = run.result["metrics"]
    added = {**metrics, "normalised": {**metrics["normalised"], "forward_transfer": value}}
    return replace(run, result={**run.result, "metrics": added})


def _areas(result: Result) -> list[float]:
    curves = [percent(result, game, result["curves"]["training"][game]) for game in result["tasks"]]
    return learning_areas(curves, round(game_frames(result)))


def notes(runs: Sequence[TrackedRun], spec: Mapping[str, Any]) -> Iterable[str]:
    """Notes on the scores that count as 100 %, and on what ``scratch`` lacks or adds."""
    results = {run.benchmark: run.result for run in runs if is_games(run.result)}
    for benchmark, result in results.items():
        assert result is not None
        pairs = ", ".join(
            f"{game} {low:,g} and {high:,g}" for game, (low, high) in result["references"].items()
        )
        whose = " (random and human play)" if _human(spec, benchmark) else ""
        yield f"{benchmark}: 0 and 100 % of normalised scores{whose} are {pairs}"
    yield from _undefined(runs, spec)
    alone = [label for label in _labels(spec) if label in {run.method for run in runs}]
    if results and alone:
        yield (
            f"{alone[0]} learns every game from fresh weights: its scores are those right after "
            "each game, and forward transfer is to its training curves, seed by seed"
        )


_LEFT_OUT = {
    "retention": "a game ended no better than the lower reference, or than untrained",
    "auc": "no game ended in training while it was learnt",
}
"""Metrics that may have no value, each with the reason."""
TRANSFER = "forward_transfer"


def _undefined(runs: Sequence[TrackedRun], spec: Mapping[str, Any]) -> Iterable[str]:
    """Notes on metrics that some seeds lack, so that their mean is over the other seeds."""
    alone, played = _labels(spec), [run for run in runs if is_games(run.result)]
    several = len({run.benchmark for run in played}) > 1

    def name(run: TrackedRun) -> str:
        return f"{run.method} seed {run.seed}" + (f" on {run.benchmark}" if several else "")

    for metric, why in _LEFT_OUT.items():
        least = METRICS[metric].min_tasks
        lacking = [
            name(run)
            for run in played
            if run.result is not None
            and len(run.result["tasks"]) >= least
            and metric not in run.result["metrics"]["normalised"]
            and (metric in OWN_METRICS or run.method not in alone)
        ]
        if lacking:
            yield f"{metric} leaves out {', '.join(lacking)}: {why}"
    has = [
        (run, TRANSFER in run.result["metrics"]["normalised"])
        for run in played
        if run.result is not None and run.method not in alone
    ]
    with_it = {run.benchmark for run, there in has if there}
    if lacking := [name(run) for run, there in has if not there and run.benchmark in with_it]:
        why = (
            f"{alone[0]} of that seed has not finished, no game ended in training, or {alone[0]} "
            "is at 100 % of a game all the time, so that nothing is left to gain"
        )
        yield f"{TRANSFER} leaves out {', '.join(lacking)}: {why}"


def _human(spec: Mapping[str, Any], benchmark: str) -> bool:
    blocks = [b for b in spec.get("benchmark") or () if b.get("label") in (None, benchmark)]
    return bool(blocks) and all(b.get("normalise", "human") == "human" for b in blocks)
