"""Send what a sweep could not send while it ran, and close runs whose driver is dead."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from raycl.errors import UserError
from raycl.tracking import store
from raycl.tracking.journal import JOURNAL, Journal, Ledger, Lock, locked
from raycl.tracking.records import closing
from raycl.tracking.writer import STATE, State, Writer


class Synced(NamedTuple):
    """What `sync` did: values sent, values still waiting, and why they are."""

    sent: int
    left: int
    problem: str | None


def sync(directory: Path, uri: str | None = None) -> Synced:
    """Send a sweep's journal to MLflow, as far as it is not there.

    The driver of the sweep must be gone; trials it left open are ended as ``orphaned``.

    Args:
        directory: Folder of the sweep.
        uri: Tracking URI; None: the one the sweep used.

    Raises:
        UserError: There is no journal, its driver is alive, or MLflow does not answer.
    """
    path = directory / JOURNAL
    if not path.exists():
        raise UserError(str(directory), f"nothing was tracked here (no {JOURNAL})")
    saved = State.saved(directory / STATE)
    if uri is None and saved is not None:
        used = store.Store(saved.uri, saved.artifacts)
    else:
        used = store.resolve(directory.parent, uri)
    lock = Lock(directory)
    try:
        store.check(used.uri)
        _end(path)
        writer = Writer(directory, *used)
        before, problem = writer.left(), None
        try:
            while writer.step():
                pass
        except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
            problem = store.reason(error)
        left = writer.left()
        return Synced(max(before - left, 0), left, problem)
    finally:
        lock.release()


def _end(path: Path) -> None:
    """Note the end of a sweep whose driver did not."""
    ledger = Ledger.of(path)
    if not ledger.closed or ledger.open_trials:
        journal = Journal(path)
        journal.append(closing(ledger.statuses, "orphaned", "KILLED"))
        journal.close()


def orphans(runs: Path) -> list[Path]:
    """Folders of sweeps that no live process follows and MLflow does not know the end of.

    Either values are left in the journal, or the driver died without closing its runs; `sync`
    puts both right.
    """
    found = []
    for path in sorted(runs.glob(f"*/{JOURNAL}")):
        saved = State.saved(path.parent / STATE)
        unsent = saved is None or saved.offset < path.stat().st_size or bool(saved.files)
        if (unsent or not Ledger.of(path).closed) and not locked(path.parent):
            found.append(path.parent)
    return found
