"""Lines of the journal, made of what the driver knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycl.tracking import names
from raycl.tracking.journal import Ledger
from raycl.tracking.records import (
    PICTURES,
    Event,
    SweepRecord,
    TrialEnd,
    TrialRecord,
    ended,
    now_ms,
)


def started(sweep: SweepRecord, tags: Mapping[str, str]) -> Event:
    """The line for a sweep that is started, for the first time or again."""
    return {
        "event": "sweep",
        "ms": now_ms(),
        "name": sweep.name,
        "sweep_id": sweep.sweep_id,
        "note": sweep.note,
        "yaml": sweep.yaml_text,
        "resolved": sweep.resolved,
        "tags": {**tags, **sweep.tags},
        "kind": sweep.kind,
        "pictures": sweep.pictures,
    }


def begun(record: TrialRecord, ledger: Ledger) -> Event:
    """The line for a trial that begins, or begins again."""
    return {
        "event": "trial",
        "ms": now_ms(),
        "key": record.key,
        "name": record.name,
        "tags": record.tags,
        "params": record.params,
        "attempt": ledger.attempts.get(record.key, 0) + 1,
    }


def measured(key: str, row: Mapping[str, Any], ledger: Ledger) -> list[Event]:
    """The lines for a trial's row; steps seen before are left out."""
    events: list[Event] = []
    before = ledger.nonfinite.get(key, 0)
    for axis, (step, values, nonfinite) in names.points(row).items():
        if step > ledger.marks.get((key, axis), -1):
            before += nonfinite
            events.append(
                {
                    "event": "metrics",
                    "ms": now_ms(),
                    "key": key,
                    "axis": axis,
                    "step": step,
                    "values": values,
                    "nonfinite": before,
                }
            )
    return events


def drawn(key: str, row: Mapping[str, Any], storage: str, ledger: Ledger) -> list[Event]:
    """The line for pictures that are new; a row has the names of all there are so far.

    Args:
        key: The trial's.
        row: Of the trial.
        storage: See ``TrialRecord``.
        ledger: What the journal says.
    """
    new = [name for name in row.get("pictures", ()) if (key, name) not in ledger.pictures]
    folder = f"{storage}/{PICTURES}"
    line = {"event": "pictures", "ms": now_ms(), "key": key, "folder": folder, "names": new}
    return [line] if new else []


def lacking(end: TrialEnd, ledger: Ledger) -> list[Event]:
    """The lines of an ended trial that a journal lacks: begin, last numbers, pictures, end."""
    key = end.record.key
    begins = [] if key in ledger.attempts else [begun(end.record, ledger)]
    if not begins and ledger.statuses.get(key) == end.status:
        return []
    result = end.row.get("result") if end.status == "finished" else None
    last = ended(key, end.status, end.error, result)
    pictures = drawn(key, end.row, end.record.storage, ledger)
    return [*begins, *measured(key, end.row, ledger), *pictures, last]
