"""Writes the files that become a run's artifacts, for one line of the journal at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycl import yaml12
from raycl.tracking import pictures, plots
from raycl.tracking.changes import TABLE
from raycl.tracking.records import PICTURES, Event

RESULTS, PLOTS, SWEEP = "results", "plots", "sweep"
MATRIX = f"{RESULTS}/matrix.json"


def folders(event: Event, drawn: bool) -> list[str]:
    """Folders that are among a run's artifacts once the files of a line are.

    Args:
        event: The line.
        drawn: Whether pictures are wanted.
    """
    if event["event"] == "sweep":
        return [SWEEP]
    if event["event"] == "pictures":
        return [PICTURES] if drawn else []
    result = event.get("result")
    if not result:
        return []
    shown = result.get("matrices") or result.get("histograms")
    return [RESULTS, PLOTS] if drawn and shown else [RESULTS]


def write(event: Event, sweep: Path, to: Path, drawn: bool) -> bool:
    """Write the files of a line into an empty folder, below it as they will be below the run.

    Args:
        event: The line.
        sweep: The sweep's folder.
        to: Where to.
        drawn: Whether pictures are wanted.

    Returns:
        Whether there are any.
    """
    for folder in (found := folders(event, drawn)):
        (to / folder).mkdir()
    if not found:
        return False
    if event["event"] == "sweep":
        resolved = yaml12.dump(event["resolved"])
        (to / SWEEP / "sweep.yaml").write_text(event["yaml"], encoding="utf-8")
        (to / SWEEP / "resolved.yaml").write_text(resolved, encoding="utf-8")
    elif event["event"] == "pictures":
        return bool(pictures.copy(event["names"], event["folder"], sweep, to / PICTURES))
    else:
        _write_result(event["result"], to, drawn)
    return True


def _write_result(result: dict[str, Any], to: Path, drawn: bool) -> None:
    """The exact result, the final table and the pictures of a finished trial."""
    (to / MATRIX).write_text(json.dumps(result, indent=2), encoding="utf-8")
    table = to / TABLE
    table.parent.mkdir()
    table.write_text(json.dumps(plots.final_table(result)), encoding="utf-8")
    if drawn:
        for name, picture in plots.pictures(result):
            picture.save(to / PLOTS / f"{name}.png")
