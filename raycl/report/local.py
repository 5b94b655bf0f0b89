"""Reads a sweep from the journal in its folder, which is the truth; MLflow has a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from raycl.report.load import TrackedRun, TrackedSweep, reason
from raycl.tracking.records import Event

FINAL = ("trial", "winner", "search")


def from_lines(
    name: str, sweep_id: str, spec: Mapping[str, Any], lines: Iterable[Event], open_end: str
) -> TrackedSweep:
    """Build a sweep from the lines of its journal.

    Args:
        name: Name of the sweep.
        sweep_id: Id of the sweep.
        spec: The sweep file with every default filled in; empty: as the lines have it.
        lines: Events of ``tracking.records``; those of metrics are not looked at.
        open_end: The end of trials that have none: ``running`` or ``orphaned``.
    """
    runs: dict[str, TrackedRun] = {}
    changes = ""
    for event in lines:
        match event["event"]:
            case "sweep":
                spec = spec or event["resolved"]
                changes = event["tags"].get("changes", changes)
            case "trial" if event["tags"].get("kind") in FINAL:
                before = runs.get(event["key"])
                runs[event["key"]] = _begun(event, before, open_end)
            case "end" if event["key"] in runs:
                ended = {"end": event["status"], "reason": reason(event["error"] or "")}
                result = event["result"] if event["status"] == "finished" else None
                runs[event["key"]] = replace(runs[event["key"]], **ended, result=result)
    ordered = sorted(runs.values(), key=lambda run: (run.started, run.name))
    return TrackedSweep(name, "", sweep_id, "", spec, ordered, changes)


def _begun(event: Event, before: TrackedRun | None, open_end: str) -> TrackedRun:
    tags = event["tags"]
    return TrackedRun(
        run_id="",
        name=event["name"],
        kind=tags["kind"],
        benchmark=tags["benchmark"],
        method=tags["method"],
        seed=int(tags["seed"]),
        config_key=tags["config_key"],
        trial_key=event["key"],
        end=open_end,
        reason="",
        started=before.started if before else event["ms"],
        metrics={},
        made_of=tags.get("made_of", ""),
        pretrained=tags.get("pretrained", ""),
        seen=tags.get("seen_images", ""),
    )


def joined(local: TrackedSweep, tracked: TrackedSweep) -> TrackedSweep:
    """Join the folder's results with those that only MLflow has; ids of runs are MLflow's.

    Args:
        local: The sweep as read from the folder.
        tracked: The same sweep as read from the store.
    """
    theirs = {run.trial_key: run for run in tracked.runs}
    runs = []
    for run in local.runs:
        other = theirs.pop(run.trial_key, None)
        if other is not None and run.result is None and other.result is not None:
            run = other
        elif other is not None:
            run = replace(run, run_id=other.run_id, metrics={**other.metrics, **run.metrics})
        runs.append(run)
    ordered = sorted([*runs, *theirs.values()], key=lambda run: (run.started, run.name))
    return replace(
        local,
        uri=tracked.uri,
        parent_id=tracked.parent_id,
        spec=local.spec or tracked.spec,
        runs=ordered,
    )
