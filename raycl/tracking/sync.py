"""Send what a sweep could not send while it ran, and close runs whose driver is dead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raycl.errors import UserError
from raycl.tracking import store
from raycl.tracking.journal import JOURNAL, Journal, Ledger, Lock, left_open, locked
from raycl.tracking.lines import lacking, started
from raycl.tracking.records import SweepRecord, TrialEnd, closing
from raycl.tracking.state import STATE, State, is_private, store_of
from raycl.tracking.writer import Writer


class Synced(NamedTuple):
    """What ``sync`` did: values sent, values still waiting, and why they are."""

    sent: int
    left: int
    problem: str | None


def sync(
    directory: Path,
    uri: str | None = None,
    sweep: SweepRecord | None = None,
    ends: Sequence[TrialEnd] = (),
) -> Synced:
    """Send a sweep's journal to MLflow, as far as it is not there, with its files.

    The driver of the sweep must be gone; trials it left open are ended as ``orphaned``.

    Args:
        directory: Folder of the sweep.
        uri: Tracking URI; None: the one the sweep used.
        sweep: The sweep, for a journal that has lost its beginning.
        ends: How trials have ended, from the sweep's own records.

    Raises:
        UserError: There is nothing to send, its driver is alive, or MLflow does not answer.
    """
    path = directory / JOURNAL
    if not path.exists() and not ends:
        raise UserError(str(directory), f"nothing was tracked here (no {JOURNAL})")
    used = store_of(directory, uri)
    lock = Lock(directory)
    try:
        store.check(used.uri)
        complete(path, sweep, ends)
        writer = Writer(directory, *used, thorough=True)
        before, problem = writer.left(), None
        try:
            writer.connect()
            before = writer.left()
            while writer.step():
                pass
        except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
            problem = store.reason(error)
        left = writer.left()
        return Synced(max(before - left, 0), left, problem or writer.refusal)
    finally:
        lock.release()


def complete(path: Path, sweep: SweepRecord | None, ends: Sequence[TrialEnd]) -> None:
    """Note what a journal lacks: its beginning, ends of trials, the end of the sweep.

    Args:
        path: The journal; its driver is gone.
        sweep: See ``sync``.
        ends: See ``sync``.
    """
    ledger = Ledger.of(path)
    status = ledger.closed or "KILLED"
    events = [started(sweep, {})] if sweep is not None and not ledger.sweeps else []
    for end in ends:
        events += lacking(end, ledger)
    for event in events:
        ledger.add(event)
    if events or not ledger.closed or ledger.open_trials:
        journal = Journal(path)
        journal.append(events)
        journal.append(closing(ledger.statuses, left_open(path, ledger, "orphaned"), status))
        journal.close()


def orphans(runs: Path) -> list[Path]:
    """Folders of sweeps that no live process follows and MLflow does not know the end of.

    Either values are left in the journal, or the driver died without closing its runs; ``sync``
    puts both right.
    """
    found = []
    for path in sorted(runs.glob(f"[!.]*/{JOURNAL}")):
        if (_unsent(path) or not Ledger.of(path).closed) and not locked(path.parent):
            found.append(path.parent)
    return found


def _unsent(path: Path) -> bool:
    """Whether MLflow lacks values of a journal; of somebody else's nothing is known of that."""
    state = path.parent / STATE
    if is_private(state):
        return False
    saved = State.saved(state)
    return saved is None or saved.offset < path.stat().st_size or bool(saved.files or saved.refused)
