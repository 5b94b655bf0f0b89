"""Reads a sweep back from MLflow: its parent run, its trials, and the matrix each one left.

Nothing but the tracking store is read, so a report can be made on any machine that reaches it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from raycl.errors import UserError, nearest
from raycl.tracking import store
from raycl.tracking.names import trials_filter

log = logging.getLogger(__name__)

MATRIX = "results/matrix.json"
RESOLVED = "sweep/resolved.yaml"
_PAGE = 500
_DOWNLOADS = 8


@dataclass(frozen=True)
class TrackedRun:
    """One trial as MLflow knows it.

    Attributes:
        run_id: MLflow's id.
        name: Its readable name.
        kind: ``"search"``, ``"trial"`` or ``"winner"``.
        benchmark: Label of its benchmark in the sweep file.
        method: Label of its method in the sweep file.
        seed: The trial's seed.
        config_key: Hash of the configuration without the seed: runs to be averaged.
        trial_key: Hash of the configuration with the seed.
        end: ``"finished"``, ``"stopped-early"``, ``"error"``, ``"killed"``, ``"orphaned"`` or
            ``"running"``.
        reason: One line on why it failed, or empty.
        started: Milliseconds since the epoch.
        metrics: The latest value of each logged metric.
        pretrained: ``"own"`` if its networks start from weights of `raycl pretrain`, else empty.
        seen: Number of images that such weights had seen: ``"0 of 60000"``, or ``"unknown"``.
        result: Result in the trial's last row (matrices, metrics, costs); ``None`` if it did not
            finish, or if the artifact cannot be read.
        made_of: Stands for the code and the data of the trial; empty: unknown.
    """

    run_id: str
    name: str
    kind: str
    benchmark: str
    method: str
    seed: int
    config_key: str
    trial_key: str
    end: str
    reason: str
    started: int
    metrics: Mapping[str, float]
    result: Mapping[str, Any] | None = None
    made_of: str = ""
    pretrained: str = ""
    seen: str = ""


@dataclass(frozen=True)
class TrackedSweep:
    """The latest sweep of an experiment.

    Attributes:
        name: The sweep's name.
        uri: The tracking store.
        sweep_id: Id that all its runs share.
        parent_id: MLflow's id of the parent run.
        spec: The sweep file with every default filled in.
        runs: Its trials, searches included, by start time.
        changes: Code and data that were changed while the sweep was under way, and accepted.
    """

    name: str
    uri: str
    sweep_id: str
    parent_id: str
    spec: Mapping[str, Any]
    runs: Sequence[TrackedRun]
    changes: str = ""


def load(
    name: str, uri: str, sweep_id: str | None = None, known: Container[str] = ()
) -> TrackedSweep:
    """Read the latest sweep called ``name`` from a tracking store.

    Args:
        name: The sweep's name, which is the experiment's.
        uri: An MLflow tracking URI.
        sweep_id: Id of the sweep that is meant; ``None``: the latest.
        known: Keys of trials whose results need not be read.

    Raises:
        UserError: No such store, the server does not answer, no such experiment, or no sweep in it.
    """
    client = connect(uri)
    try:
        return _load(client, name, uri, sweep_id, known)
    except (MlflowException, SQLAlchemyError) as error:
        what = f"{store.shown(uri)} cannot be read: {store.reason(error)}"
        raise UserError("tracking.uri", what) from error


def connect(uri: str) -> MlflowClient:
    """Make a client for reading; unlike MLflow's own, it never creates a missing store.

    Raises:
        UserError: No such file, or the server does not answer.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if store.kind(uri) == "sqlite":
        path = Path(make_url(uri).database or "")
        if not path.is_file():
            raise UserError("tracking.uri", f"there is no {path}", "has a sweep been run here?")
        store.quiet()
    else:
        store.check(uri)
    try:
        return MlflowClient(store.for_mlflow(uri))
    except (MlflowException, SQLAlchemyError) as error:
        what = f"{store.shown(uri)} cannot be read: {store.reason(error)}"
        raise UserError("tracking.uri", what) from error


