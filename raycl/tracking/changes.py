"""What lines of the journal change in the runs of MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from raycl.tracking import names
from raycl.tracking.calls import Item
from raycl.tracking.records import RUN_STATUS, Event

NOTE = "mlflow.note.content"
END_TAGS = ("raycl.end", "raycl.error", "raycl.trials", NOTE)
TABLE = "tables/final.json"


@dataclass
class Changes:
    """What one chunk of the journal changes in one run."""

    start: Event | None = None
    start_line: int = 0
    params: list[Item] = field(default_factory=list)
    metrics: list[Item] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    ended_ms: int = 0
    line: int = 0  # the last that is not of metrics


def fold(lines: Sequence[tuple[int, Event]]) -> dict[str, Changes]:
    """Merge lines into one set of changes per run; the parent's key is the empty string."""
    from mlflow.entities import Metric

    runs: dict[str, Changes] = {}
    for line, event in lines:
        changes = runs.setdefault(event.get("key", ""), Changes())
        if event["event"] != "metrics" or not changes.line:
            changes.line = line
        match event["event"]:
            case "metrics":
                at = (event["ms"], event["step"])
                changes.metrics += [(line, Metric(k, v, *at)) for k, v in event["values"].items()]
                if event["nonfinite"]:
                    changes.tags["raycl.nonfinite"] = str(event["nonfinite"])
            case "sweep" | "trial":
                changes.start, changes.status = event, "RUNNING"
                changes.start_line = line
                for tag in END_TAGS:
                    changes.tags.pop(tag, None)
            case "end":
                changes.status, changes.ended_ms = RUN_STATUS[event["status"]], event["ms"]
                changes.tags["raycl.end"] = event["status"]
                if event["error"]:
                    changes.tags |= names.error_tags(event["error"])
                if event["result"]:
                    shown = [{"path": TABLE, "type": "table"}]
                    changes.tags["mlflow.loggedArtifacts"] = json.dumps(shown)
            case "close":
                changes.status, changes.ended_ms = event["status"], event["ms"]
                counts = [f"{n} {status}" for status, n in event["counts"].items()]
                changes.tags["raycl.trials"] = ", ".join(counts)
    return runs
