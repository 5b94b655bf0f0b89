"""What the driver tells the tracker: plain records, and the lines they become in the journal.

A line is one JSON object with the fields ``event`` (below), ``ms`` (wall clock, milliseconds since
1970) and, for all but the sweep's own, ``key`` (the trial's).

=========  ====================================================================================
event      further fields
=========  ====================================================================================
sweep      name, sweep_id, note, yaml, resolved, tags, kind (missing: images), pictures (missing:
           true)
trial      name, tags, params, attempt (1, 2, ...)
metrics    axis, step, values {name: number}, nonfinite (values dropped in this trial so far)
pictures   folder (relative: to the journal's), names (of PNG files in it, without suffix)
end        status (a ``TrialStatus``), error (text or null), result (see ``raycl.training``)
close      status (a ``SweepStatus``), counts {trial status: number}
=========  ====================================================================================
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PICTURES = "pictures"
"""Folder of a method's pictures, below a trial's own and among the artifacts of its run."""
TrialStatus = Literal["finished", "stopped-early", "error", "killed", "orphaned"]
SweepStatus = Literal["FINISHED", "FAILED", "KILLED"]
Event = dict[str, Any]

RUN_STATUS: dict[str, SweepStatus] = {
    "finished": "FINISHED",
    "stopped-early": "KILLED",
    "error": "FAILED",
    "killed": "KILLED",
    "orphaned": "KILLED",
}
"""How a trial's end is shown in MLflow. Only FINISHED runs may be averaged by a report."""


@dataclass(frozen=True)
class SweepRecord:
    """One execution of a sweep file: an MLflow experiment and one parent run in it.

    Args:
        name: Name of the experiment.
        sweep_id: Identity of this execution, the same after a resume.
        note: Markdown: what the sweep is and the command that runs it.
        yaml_text: The sweep file as written.
        resolved: The validated specification, JSON-able.
        tags: Provenance of the whole sweep (git commit, Ray job, ...); every trial repeats them.
            A key without a dot gets the prefix ``raycl.``.
        kind: Kind of its trials, a key of ``words.WORDS``.
        pictures: Whether MLflow gets pictures: those drawn of results, and those that methods make.
    """

    name: str
    sweep_id: str
    note: str = ""
    yaml_text: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    kind: str = "images"
    pictures: bool = True


@dataclass(frozen=True)
class TrialRecord:
    """One trial: an MLflow run below the sweep's.

    Args:
        key: Identity of the trial's finished configuration; stable over retries and resumes.
        name: Name of the run.
        tags: At least kind, method, benchmark, seed, config_key; a key without a dot gets the
            prefix ``raycl.``.
        params: The finished configuration, nested or flat.
        storage: Folder of its own files: any URL fsspec knows, or relative to the sweep's folder.
    """

    key: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    storage: str = ""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended, as the sweep's folder knows it.

    Args:
        record: The trial.
        status: How it ended.
        row: Its last row.
        error: Why it failed.
    """

    record: TrialRecord
    status: TrialStatus
    row: Mapping[str, Any]
    error: str | None = None


LASTING = frozenset({"sweep", "trial", "end", "close"})
"""Lines that outlast a power cut; of the others it may take those of the last seconds."""
EVENTS = LASTING | {"metrics", "pictures"}


def now_ms() -> int:
    """Wall clock in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


def size(event: Event) -> int:
    """How many values a line carries: its metric points, and 1 for a line of any other kind."""
    return len(event["values"]) if event["event"] == "metrics" else 1


def ended(
    key: str,
    status: TrialStatus,
    error: str | None = None,
    result: Mapping[str, Any] | None = None,
) -> Event:
    """The line for the end of a trial."""
    return {
        "event": "end",
        "ms": now_ms(),
        "key": key,
        "status": status,
        "error": error,
        "result": result,
    }


def closing(
    statuses: Mapping[str, str | None], ends: Sequence[Event], status: SweepStatus
) -> list[Event]:
    """The lines for the end of a sweep.

    Args:
        statuses: How each trial ended; None: it has not.
        ends: The lines that end the trials that have not, see ``journal.left_open``.
        status: How the sweep ended.
    """
    how = dict(statuses) | {event["key"]: event["status"] for event in ends}
    counts = Counter(how.values())
    return [*ends, {"event": "close", "ms": now_ms(), "status": status, "counts": counts}]
