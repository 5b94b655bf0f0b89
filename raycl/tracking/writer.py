"""The only MLflow client: sends what the journal holds, in order, in few calls, as often as needed.

Sending is idempotent, so that a lost answer or a killed driver costs a repetition and nothing else:
runs are found by the tags ``raycl.sweep_id`` and ``raycl.trial_key`` before one is created, MLflow
drops a metric point it has already (same key, timestamp, step and value), params and tags are set
to the same values, files are overwritten.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

import raycl
from raycl.tracking import journal, names, pictures, plots, store, views
from raycl.tracking.records import PICTURES, RUN_STATUS, Event, SweepRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

STATE = "tracking.state.json"
CHUNK_BYTES = 1_000_000
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # MLflow's own limits
HEARTBEAT_S = 60.0
TABLE = "tables/final.json"

#: MLflow's answers that another attempt cannot change (a run deleted by hand, a changed param).
REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}

NOTE = "mlflow.note.content"
END_TAGS = ("raycl.end", "raycl.error", "raycl.trials", NOTE)


@dataclass
class State:
    """How far the journal has been sent, and where to. It is replaced atomically.

    Attributes:
        uri, artifacts: The store; with another one everything is sent again, from the beginning.
        offset: Bytes of the journal that MLflow has.
        files: Offsets of lines whose artifacts MLflow does not have yet.
        experiment_id, parent_run_id: For links.
    """

    uri: str
    artifacts: str | None
    offset: int = 0
    files: list[int] = field(default_factory=list)
    experiment_id: str | None = None
    parent_run_id: str | None = None

    @classmethod
    def load(cls, path: Path, uri: str, artifacts: str | None) -> State:
        """The saved state if it belongs to this store, else a new one."""
        saved = cls.saved(path)
        return saved if saved and saved.uri == uri else cls(uri, artifacts)

    @classmethod
    def saved(cls, path: Path) -> State | None:
        """The saved state; None if there is none or it cannot be read (then runs are found)."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s): sending the journal again", path, error)
            return None

    def save(self, path: Path) -> None:
        """Replace the file; only its owner may read it, for a URI can hold a password."""
        new = path.with_suffix(".tmp")
        new.unlink(missing_ok=True)  # left by a process that was killed, with any mode
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        new.replace(path)


@dataclass
class Changes:
    """What one chunk of the journal changes in one run."""

    start: Event | None = None
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    ended_ms: int = 0


