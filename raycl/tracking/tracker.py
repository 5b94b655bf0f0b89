"""The driver's side of tracking: note what happens, and let a thread send it to MLflow."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from raycl.tracking import store
from raycl.tracking.journal import JOURNAL, Journal, Ledger, Lock, left_open
from raycl.tracking.lines import begun, drawn, lacking, measured, started
from raycl.tracking.records import (
    Event,
    SweepRecord,
    SweepStatus,
    TrialEnd,
    TrialRecord,
    TrialStatus,
    closing,
    ended,
    size,
)
from raycl.tracking.writer import Writer
from raycl.trial.run import failure

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PERIOD_S = 2.0
BACKOFF_S = (1.0, 60.0)


class Tracker:
    """Follows one sweep. Calls return at once: they append to the journal and nothing else.

    A daemon thread sends the journal to MLflow. While MLflow is away the thread tries again, ever
    less often; what is still unsent at the end stays in the journal for ``sync.sync``. MLflow never
    raises into the caller. A journal that cannot be written (disk full) does: the sweep is to end.
    The lines are kept, and written before the next ones; ``lost`` counts those that never could be.

    Args:
        sweep: The execution that is followed.
        directory: Folder of the sweep; the journal and its state are kept here.
        uri: Absolute tracking URI, from ``store.resolve``.
        artifacts: Where files of a new experiment go; None leaves it to the server.
        connect: Makes the MLflow client (for tests).
    """

    def __init__(
        self,
        sweep: SweepRecord,
        directory: Path,
        uri: str,
        artifacts: str | None,
        connect: Callable[[str], MlflowClient] | None = None,
    ) -> None:
        store.kind(uri)
        self._sweep, self._directory = sweep, directory
        self._writer_args = (directory, uri, artifacts, connect)
        self._append_lock = threading.Lock()
        self._wake, self._closing, self._abandon = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run, name="raycl-tracking", daemon=True)
        self._storage: dict[str, str] = {}
        self._steps = 0
        self._unwritten: list[Event] = []
        self.problem: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread is there; after a ``close`` that gave up it may be, for one call."""
        return self._thread.is_alive()

    @property
    def lost(self) -> int:
        """How many values the journal lacks, for it could not be written."""
        return sum(map(size, self._unwritten))

    def start(self, ends: Sequence[TrialEnd] = ()) -> None:
        """Open the journal, note the (re)start of the sweep, start sending.

        What is known of ended trials and not noted is noted first. Other trials that an earlier,
        killed driver left open are ended as ``orphaned``; those it goes on with are running again
        once ``trial_started`` is called.

        Args:
            ends: How trials have ended, from the sweep's own records.

        Raises:
            UserError: Another live process follows this sweep.
            OSError: The journal cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self._directory)
        path = self._directory / JOURNAL
        self._ledger = Ledger.of(path)
        self._journal = Journal(path)
        for end in ends:
            if missing := lacking(end, self._ledger):
                log.warning("%s lacked the end of %s; it is noted now", JOURNAL, end.record.name)
                self._append(missing)
        self._append(left_open(path, self._ledger, "orphaned"))
        self._append([started(self._sweep, git_commit())])
        self._writer = Writer(*self._writer_args)
        self._thread.start()

    def trial_started(self, record: TrialRecord) -> None:
        """A trial begins, or begins again after a failure or a resume.

        Raises:
            OSError: The journal cannot be written, as for every call but ``close``.
        """
        with self._append_lock:
            self._storage[record.key] = record.storage
            self._append([begun(record, self._ledger)])

    def trial_row(self, key: str, row: Mapping[str, Any]) -> None:
        """A row of ``raycl.training.run.Run.advance``. What was seen before is left out."""
        with self._append_lock:
            events = measured(key, row, self._ledger)
            self._append(events + drawn(key, row, self._storage.get(key, ""), self._ledger))

    def trial_ended(
        self,
        key: str,
        status: TrialStatus,
        row: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """A trial is over.

        Args:
            key: The trial's.
            status: How it ended.
            row: Its last row, if there was one; ``row["result"]`` becomes the run's files.
            error: Why it failed.
        """
        if status not in get_args(TrialStatus):
            raise ValueError(f"{status!r} is none of {get_args(TrialStatus)}")
        row = row or {}
        if row:
            self.trial_row(key, row)
        if error is None:
            error = failure(row)
        result = row.get("result") if status == "finished" else None
        with self._append_lock:
            self._append([ended(key, status, error, result)])

    def close(self, status: SweepStatus, timeout_s: float = 30.0) -> int:
        """End the sweep: trials that are still open were killed; send what is left.

        Returns as soon as everything is sent or MLflow fails; gives up ``timeout_s`` after the last
        progress. Closing again does nothing.

        Returns:
            How many values are not in MLflow; ``sync.sync`` sends them later.
        """
        if status not in get_args(SweepStatus):
            raise ValueError(f"{status!r} is none of {get_args(SweepStatus)}")
        if self._closing.is_set():
            return self._writer.left() + self.lost
        with self._append_lock:
            ends = left_open(self._directory / JOURNAL, self._ledger, "killed")
            try:
                self._append(closing(self._ledger.statuses, ends, status))
            except OSError as error:
                log.error("%s cannot be written (%s): values are lost", JOURNAL, error)
        self._closing.set()
        self._wake.set()
        seen, deadline = self._steps, time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.05)
            if self._steps != seen:
                seen, deadline = self._steps, time.monotonic() + timeout_s
        self._abandon.set()
        self._journal.close()
        return self._writer.left() + self.lost

    # -- inside ----------------------------------------------------------------------------------

    def _append(self, events: list[Event]) -> None:
        for event in events:
            self._ledger.add(event)
        self._unwritten += events
        if self._unwritten:
            self._journal.append(self._unwritten)
            self._unwritten = []

    def _run(self) -> None:
        try:
            self._send_all()
        finally:
            self._lock.release()

    def _send_all(self) -> None:
        """Send, wait a little, send; after a failure wait longer each time."""
        delay = BACKOFF_S[0]
        while not self._abandon.is_set():
            closing = self._closing.is_set()  # read before the journal, which is complete by then
            try:
                more = self._writer.step()
                self._writer.heartbeat()
            except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
                self._failed(error)
                if closing:
                    return
                self._wake.wait(delay)
                delay = min(2 * delay, BACKOFF_S[1])
                continue
            if self.problem:
                log.warning("MLflow answers again")
            delay, self.problem = BACKOFF_S[0], None
            self._steps += 1
            if not more:
                if closing:
                    return
                self._wake.wait(PERIOD_S)

    def _failed(self, error: Exception) -> None:
        reason = store.reason(error)
        if self.problem is None:
            log.warning(
                "MLflow does not take values now (%s); they are kept in %s",
                reason,
                self._directory / JOURNAL,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )
        self.problem = reason


def git_commit() -> dict[str, str]:
    """The commit of the current directory, ``-dirty`` if files differ; nothing outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": done.stdout.strip()}
