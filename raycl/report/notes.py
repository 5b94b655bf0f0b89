"""Notes below a table: what was left out and why, what a search cost, what to beware of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raycl.report.load import MATRIX, RESOLVED, TrackedRun, TrackedSweep
from raycl.report.published import NOT_IN_FULL
from raycl.report.statistics import LEVEL, RESAMPLES
from raycl.trial.sharing import SHARED_SECONDS, TAKEN_FROM
from raycl.trial.weights import named_in

_ENDS = {"error": "failed", "stopped-early": "stopped early", "running": "still running"}
_FEW_SEEDS = 5
_NAMED = 5
_REASON = 120


def notes(
    sweep: TrackedSweep,
    rows: Sequence[Mapping[str, Any]],
    repeated: Sequence[TrackedRun],
    baseline: str | None,
) -> list[str]:
    """Lines to print below a table."""
    return [
        *_left_out(sweep.runs, repeated),
        *_mixed(sweep),
        *([] if sweep.spec else [f"{RESOLVED} cannot be read: no published numbers, no search"]),
        *_search(sweep),
        *_shared(sweep.runs),
        *_taken_over(sweep.runs),
        *_selection(sweep.spec),
        *_weights(sweep.spec),
        *_published(rows, sweep.spec.get("published") or {}),
        *_baseline(rows, baseline),
        *_tasks(rows),
        *_intervals(rows),
    ]


def pretrained_notes(runs: Iterable[TrackedRun], spared: Iterable[str]) -> Iterable[str]:
    """Lines about weights that were pre-trained here.

    Args:
        runs: Runs of the table.
        spared: Methods for which published figures are not printed.
    """
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for run in runs:
        if run.pretrained:
            found[run.benchmark, run.seen or "unknown"][run.method] = None
    for (benchmark, seen), methods in found.items():
        yield (
            f"{', '.join(methods)} on {benchmark}: weights pre-trained here by raycl pretrain; "
            f"images of its data sets that were seen then: {seen}"
        )
    if names := sorted(spared):
        yield (
            f"published figures are not printed for {', '.join(names)}: they are of other weights "
            "than those pre-trained here"
        )


def _left_out(runs: Iterable[TrackedRun], repeated: Sequence[TrackedRun]) -> Iterable[str]:
    runs = [run for run in runs if run.kind != "search"]
    done = {run.trial_key for run in runs if run.result is not None}
    ends: dict[str, list[TrackedRun]] = defaultdict(list)
    for run in runs:
        if run.trial_key not in done:
            lost = f"finished without a readable {MATRIX}"
            ends[lost if run.end == "finished" else _ENDS.get(run.end, run.end)].append(run)
    if ends:
        yield "not in the table: " + ", ".join(
            f"{len(group)} {end} ({_names(group)})" for end, group in sorted(ends.items())
        )
    if repeated:
        names = _names(repeated)
        yield f"finished more than once, the latest is used: {names}"


def _mixed(sweep: TrackedSweep) -> Iterable[str]:
    """Notes on results that were made by more than one state of code and data."""
    counts = Counter(run.made_of for run in sweep.runs if run.result is not None and run.made_of)
    if len(counts) > 1:
        what = f"; changed and accepted: {sweep.changes}" if sweep.changes else ""
        numbers = " and ".join(str(count) for count in counts.values())
        yield f"not all results are of the same code and data: {numbers} trials{what}"


def _names(runs: Sequence[TrackedRun]) -> str:
    named = [
        f"{run.method} seed {run.seed}" + (f": {run.reason[:_REASON]}" if run.reason else "")
        for run in runs[:_NAMED]
    ]
    more = len(runs) - len(named)
    return "; ".join([*named, f"and {more} more"] if more else named)


def _search(sweep: TrackedSweep) -> Iterable[str]:
    runs = [run for run in sweep.runs if run.kind == "search"]
    if not runs:
        return
    search = sweep.spec.get("search") or {}
    ends: dict[str, int] = defaultdict(int)
    for run in runs:
        ends[_ENDS.get(run.end, run.end)] += 1
    tasks = sorted({len(run.result["tasks"]) for run in runs if run.result is not None})
    costs = [run.metrics["cost/seconds"] for run in runs if "cost/seconds" in run.metrics]
    counts = ", ".join(f"{n} {end}" for end, n in sorted(ends.items()))
    parts = [f"search: {len(runs)} trials ({counts})"]
    if tasks:
        parts.append(f"of {' or '.join(map(str, tasks))} tasks")
    parts.append(f"in {duration(sum(costs))} of training")
    if len(costs) < len(runs):
        parts.append(f"(not counting {len(runs) - len(costs)} that ended inside a task)")
    metric = search.get("metric", "validation/average_accuracy")
    where, again = "", "the seeds counted here"
    if search.get("benchmark"):
        where = f" on {', '.join(sorted({run.benchmark for run in runs}))}, another stream,"
        again = f"the stream and {again}"
    yield (
        f"{' '.join(parts)}; protocol {search.get('protocol', 'end_of_stream')}; "
        f"chosen{where} by {metric}, without test data, and run again on {again}"
    )


def _shared(runs: Iterable[TrackedRun]) -> Iterable[str]:
    """Note on work that was done once for several trials; costs count it for each of them."""
    results = [run.result for run in runs if run.result is not None]
    shared = sum(result.get(SHARED_SECONDS, 0.0) for result in results)
    total = sum(result.get("cost", {}).get("seconds", 0.0) for result in results)
    if shared and total:
        count = sum(SHARED_SECONDS in result for result in results)
        yield (
            f"shared: {count} trials began with what another had trained, {duration(shared)} of "
            f"{duration(total)} of training ({shared / total:.0%}); costs count it for each"
        )


def _taken_over(runs: Iterable[TrackedRun]) -> Iterable[str]:
    """Note on trials that another sweep has run."""
    names = Counter(
        str(run.result[TAKEN_FROM])
        for run in runs
        if run.result is not None and TAKEN_FROM in run.result
    )
    if names:
        yield "taken over, not run again: " + ", ".join(
            f"{count} trials of {name}" for name, count in sorted(names.items())
        )


def _selection(spec: Mapping[str, Any]) -> Iterable[str]:
    """Notes on methods whose epochs were chosen on validation data of all tasks seen."""
    shared = (spec.get("train") or {}).get("select")
    methods = spec.get("methods") or []
    chosen = [
        entry.get("label", entry["name"])
        for entry in methods
        if (entry.get("train") or {}).get("select", shared) == "seen_accuracy"
    ]
    if chosen:
        which = "" if len(chosen) == len(methods) else f": {', '.join(chosen)}"
        yield f"epochs were chosen on validation data of all tasks seen{which}"


def _weights(spec: Mapping[str, Any]) -> Iterable[str]:
    """Notes on the files that networks start from."""
    weights = named_in([spec.get("network"), spec.get("methods")])
    if weights:
        files = (f"{one.label}, sha256 {(one.sha256 or 'unknown')[:12]}" for one in weights)
        yield f"networks start from {'; '.join(dict.fromkeys(files))}"


def duration(seconds: float) -> str:
    """Write seconds readably: ``"12.3 s"``, ``"4.5 min"``, ``"1.2 h"``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _published(rows: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> Iterable[str]:
    if any(row["published"] is not None for row in rows):
        note = published.get("note")
        yield f"published: {published.get('source')}" + (f"; {note}" if note else "")
    for row in rows:
        if row["published_source"]:
            what = f"{row['metric']} of {row['method']} on {row['benchmark']}"
            yield f"published {what}: {row['published_source']}"
    verdicts = {row["verdict"] for row in rows} - {None}
    if verdicts & {"within", "outside"}:
        yield (
            "within: our mean differs from the published one by at most its standard deviation, "
            "the error of a value read off a plot, or what was lost when it was rounded"
        )
    if NOT_IN_FULL in verdicts:
        yield f"{NOT_IN_FULL}: not with the settings of what is published, or not with all seeds"


def _baseline(rows: Sequence[Mapping[str, Any]], baseline: str | None) -> Iterable[str]:
    have = {row["benchmark"] for row in rows if row["method"] == baseline}
    lacking = sorted({row["benchmark"] for row in rows} - have)
    if lacking:
        yield f"no differences on {', '.join(lacking)}: {baseline} has not finished there"
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        if row["baseline"]:
            counts[row["method"]].append((row["difference_n"] or 0, row["n"]))
    # a metric that the baseline does not have (forward transfer) says nothing about its seeds
    short = {
        method
        for method, pairs in counts.items()
        if any(0 < shared < n for shared, n in pairs) or not any(shared for shared, _ in pairs)
    }
    if short:
        yield f"differences use the seeds shared with {baseline} only: {', '.join(sorted(short))}"


def _tasks(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if any(row["task_percent"] is not None for row in rows):
        yield (
            "task (%): what the last task adds beside its head, in percent of the backbone's "
            "parameters: weights, with affine parameters, with statistics of its normalisations"
        )


def _intervals(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not rows:
        yield "no trial has finished"
        return
    unit = "" if any(row["readout"] == "score" for row in rows) else "in percent: "
    yield (
        f"{unit}mean ± standard deviation over n seeds, {LEVEL:g} % interval of the mean by "
        f"bootstrap over seeds ({RESAMPLES:,} resamples, percentiles); differences pair the seeds"
    )
    fewest = min((row["n"] for row in rows if row["n"]), default=_FEW_SEEDS)
    if fewest == 1:
        yield "one seed has neither a deviation nor an interval, and proves little"
    elif fewest < _FEW_SEEDS:
        yield (
            f"with fewer than {_FEW_SEEDS} seeds intervals are too narrow: with 3, each is only "
            "the range from the lowest seed to the highest, right about 3 times in 4"
        )
