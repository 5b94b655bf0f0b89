"""The write-ahead journal: every event of a sweep as one JSON line, before MLflow hears of it.

The driver appends; the writer thread and `raycl sync` read from a byte offset. A line is never
changed, so a killed driver loses at most the line it was writing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from raycl.atomic import sync_folder
from raycl.errors import UserError
from raycl.tracking.records import (
    EVENTS,
    LASTING,
    Event,
    SweepStatus,
    TrialStatus,
    ended,
    now_ms,
    size,
)

log = logging.getLogger(__name__)

JOURNAL = "tracking.jsonl"
LOCK = "tracking.lock"


def _plain(value: Any) -> Any:
    """What ``json`` does not know: numpy values as numbers and lists, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Journal:
    """The appending end.

    A line that a killed process left unfinished is ended first, so that it stays a line of its own
    (which readers skip). Lines reach the operating system at once: a SIGKILL loses nothing. Those
    of ``records.LASTING`` reach the disk, too: a power cut loses metrics of the last seconds.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab", buffering=0)
        sync_folder(path.parent)
        if self._file.tell() and not _ends_a_line(path):
            self._file.write(b"\n")

    def append(self, events: list[Event]) -> None:
        """Append lines, all of them or none.

        Raises:
            OSError: They do not fit on the disk; what of them was written is cut off again.
        """
        lines = [json.dumps(event, default=_plain, separators=(",", ":")) for event in events]
        left = memoryview("".join(f"{line}\n" for line in lines).encode())
        end = self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) :]
            if any(event.get("event") in LASTING for event in events):
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path, offset: int = 0, *, metrics: bool = True) -> Iterator[tuple[int, int, Event]]:
    """Read complete lines from a byte offset.

    Args:
        path: The journal; one that does not exist is empty.
        offset: Where to begin, the start of a line.
        metrics: Whether to yield lines of metrics, which are most of a journal.

    Yields:
        (start, end, event) with the byte offsets of the line. An unfinished last line is left for
        the next call; a damaged line in the middle is skipped with a warning.
    """
    for start, end, line in _lines(path, offset):
        if metrics or not line.startswith(_METRICS):
            event = _parsed(line)
            if event is None:
                _warn(path, start)
            else:
                yield start, end, event


def chunk(path: Path, offset: int, limit: int) -> tuple[list[tuple[int, Event]], int]:
    """Read complete lines from a byte offset until they are about ``limit`` bytes.

    Returns:
        Each event with the offset of its line, and where the bytes end, damaged lines included.
    """
    events: list[tuple[int, Event]] = []
    after = offset
    for start, end, line in _lines(path, offset):
        event = _parsed(line)
        if event is None:
            _warn(path, start)
        else:
            events.append((start, event))
        after = end
        if after - offset >= limit:
            break
    return events, after


def _lines(path: Path, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield complete lines from a byte offset, with the offsets of their ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        start = offset
        while (line := file.readline()).endswith(b"\n"):
            end = start + len(line)
            yield start, end, line
            start = end


def _warn(path: Path, start: int) -> None:
    """Name the first unreadable line of a journal, once."""
    if path not in _WARNED:
        _WARNED.add(path)
        log.warning("%s: skipped an unreadable line at byte %d, and any further ones", path, start)


_WARNED: set[Path] = set()
_METRICS = b'{"event":"metrics"'


def _parsed(line: bytes) -> Event | None:
    """The event of a line; None if it is damaged."""
    try:
        event: Event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("event") in EVENTS else None


TAIL = 4096


def tail(path: Path, offset: int) -> str | None:
    """A hash of the last bytes before an offset, at most ``TAIL``.

    Args:
        path: The journal; one that does not exist is empty.
        offset: Where the bytes end.

    Returns:
        ``None`` if the journal is shorter than that.
    """
    if not path.exists() or path.stat().st_size < offset:
        return None if offset else ""
    with path.open("rb") as file:
        file.seek(max(0, offset - TAIL))
        return hashlib.sha256(file.read(min(TAIL, offset))).hexdigest()[:16]


def count(path: Path, offset: int) -> int:
    """Number of values (``records.size``) from a byte offset to the end."""
    return sum(size(event) for _, _, event in read(path, offset))


@dataclass
class Ledger:
    """What a journal says so far, per trial key.

    Attributes:
        marks: Highest step seen on each axis: (key, axis) -> step.
        attempts: How often the trial was started.
        statuses: How the trial ended; None while it is open.
        nonfinite: How many values were dropped because they were not finite.
        pictures: (key, name) of those there are.
        finished: Trials that have finished at some time, even if they were started again since.
        sweeps: How often the sweep was started.
        closed: How the last execution of the sweep ended; None: it was not closed.
    """

    marks: dict[tuple[str, str], int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, str | None] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    pictures: set[tuple[str, str]] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    sweeps: int = 0
    closed: SweepStatus | None = "FINISHED"

    @classmethod
    def of(cls, path: Path, limit: int | None = None) -> Ledger:
        """Read a journal, or its first ``limit`` bytes."""
        ledger = cls()
        for _, end, event in read(path):
            if limit is not None and end > limit:
                break
            ledger.add(event)
        return ledger

    @property
    def open_trials(self) -> list[str]:
        """Keys of the trials that were started and have not ended."""
        return [key for key, status in self.statuses.items() if status is None]

    def add(self, event: Event) -> None:
        """Account for one line."""
        match event["event"]:
            case "metrics":
                mark = (event["key"], event["axis"])
                self.marks[mark] = max(event["step"], self.marks.get(mark, event["step"]))
                self.nonfinite[event["key"]] = event["nonfinite"]
            case "trial":
                self.attempts[event["key"]] = event["attempt"]
                self.statuses[event["key"]] = None
            case "pictures":
                self.pictures |= {(event["key"], name) for name in event["names"]}
            case "end":
                self.statuses[event["key"]] = event["status"]
                if event["status"] == "finished":
                    self.finished.add(event["key"])
            case "sweep":
                self.sweeps += 1
                self.closed = None
            case "close":
                self.closed = event["status"]


def left_open(path: Path, ledger: Ledger, how: TrialStatus) -> list[Event]:
    """The lines that end what a driver left open.

    Args:
        path: The journal.
        ledger: What it says.
        how: The end of these trials; one that has finished before, and was only started again
            because its outcome was lost, ends as it did then: what is finished stays so.
    """
    opened = ledger.open_trials
    again: dict[str, Event] = {}
    if ledger.finished.intersection(opened):
        for _, _, event in read(path):
            if event["event"] == "end" and event["status"] == "finished":
                again[event["key"]] = event
    return [again[key] | {"ms": now_ms()} if key in again else ended(key, how) for key in opened]


class Lock:
    """Held by the one process that may append to a journal and send it.

    The operating system releases it when the process dies, however it dies; a free lock beside an
    open journal therefore means that the driver is dead.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / LOCK).open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                str(directory), "another process is running this sweep", "wait for it or stop it"
            ) from None
        except OSError as error:
            self._file.close()
            what = f"{directory}: its file system has no locks: {error.strerror}"
            raise UserError("--runs", what, "give a folder on another file system") from error

    def release(self) -> None:
        """Let the next process have it."""
        self._file.close()


def locked(directory: Path) -> bool:
    """Whether a live process holds the journal in this directory."""
    try:
        with (directory / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it is somebody else's: nothing is known of a process
        return False
    return False