class Writer:
    """Sends one sweep's journal. Every method but `__init__` may raise whatever the store does.

    Args:
        directory: Folder of the sweep, with the journal and the state.
        uri: Absolute tracking URI.
        artifacts: Where files of a new experiment go; None: the server decides.
        connect: Makes the client; called again after every failure.
    """

    def __init__(
        self,
        directory: Path,
        uri: str,
        artifacts: str | None,
        connect: Callable[[str], MlflowClient] | None = None,
    ) -> None:
        self._journal = directory / journal.JOURNAL
        self._state_path = directory / STATE
        self._connect_to = connect or _client
        self.state = State.load(self._state_path, uri, artifacts)
        if self._journal.exists() and self._journal.stat().st_size < self.state.offset:
            log.warning("%s is shorter than what was sent of it: sending all of it", self._journal)
            self.state = State(uri, artifacts)
        self._client: MlflowClient | None = None
        self._runs: dict[str, str] = {}
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
            client = self._client or self._connect()
            if client is None:
                return False
            full = self._send(client)
            self._upload(client)
            return full or bool(self.state.files)
        except Exception:
            self._client = None  # look the runs up again: the last call may have had an effect
            raise

    def left(self) -> int:
        """How many values MLflow does not have yet (a file counts as one)."""
        return journal.count(self._journal, self.state.offset) + len(self.state.files)

    def heartbeat(self) -> None:
        """Tell MLflow once a minute that the driver lives."""
        parent = self.state.parent_run_id
        if self._client and parent and time.monotonic() - self._beat > HEARTBEAT_S:
            _try(self._client.set_tag, parent, "raycl.heartbeat", str(int(time.time())))
            self._beat = time.monotonic()

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> MlflowClient | None:
        """Make a client and find the experiment and its runs; None while the journal is empty."""
        event = next((e for _, _, e in journal.read(self._journal) if e["event"] == "sweep"), None)
        if event is None:
            return None
        self._sweep = SweepRecord(
            event["name"],
            event["sweep_id"],
            event["note"],
            event["yaml"],
            event["resolved"],
            event["tags"],
            event.get("kind", "images"),
        )
        client = self._connect_to(self.state.uri)
        self._experiment_id = self._experiment(client, self._sweep)
        if self._experiment_id != self.state.experiment_id:  # first time, or an emptied store
            self.state = State(
                self.state.uri, self.state.artifacts, experiment_id=self._experiment_id
            )
        self._runs = _find_runs(client, self._experiment_id, self._sweep.sweep_id)
        self.state.parent_run_id = self._runs.get("")
        self._client = client
        return client

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

    def _send(self, client: MlflowClient) -> bool:
        """Send one chunk; whether it was full, so that another may follow."""
        begin = self.state.offset
        chunk = list(journal.read(self._journal, begin, CHUNK_BYTES))
        if not chunk:
            return False
        for key, changes in _fold(event for _, _, event in chunk).items():
            run_id = self._run(client, key, changes)
            if run_id is not None:
                self._apply(client, run_id, changes)
        self.state.files += [
            start
            for start, _, event in chunk
            if event["event"] in ("sweep", "pictures") or event.get("result")
        ]
        self.state.offset = chunk[-1][1]
        self.state.save(self._state_path)
        return self.state.offset - begin >= CHUNK_BYTES

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

    def _run(self, client: MlflowClient, key: str, changes: Changes) -> str | None:
        """The run of a key, created if need be; None if it cannot be (it was deleted by hand)."""
        found, start = self._runs.get(key), changes.start
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
            self._reopen(client, found)
            tags.pop(NOTE, None)  # people may have edited it
            changes.tags = tags | changes.tags
        if key:
            self._params(client, found, start["params"])
        else:
            self.state.parent_run_id = found
        return found

    def _params(self, client: MlflowClient, run_id: str, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        rest = (Param(key, value) for key, value in names.params(config).items())
        while batch := list(islice(rest, PARAMS_PER_CALL)):
            _try(client.log_batch, run_id, params=batch)

    def _reopen(self, client: MlflowClient, run_id: str) -> None:
        """Take back how the run ended before; a description goes only with our error in it."""
        run = _try(client.get_run, run_id)
        tags = set(END_TAGS) & set(run.data.tags if run else ())
        for tag in tags if "raycl.error" in tags else tags - {NOTE}:
            client.delete_tag(run_id, tag)

    def _apply(self, client: MlflowClient, run_id: str, changes: Changes) -> None:
        from mlflow.entities import RunTag

        metrics = iter(changes.metrics)
        tags = [RunTag(key, value) for key, value in changes.tags.items()]
        while (batch := list(islice(metrics, METRICS_PER_CALL))) or tags:
            _try(client.log_batch, run_id, metrics=batch, tags=tags)
            tags = []
        if changes.status == "RUNNING":
            _try(client.update_run, run_id, status="RUNNING")
        elif changes.status is not None:
            _try(client.set_terminated, run_id, changes.status, end_time=changes.ended_ms)

    # -- files -----------------------------------------------------------------------------------

    def _upload(self, client: MlflowClient) -> None:
        """Send the files of one line: metrics never wait for them."""
        if not self.state.files:
            return
        _, _, event = next(journal.read(self._journal, self.state.files[0]))
        run_id = self._runs.get(event.get("key", ""))
        if run_id is not None and event["event"] == "sweep":
            _try(client.log_text, run_id, event["yaml"], "sweep/sweep.yaml")
            resolved = yaml.safe_dump(event["resolved"], sort_keys=False)
            _try(client.log_text, run_id, resolved, "sweep/resolved.yaml")
        elif run_id is not None and event["event"] == "pictures":
            self._pictures(client, run_id, event)
        elif run_id is not None:
            self._results(client, run_id, event["result"])
        del self.state.files[0]
        self.state.save(self._state_path)

    def _pictures(self, client: MlflowClient, run_id: str, event: Event) -> None:
        with TemporaryDirectory() as folder:
            if pictures.copy(event["names"], event["folder"], self._journal.parent, Path(folder)):
                _try(client.log_artifacts, run_id, folder, PICTURES)

    def _results(self, client: MlflowClient, run_id: str, result: dict[str, Any]) -> None:
        _try(client.log_dict, run_id, result, "results/matrix.json")
        for name, picture in plots.pictures(result):
            _try(client.log_image, run_id, picture, artifact_file=f"plots/{name}.png")
        # As `log_table` would write it, but that appends to the table of an earlier attempt.
        _try(client.log_text, run_id, json.dumps(plots.final_table(result)), TABLE)


def _fold(events: Iterator[Event]) -> dict[str, Changes]:
    """Merge lines into one set of changes per run; the parent's key is the empty string."""
    from mlflow.entities import Metric

    runs: dict[str, Changes] = {}
    for event in events:
        changes = runs.setdefault(event.get("key", ""), Changes())
        match event["event"]:
            case "metrics":
                at = (event["ms"], event["step"])
                changes.metrics += [Metric(k, v, *at) for k, v in event["values"].items()]
                if event["nonfinite"]:
                    changes.tags["raycl.nonfinite"] = str(event["nonfinite"])
            case "sweep" | "trial":
                changes.start, changes.status = event, "RUNNING"
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


def _user() -> dict[str, str]:
    """Who runs the sweep, for MLflow's column; nothing in a container without user names."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def _client(uri: str) -> MlflowClient:
    store.quiet()
    from mlflow import MlflowClient

    return MlflowClient(store.for_mlflow(uri))


def _find_runs(client: MlflowClient, experiment_id: str, sweep_id: str) -> dict[str, str]:
    """Run ids of one execution by trial key; the parent's key is the empty string."""
    runs: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], names.trials_filter(sweep_id), max_results=1000, page_token=token
        )
        for run in page:
            runs[run.data.tags.get("raycl.trial_key", "")] = run.info.run_id
        token = page.token
        if not token:
            return runs


def _try(call: Callable[..., Any], run_id: str, *args: Any, **kwargs: Any) -> Any:
    """Call MLflow for one run; if it refuses for good, say so and go on with the other runs."""
    from mlflow.exceptions import MlflowException

    try:
        return call(run_id, *args, **kwargs)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        log.warning("MLflow refused a value of run %s: %s", run_id, store.reason(error))
        return None
