"""A sweep's own records, for its table and for a tracking store that lacks something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from raycl import yaml12
from raycl.atomic import Damaged
from raycl.errors import UserError
from raycl.report.load import TrackedSweep
from raycl.report.load import load as load_tracked
from raycl.report.local import from_lines, joined
from raycl.sweep.file import spec
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome
from raycl.sweep.record.tracked import end_of, sweep_record
from raycl.tracking import Synced, TrialEnd, journal
from raycl.tracking import sync as send
from raycl.tracking.journal import JOURNAL, Ledger, locked
from raycl.tracking.lines import lacking
from raycl.tracking.records import Event, SweepRecord
from raycl.tracking.state import store_of
from raycl.trial.checkpoint import TRIALS, runs_root


def ends(folder: SweepFolder, outcomes: Iterable[Outcome]) -> list[TrialEnd]:
    """How trials have ended, as the tracker is told.

    Args:
        folder: The sweep's folder.
        outcomes: How its trials have ended so far.
    """
    try:
        storage = folder.identity()["resolved"].get("storage")
    except (Damaged, FileNotFoundError):
        storage = None
    where = folder.storage(storage) if storage else TRIALS
    return [end_of(outcome, where) for outcome in outcomes]


def load(folder: SweepFolder) -> TrackedSweep | None:
    """The sweep as its folder has it; ``None`` if it has nothing.

    What the journal lacks comes from the outcomes; nothing is written.
    """
    path, outcomes = folder.path / JOURNAL, folder.outcomes
    ended = ends(folder, outcomes.all())
    if not path.is_file() and not ended:
        return None
    ledger = Ledger()
    lines: list[Event] = []
    for _, _, event in journal.read(path, metrics=False):
        ledger.add(event)
        lines.append(event)
    for end in ended:
        lines += lacking(end, ledger)
    sweep_id, resolved = _identity(folder, lines)
    open_end = "running" if locked(folder.path) else "orphaned"
    found = from_lines(folder.name, sweep_id, resolved, lines, open_end)
    rows = {outcome.key: outcome.row for outcome in outcomes.all()}
    runs = [replace(run, metrics=_numbers(rows.get(run.trial_key, {}))) for run in found.runs]
    return replace(found, runs=runs)


def _identity(folder: SweepFolder, lines: Iterable[Event]) -> tuple[str, dict[str, Any]]:
    try:
        identity = folder.identity()
        return str(identity["sweep_id"]), identity["resolved"]
    except (Damaged, FileNotFoundError):
        sweeps = [line for line in lines if line["event"] == "sweep"]
        return (sweeps[-1]["sweep_id"], sweeps[-1]["resolved"]) if sweeps else ("", {})


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, Real)}


def read(name: str, runs: Path | None, uri: str | None) -> tuple[TrackedSweep, list[str]]:
    """A sweep for its report: what the folder has, and what a tracking store adds.

    Args:
        name: The sweep's.
        runs: Folder of all runs.
        uri: A tracking store that is to be read alone; ``None``: the one the sweep used.

    Returns:
        The sweep, and lines to be said of differences between the two.

    Raises:
        UserError: There is no such sweep, or it is nowhere to be read.
    """
    root = runs_root(runs)
    folder = SweepFolder(root, name)
    where = store_of(folder.path, uri).uri
    local = load(folder) if uri is None and folder.path.is_dir() else None
    if local is None:
        return load_tracked(name, where), []
    return with_store(local, where)


def with_store(local: TrackedSweep, uri: str) -> tuple[TrackedSweep, list[str]]:
    """See ``read``: the sweep of a folder joined with its copy in a store."""
    have = {run.trial_key for run in local.runs if run.result is not None}
    try:
        tracked = load_tracked(local.name, uri, local.sweep_id, have)
    except UserError as error:
        return local, [f"the table is from the sweep's folder: {error.what}"]
    finished = {run.trial_key for run in tracked.runs if run.end == "finished"}
    lacks = len(have - finished)
    text = (
        f"MLflow lacks {lacks} of {len(have)} finished trials; send them: raycl sync {local.name}"
    )
    return joined(local, tracked), [text] if lacks else []


def sync(folder: SweepFolder, uri: str | None) -> Synced:
    """Send what a tracking store lacks of a sweep, as its folder has it; see ``tracking.sync``."""
    for line in _mended(folder):
        print(line)
    return send(folder.path, uri, _record(folder), ends(folder, folder.outcomes.all()))


def _mended(folder: SweepFolder) -> Iterator[str]:
    with folder.lock():
        yield from folder.mend()


def _record(folder: SweepFolder) -> SweepRecord:
    identity = folder.identity()
    text = yaml12.dump(identity["resolved"])
    return sweep_record(spec.load_begun(folder.resolved_file), identity["sweep_id"], text)