def _load(
    client: MlflowClient, name: str, uri: str, sweep_id: str | None, known: Container[str]
) -> TrackedSweep:
    shown = store.shown(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        known = [e.name for e in client.search_experiments() if e.name != "Default"]
        hint = nearest(name, known) if known else "nothing has been tracked there yet"
        raise UserError("report", f"no sweep named '{name}' in {shown}", hint)
    parents = client.search_runs(
        [experiment.experiment_id],
        "tags.`raycl.kind` = 'sweep'"
        + (f" and {trials_filter(sweep_id)}" if sweep_id is not None else ""),
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not parents:
        raise UserError("report", f"experiment '{name}' in {shown} holds no raycl sweep")
    parent = parents[0]
    sweep_id = parent.data.tags["raycl.sweep_id"]
    raw = [
        run
        for run in _search(client, experiment.experiment_id, trials_filter(sweep_id))
        if run.data.tags.get("raycl.kind") in ("trial", "winner", "search")
    ]
    spec = _downloads(client, [parent.info.run_id], RESOLVED, yaml.safe_load)[parent.info.run_id]
    finished = [
        run.info.run_id
        for run in raw
        if _end(run) == "finished" and run.data.tags["raycl.trial_key"] not in known
    ]
    results = _downloads(client, finished, MATRIX, json.loads)
    runs = [_tracked(run, results.get(run.info.run_id)) for run in raw]
    return TrackedSweep(
        name=name,
        uri=uri,
        sweep_id=sweep_id,
        parent_id=parent.info.run_id,
        spec=spec or {},
        runs=sorted(runs, key=lambda run: (run.started, run.name)),
        changes=parent.data.tags.get("raycl.changes", ""),
    )


def _search(client: MlflowClient, experiment: str, query: str) -> Iterable[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _downloads(
    client: MlflowClient, runs: Sequence[str], path: str, parse: Callable[[str], Any]
) -> dict[str, dict[str, Any] | None]:
    """Download and parse one artifact of each run; ``None`` where that fails, which is said."""
    problems: list[str] = []

    def fetch(run_id: str) -> dict[str, Any] | None:
        target = Path(folder, run_id)
        target.mkdir()
        try:
            file = client.download_artifacts(run_id, path, str(target))
            found = parse(Path(file).read_text("utf-8"))
        except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
            problems.append(store.reason(error))
            return None
        if isinstance(found, dict):
            return found
        problems.append("it is not whole")
        return None

    with TemporaryDirectory() as folder, ThreadPoolExecutor(_DOWNLOADS) as pool:
        found = dict(zip(runs, pool.map(fetch, runs), strict=True))
    if problems:
        log.warning("%s of %d runs cannot be read: %s", path, len(problems), problems[0])
    return found


def _end(run: Run) -> str:
    """End of a run; ``"finished"`` only if both MLflow's status and the tag say so."""
    status, end = run.info.status, run.data.tags.get("raycl.end", "")
    if status in ("RUNNING", "SCHEDULED"):
        return "running"
    if end == "finished" and status != "FINISHED":
        return str(status).lower()
    return str(end or "unknown")


def _tracked(run: Run, result: Mapping[str, Any] | None) -> TrackedRun:
    tags = run.data.tags
    return TrackedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        kind=tags["raycl.kind"],
        benchmark=tags["raycl.benchmark"],
        method=tags["raycl.method"],
        seed=int(tags["raycl.seed"]),
        config_key=tags["raycl.config_key"],
        trial_key=tags["raycl.trial_key"],
        end=_end(run),
        reason=reason(tags.get("raycl.error", "")),
        started=run.info.start_time,
        metrics=run.data.metrics,
        result=result,
        made_of=tags.get("raycl.made_of", ""),
        pretrained=tags.get("raycl.pretrained", ""),
        seen=tags.get("raycl.seen_images", ""),
    )


def reason(error: str) -> str:
    """The line of an error that names the exception: the last of a traceback, else the first."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]
