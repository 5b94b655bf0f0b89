"""The only MLflow client: sends what the journal holds, in order, in few calls, as often as needed.

Sending is idempotent, so that a lost answer or a killed driver costs a repetition and nothing else:
runs are found by the tags ``raycl.sweep_id`` and ``raycl.trial_key`` before one is created, MLflow
drops a metric point it has already (same key, timestamp, step and value), params and tags are set
to the same values, files are overwritten.

How far the journal has been sent is written down twice: here, and in the sweep's own run (see
``examine``). A store that says less than is written here, or lacks runs, gets everything again.
"""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import raycl
from raycl.errors import NO_ROOM
from raycl.tracking import artifacts, journal, names, store, views
from raycl.tracking.calls import Calls, Item
from raycl.tracking.changes import END_TAGS, NOTE, Changes, fold
from raycl.tracking.examine import SENT, deleted, find_runs, lacking
from raycl.tracking.records import Event, SweepRecord
from raycl.tracking.state import STATE, State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

CHUNK_BYTES = 1_000_000
HEARTBEAT_S = 60.0
TURNS = ("sweep", "trial", "end", "close")
"""Events with which a run begins or ends."""


class Writer:
    """Sends one sweep's journal. Every method but ``__init__`` may raise whatever the store does.

    Args:
        directory: Folder of the sweep, with the journal and the state.
        uri: Absolute tracking URI.
        artifacts: Where files of a new experiment go; None: the server decides.
        connect: Makes the client; called again after every failure.
        thorough: Look also, run by run, for files that the store has lost.
    """

    def __init__(
        self,
        directory: Path,
        uri: str,
        artifacts: str | None,
        connect: Callable[[str], MlflowClient] | None = None,
        thorough: bool = False,
    ) -> None:
        self._journal = directory / journal.JOURNAL
        self._state_path = directory / STATE
        self._connect_to = connect or _client
        self.state = State.load(self._state_path, uri, artifacts)
        tail = journal.tail(self._journal, self.state.offset)
        if tail is None or (self.state.tail and tail != self.state.tail):
            log.warning("%s is not what was sent of it: sending all of it", self._journal)
            self.state = State(uri, artifacts)
        self._thorough, self._examined = thorough, False
        self._calls: Calls | None = None
        self._runs: dict[str, str] = {}
        self._deleted: set[str] = set()
        self._sent_before = 0
        self._starts: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._named: set[str] = set()
        self._sweep: SweepRecord | None = None
        self._experiment_id = ""
        self._beat = 0.0
        self.state.save(self._state_path)  # `sync` must know where to, even if MLflow never answers

    def step(self) -> bool:
        """Send the next chunk of the journal and the files of one line.

        Returns:
            Whether more is known to be waiting.
        """
        try:
            calls = self._calls or self.connect()
            if calls is None:
                return False
            full = self._send(calls)
            self._upload(calls)
            return full or bool(self.state.files)
        except Exception:
            self._calls = None  # look the runs up again: the last call may have had an effect
            raise

    def left(self) -> int:
        """How many values MLflow does not have (a file counts as one), those it refused included.

        What belongs to a run that somebody deleted is not among them.
        """
        waiting = journal.count(self._journal, self.state.offset) + len(self.state.files)
        return waiting + sum(self.state.refused.values())

    @property
    def refusal(self) -> str | None:
        """What MLflow refused last, and why."""
        return self._calls.refusal if self._calls else None

    def heartbeat(self) -> None:
        """Tell MLflow once a minute that the driver lives."""
        parent = self.state.parent_run_id
        if self._calls and parent and time.monotonic() - self._beat > HEARTBEAT_S:
            self._tag(self._calls, parent, "raycl.heartbeat", str(int(time.time())))
            self._beat = time.monotonic()

    def _tag(self, calls: Calls, run_id: str, key: str, value: str) -> None:
        """Set a tag that nobody misses."""
        calls.one(key, -1, calls.client.set_tag, run_id, key, value)

    # -- connecting ------------------------------------------------------------------------------

    def connect(self) -> Calls | None:
        """Make a client, find the experiment and its runs, and see whether they are what was sent.

        Returns:
            ``None`` while the journal says of no sweep.
        """
        starts = [
            (end, event)
            for _, end, event in journal.read(self._journal, metrics=False)
            if event["event"] == "sweep"
        ]
        if not starts:
            return None
        sent = [event for end, event in starts if end <= self.state.offset]
        self._sweep = _record(sent[-1] if sent else starts[0][1])
        client = self._connect_to(self.state.uri)
        self._experiment_id = self._experiment(client, self._sweep)
        if self._experiment_id != self.state.experiment_id:  # first time, or an emptied store
            self._again()
        found = find_runs(client, self._experiment_id, self._sweep.sweep_id)
        self._runs = {key: run.info.run_id for key, run in found.items() if not deleted(run)}
        self._deleted = found.keys() - self._runs.keys()
        self.state.parent_run_id = self._runs.get("")
        calls = Calls(client, self.state, self._named)
        if not self._examined:
            self._examine(calls, found)
            self._examined = True
        self._calls = calls
        return calls

    def _again(self) -> None:
        """Send everything, from the beginning."""
        self._sent_before = max(self._sent_before, self.state.offset)
        uri, artifacts = self.state.uri, self.state.artifacts
        self.state = State(uri, artifacts, experiment_id=self._experiment_id)

    def _examine(self, calls: Calls, found: Mapping[str, Run]) -> None:
        """Compare the store with what was sent to it, once; what it refused is tried again."""
        ledger = journal.Ledger()
        for start, end, event in journal.read(self._journal):
            if event["event"] == "trial":
                self._starts.setdefault(event["key"], start)
            if event["event"] in TURNS:
                self._turns[event.get("key", "")] = start
            if end <= self.state.offset:
                ledger.add(event)
        if self.state.offset and (lack := lacking(ledger, self.state.offset, found)):
            log.warning("%s %s: it is sent again", store.shown(self.state.uri), lack)
            self._again()
            self.state.parent_run_id = self._runs.get("")
            calls.state = self.state
            return
        with self._all_or_none():
            refused, self.state.refused = self.state.refused, {}
            for line in sorted(map(int, refused)):
                again = self._line(line)
                if again is not None:
                    self._send_again(calls, line, again)
        if self._thorough:
            self.state.files += self._lost_files(calls)
        calls.state.save(self._state_path)

    def _send_again(self, calls: Calls, line: int, event: Event) -> None:
        """Send a line of which something was refused.

        A run that the line began stays as it is: it may have ended since. So does one that the line
        ended and that began again. One that was deleted by hand stays deleted.
        """
        from mlflow.entities import RunTag

        if event["event"] in ("end", "close") and line < self._turns[event.get("key", "")]:
            return
        if event["event"] not in ("sweep", "trial"):
            self._apply_all(calls, [(line, event)])
        elif (run_id := self._runs.get(event.get("key", ""))) is None:
            return
        else:
            tags = self._tags(event)
            tags.pop(NOTE, None)  # people may have edited it
            own: list[Item] = [(line, RunTag(key, value)) for key, value in tags.items()]
            calls.values(run_id, [*_params(line, event.get("params", {})), *own])
        self.state.files += [line] if self._folders(event) else []

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Keep what is noted inside only if it ends well: else it is done again, and noted then."""
        state, refused, files = self.state, dict(self.state.refused), list(self.state.files)
        try:
            yield
        except Exception:
            state.refused, state.files = refused, files
            raise

    def _lost_files(self, calls: Calls) -> list[int]:
        """Lines that were sent and whose files are not among a run's artifacts."""
        wanted: dict[tuple[str, str], list[int]] = {}
        for start, end, event in journal.read(self._journal, metrics=False):
            for folder in self._folders(event) if end <= self.state.offset else ():
                lines = wanted.setdefault((event.get("key", ""), folder), [])
                lines[:] = [*(lines if event["event"] == "pictures" else []), start]
        lost = {
            line
            for (key, folder), lines in wanted.items()
            if key in self._runs and not calls.client.list_artifacts(self._runs[key], folder)
            for line in lines
        }
        return sorted(lost.difference(self.state.files))

    def _folders(self, event: Event) -> list[str]:
        """Folders of artifacts that a line fills."""
        assert self._sweep is not None
        return artifacts.folders(event, self._sweep.pictures)

    def _line(self, start: int) -> Event | None:
        """The event of a line; None if it cannot be read (any more)."""
        found = next(journal.read(self._journal, start), None)
        return found[2] if found is not None and found[0] == start else None

    def _experiment(self, client: MlflowClient, sweep: SweepRecord) -> str:
        found = client.get_experiment_by_name(sweep.name)
        root = self.state.artifacts
        if found is None:
            return str(
                client.create_experiment(
                    sweep.name,
                    artifact_location=root and f"{root}/{quote(sweep.name)}",
                    tags={
                        "mlflow.experimentKind": "custom_model_development",
                        NOTE: names.experiment_note(sweep),
                        **views.saved_views(sweep),
                    },
                )
            )
        if found.lifecycle_stage == "deleted":
            log.warning("experiment %r had been deleted in MLflow; it is restored", sweep.name)
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    # -- sending ---------------------------------------------------------------------------------

    def _send(self, calls: Calls) -> bool:
        """Send one chunk; whether it was full, so that another may follow."""
        begin = self.state.offset
        lines, end = journal.chunk(self._journal, begin, CHUNK_BYTES)
        if end == begin:
            return False
        with self._all_or_none():
            self._apply_all(calls, lines)
        self.state.files += [start for start, event in lines if self._folders(event)]
        self.state.offset = end
        self.state.tail = journal.tail(self._journal, self.state.offset) or ""
        if parent := self._runs.get(""):
            self._tag(calls, parent, SENT, str(self.state.offset))
        self.state.save(self._state_path)
        return self.state.offset - begin >= CHUNK_BYTES

    def _apply_all(self, calls: Calls, lines: Sequence[tuple[int, Event]]) -> None:
        for key, changes in fold(lines).items():
            run_id = self._run(calls, key, changes)
            if run_id is not None:
                self._apply(calls, run_id, changes)

    def _tags(self, event: Event) -> dict[str, str]:
        """Tags of a run when it starts."""
        assert self._sweep is not None
        own: dict[str, Any] = {"sweep_id": self._sweep.sweep_id, "version": raycl.__version__}
        if event["event"] == "sweep":
            own |= {"kind": "sweep", NOTE: names.sweep_note(self._sweep)}
        else:
            own |= {"trial_key": event["key"], "attempt": event["attempt"]}
            own |= {"mlflow.parentRunId": self._runs.get("")}  # none if deleted by hand
        given = event["tags"] if event["event"] == "trial" else {}
        return names.tags(self._sweep.tags) | names.tags(given) | names.tags(own)

    def _run(self, calls: Calls, key: str, changes: Changes) -> str | None:
        """The run of a key, created if need be; None if it cannot be (it was deleted by hand)."""
        found, start, client = self._runs.get(key), changes.start, calls.client
        if start is not None and start["event"] == "sweep":
            self._sweep = _record(start)
        if found is None and key in self._deleted and changes.line < self._sent_before:
            return None
        if start is None and found is None and key in self._starts and key not in self._deleted:
            start = self._line(self._starts[key])  # its line is damaged, or further down
        if start is None:
            if found is None:
                name = f"trial {key}" if key else "the sweep"
                log.warning("the run of %s is gone from MLflow; its values stay in the file", name)
            return found
        tags = self._tags(start)
        if found is None:
            run = client.create_run(
                self._experiment_id, start["ms"], tags | _user(), run_name=start["name"]
            )
            found = self._runs[key] = str(run.info.run_id)
            if changes.status == "RUNNING":  # as it was made
                changes.status = None
        else:
            self._reopen(calls, found)
            tags.pop(NOTE, None)  # people may have edited it
            changes.tags = tags | changes.tags
        if key:
            line = changes.start_line if changes.start else self._starts[key]
            changes.params = _params(line, start["params"])
        else:
            self.state.parent_run_id = found
        return found

    def _reopen(self, calls: Calls, run_id: str) -> None:
        """Take back how the run ended before; a description goes only with our error in it."""
        run = calls.one("a run", -1, calls.client.get_run, run_id)
        tags = set(END_TAGS) & set(run.data.tags if run else ())
        for tag in tags if "raycl.error" in tags else tags - {NOTE}:
            calls.one(tag, -1, calls.client.delete_tag, run_id, tag)

    def _apply(self, calls: Calls, run_id: str, changes: Changes) -> None:
        from mlflow.entities import RunTag

        tags = [(changes.line, RunTag(key, value)) for key, value in changes.tags.items()]
        calls.values(run_id, [*changes.params, *changes.metrics, *tags])
        how, client = ("its status", changes.line), calls.client
        if changes.status == "RUNNING":
            calls.one(*how, client.update_run, run_id, status="RUNNING")
        elif changes.status is not None:
            ended = changes.ended_ms
            calls.one(*how, client.set_terminated, run_id, changes.status, end_time=ended)

    # -- files -----------------------------------------------------------------------------------

    def _upload(self, calls: Calls) -> None:
        """Send the files of one line: metrics never wait for them."""
        if not self.state.files:
            return
        line = self.state.files[0]
        event = self._line(line)
        run_id = None if event is None else self._runs.get(event.get("key", ""))
        if event is not None and run_id is not None:
            with TemporaryDirectory() as folder, self._all_or_none():
                if self._made(calls, line, event, Path(folder)):
                    calls.files(run_id, line, Path(folder))
        del self.state.files[0]
        self.state.save(self._state_path)

    def _made(self, calls: Calls, line: int, event: Event, folder: Path) -> bool:
        """Make the files of a line; whether there are any. One that cannot be made is counted."""
        assert self._sweep is not None
        try:
            return artifacts.write(event, self._journal.parent, folder, self._sweep.pictures)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # worth another attempt
            whose = f"trial {event['key']}" if "key" in event else "the sweep"
            why = f"{type(error).__name__}: {store.reason(error)}"
            calls.count(line, "a file", f"cannot make a file of {whose}: {why}")
            return any(path.is_file() for path in folder.rglob("*"))


def _params(line: int, config: dict[str, Any]) -> list[Item]:
    from mlflow.entities import Param

    return [(line, Param(key, value)) for key, value in names.params(config).items()]


def _record(event: Event) -> SweepRecord:
    """The sweep of its line."""
    return SweepRecord(
        event["name"],
        event["sweep_id"],
        event["note"],
        event["yaml"],
        event["resolved"],
        event["tags"],
        event.get("kind", "images"),
        event.get("pictures", True),
    )


def _user() -> dict[str, str]:
    """Who runs the sweep, for MLflow's column; nothing in a container without user names."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def _client(uri: str) -> MlflowClient:
    store.quiet()
    store.make(uri)
    from mlflow import MlflowClient

    return MlflowClient(store.for_mlflow(uri))
