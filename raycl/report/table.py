"""Turns tracked runs into one row per benchmark, method, readout and metric."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycl.errors import UserError, nearest
from raycl.report import bounds, games, partial
from raycl.report.load import TrackedRun, TrackedSweep
from raycl.report.notes import notes, pretrained_notes
from raycl.report.published import join_published
from raycl.report.statistics import paired, summary
from raycl.report.words import order
from raycl.trial.costs import TASK_PARTS

COSTS = ("seconds", "peak_memory_mb", "stored_bytes", "extra_parameters", *TASK_PARTS.values())
DEFAULT_BASELINE = "finetune"

NO_VALUE = {"n": 0, "mean": None, "std": None, "low": None, "high": None}
"""Summary of a metric that reads entries which were not measured."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in their seed only.

    Attributes:
        benchmark: Label of the benchmark.
        method: Label of the method.
        runs: One per seed, by seed.
    """

    benchmark: str
    method: str
    runs: Sequence[TrackedRun]


@dataclass(frozen=True)
class Table:
    """The numbers of a report.

    Attributes:
        name: The sweep's name.
        baseline: Method that differences are taken to, or ``None`` if nothing finished.
        rows: Flat, JSON-able, ordered by benchmark, readout, metric and then method as in the
            sweep file. Metrics in percent, but for raw scores of games, which are metrics of
            the readout ``score``; absent values are ``None``. ``sampled``: the metric reads entries
            of the matrix that are of some of the test images only.
        groups: Groups of runs that were averaged, in the same order.
        notes: Lines below the table: what is left out and why, and what a reader must know.
    """

    name: str
    baseline: str | None
    rows: Sequence[Row]
    groups: Sequence[Group]
    notes: Sequence[str] = field(default_factory=tuple)


def make_table(sweep: TrackedSweep, baseline: str | None = None) -> Table:
    """Average the finished runs of a sweep.

    Args:
        sweep: As read from the tracking store.
        baseline: The method differences are taken to; by default the sweep file's
            ``report.baseline``, else ``finetune``, else the first method.

    Raises:
        UserError: The sweep has no method called ``baseline``.
    """
    final = [run for run in sweep.runs if run.kind != "search"]
    methods = method_order(sweep.spec, final)
    baseline = _choose_baseline(baseline, sweep.spec, methods)
    usable, repeated = _latest(run for run in final if run.result is not None)
    usable = bounds.prepare(games.prepare(usable, sweep.spec), sweep.spec)
    groups = _group(usable, methods)
    rows = [row for group in groups for row in _rows(group, _others(groups, group, baseline))]
    own = {(g.benchmark, g.method) for g in groups if any(run.pretrained for run in g.runs)}
    spared = join_published(rows, sweep.spec, own)
    rows.sort(key=_sort_key(rows))
    above = [*games.notes(usable, sweep.spec), *bounds.notes(usable, sweep.spec)]
    above += partial.notes((run for g in groups for run in g.runs), sweep.spec)
    above += pretrained_notes([run for g in groups for run in g.runs], spared)
    below = [*above, *notes(sweep, rows, repeated, baseline)]
    return Table(sweep.name, baseline, rows, groups, below)


def _sort_key(rows: Sequence[Row]) -> Callable[[Row], tuple[Any, ...]]:
    """Key that sorts by benchmark, readout and metric; methods keep their order."""
    metrics = {name: i for i, name in enumerate(dict.fromkeys(row["metric"] for row in rows))}
    return lambda row: (row["benchmark"], order(row["readout"]), metrics[row["metric"]])


def method_order(spec: Mapping[str, Any], runs: Iterable[TrackedRun]) -> list[str]:
    """Labels of the methods: those of the sweep file in its order, then any other."""
    listed = [m.get("label") or m["name"] for m in spec.get("methods") or ()]
    return list(dict.fromkeys([*listed, *(run.method for run in runs)]))


# ---------------------------------------------------------------------- grouping


def _choose_baseline(
    asked: str | None, spec: Mapping[str, Any], methods: Sequence[str]
) -> str | None:
    if asked is not None and asked not in methods:
        raise UserError("--baseline", f"no method '{asked}' in this sweep", nearest(asked, methods))
    written = (spec.get("report") or {}).get("baseline")
    if asked or written:
        return str(asked or written)
    return DEFAULT_BASELINE if DEFAULT_BASELINE in methods else next(iter(methods), None)


def _latest(runs: Iterable[TrackedRun]) -> tuple[list[TrackedRun], list[TrackedRun]]:
    """Split runs into the one started last of each trial, and the others."""
    kept: dict[str, TrackedRun] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: run.started):
        if run.trial_key in kept:
            repeated.append(kept[run.trial_key])
        kept[run.trial_key] = run
    return list(kept.values()), repeated


def _group(runs: Iterable[TrackedRun], methods: Sequence[str]) -> list[Group]:
    by_group: dict[tuple[str, str, str], list[TrackedRun]] = defaultdict(list)
    for run in runs:
        by_group[run.benchmark, run.method, run.config_key].append(run)
    configs = Counter((benchmark, method) for benchmark, method, _ in by_group)
    order = sorted(by_group, key=lambda key: (key[0], methods.index(key[1]), key[2]))
    return [
        Group(
            benchmark,
            method if configs[benchmark, method] == 1 else f"{method} ({key[:6]})",
            sorted(by_group[benchmark, method, key], key=lambda run: run.seed),
        )
        for benchmark, method, key in order
    ]


def _others(groups: Sequence[Group], group: Group, baseline: str | None) -> Group | None:
    """The baseline's group on the same benchmark, if it is another one."""
    for other in groups:
        if other.benchmark == group.benchmark and other.method == baseline and other is not group:
            return other
    return None


# ---------------------------------------------------------------------- rows


def values(group: Group, readout: str, metric: str) -> dict[int, float]:
    """A metric per seed, where it is defined."""
    by_seed = {}
    for run in group.runs:
        assert run.result is not None
        value = run.result["metrics"].get(readout, {}).get(metric)
        if value is not None:
            by_seed[run.seed] = float(value)
    return by_seed


def _rows(group: Group, baseline: Group | None) -> Iterable[Row]:
    results = [run.result for run in group.runs if run.result is not None]
    names = dict.fromkeys(
        (r, m) for result in results for r in result["metrics"] for m in partial.names(result, r)
    )
    absent = {(r, m) for result in results for r, m in names if m in partial.absent(result, r)}
    costs = {name: _mean(result["cost"].get(name) for result in results) for name in COSTS}
    for readout, metric in names:
        by_seed = values(group, readout, metric)
        if not by_seed and (readout, metric) not in absent:
            continue
        pair = paired(by_seed, values(baseline, readout, metric)) if baseline else {}
        yield {
            "benchmark": group.benchmark,
            "method": group.method,
            "readout": readout,
            "metric": metric,
            **(summary(by_seed) if by_seed else NO_VALUE),
            "sampled": any(partial.is_sampled(result, readout, metric) for result in results),
            "published": None,
            "published_std": None,
            "published_source": None,
            "published_revisions": None,
            "verdict": None,
            "baseline": baseline.method if baseline else None,
            "difference": pair.get("mean"),
            "difference_low": pair.get("low"),
            "difference_high": pair.get("high"),
            "difference_n": pair.get("n"),
            **costs,
            "seeds": sorted(by_seed),
            "run_ids": [run.run_id for run in group.runs if run.seed in by_seed and run.run_id],
        }


def _mean(found: Iterable[float | None]) -> float | None:
    numbers = [float(value) for value in found if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
