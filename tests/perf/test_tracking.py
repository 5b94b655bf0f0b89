"""Cost of tracking: for the trials (an append), and for the driver beside MLflow's client alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from perf_helpers import least_cpu

from raycl.testing import toy_data
from raycl.tracking import Store, SweepRecord, Tracker, TrialRecord, names, plots, resolve
from raycl.tracking.store import quiet
from raycl.tracking.tracker import git_commit
from raycl.training.run import Run
from tests.postgres import QUOTED_PASSWORD, running

pytestmark = pytest.mark.perf

TRIALS, ROWS, VALUES = 4, 100, 25  # 10,000 values


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose schema is made and whose client was used once."""
    quiet()
    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = resolve(tmp_path_factory.mktemp("runs"))
    MlflowClient(found.uri).search_experiments()
    return found


def rows() -> list[dict[str, Any]]:
    """Rows of one trial, all values different."""
    return [
        {"progress": step + 1, "tasks_done": 0, "at_task_end": False, "phase": "train"}
        | {f"train/m{i}": step + i / VALUES for i in range(VALUES)}
        for step in range(ROWS)
    ]


def bare(store: Store) -> float:
    """Seconds for the same values with MLflow's client alone, in calls of 1,000."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(store.uri)
    experiment = client.create_experiment("bare", artifact_location=store.artifacts)
    begin = time.perf_counter()
    for _ in range(TRIALS):
        run = client.create_run(experiment).info.run_id
        points = [
            Metric(name, value, 1_700_000_000_000, row["progress"])
            for row in rows()
            for name, value in row.items()
            if name.startswith("train/")
        ]
        for i in range(0, len(points), 1000):
            client.log_batch(run, metrics=points[i : i + 1000])
        client.set_terminated(run)
    return time.perf_counter() - begin


def tracked(store: Store, directory: Path) -> tuple[float, list[float]]:
    """Seconds until all values are in MLflow, and seconds of each append."""
    begin = time.perf_counter()
    tracker = Tracker(SweepRecord("tracked", "id"), directory, *store)
    tracker.start()
    appends = []
    for key in map(str, range(TRIALS)):
        tracker.trial_started(TrialRecord(key, key, {"kind": "trial"}, {"seed": int(key)}))
        for row in rows():
            before = time.perf_counter()
            tracker.trial_row(key, row)
            appends.append(time.perf_counter() - before)
        tracker.trial_ended(key, "finished", row)
    assert tracker.close("FINISHED", 60.0) == 0
    return time.perf_counter() - begin, appends


def test_ten_thousand_values(store: Store, tmp_path: Path) -> None:
    alone = bare(store)
    total, appends = tracked(store, tmp_path / "tracked")
    append = statistics.median(appends)
    print(
        f"\n10,000 metric values to SQLite: {total:.1f} s through Tracker, {alone:.1f} s by bare "
        f"MlflowClient.log_batch, ratio {total / alone:.2f}; a row of {VALUES} values costs its "
        f"trial {append * 1e6:.0f} us = {append / 1e-3:.1%} of a step of 1 ms"
    )
    assert total < 10.0
    assert total < 3.0 * alone
    assert append < 0.2e-3


# -- a finished trial, beside the fewest calls -------------------------------------------------

FINISHED, RATIO = 20, 1.3
NUMBERS = count()
PARENT = ("mlflow.parentRunId", "mlflow.user")


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Iterator[Store]:
    if request.param == "SQLite":
        yield store
        return
    pytest.importorskip("psycopg2", reason="psycopg2 (raycl[cluster]) is not installed")
    from mlflow import MlflowClient

    with running() as port:
        uri = f"postgresql+psycopg2://mlflow:{QUOTED_PASSWORD}@127.0.0.1:{port}/mlflow"
        MlflowClient(uri).search_experiments()
        yield Store(uri, tmp_path.as_uri())


class Finished:
    """Some trials that are over, each with the rows of a real one.

    Attributes:
        tracked_run: Name of the last run that the tracker has made.
        other_run: Name of the last one of MLflow's client alone.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.tracked_run = self.other_run = ""
        config = {
            "benchmark": {"name": "permuted", "dataset": "digits", "tasks": 5},
            "method": {"name": "online_ewc"},
            "network": {"name": "mlp"},
            "train": {"epochs": 4},
        }
        run = Run(config, toy_data())
        self.rows = []
        while not run.done:
            self.rows.append(run.advance())
        self.config = run.config.model_dump(mode="json")
        self.result = json.loads(json.dumps(self.rows[-1]["result"]))
        self.points = [
            (name, value, step)
            for row in self.rows
            for step, values, _ in names.points(row).values()
            for name, value in values.items()
        ]
        self.tags = {"kind": "trial", "method": "online_ewc", "benchmark": "p", "seed": "0"}
        self.sweep_tags = git_commit()

    def tracked(self, *, pictures: bool) -> None:
        """Send them through the tracker; the start and the end of their sweep are in it, too."""
        name = f"tracked-{next(NUMBERS)}"
        sweep = SweepRecord(name, name, pictures=pictures)
        tracker = Tracker(sweep, self.folder / name, *self.store)
        tracker.start()
        for trial in range(FINISHED):
            key = self.tracked_run = f"{name}-{trial}"
            tracker.trial_started(TrialRecord(key, key, self.tags, self.config))
            for row in self.rows[:-1]:
                tracker.trial_row(key, row)
            tracker.trial_ended(key, "finished", self.rows[-1])
        assert tracker.close("FINISHED", 300.0) == 0

    def fewest_calls(self, *, pictures: bool) -> None:
        """Send the same with MLflow's client alone: one call each to begin, fill and end a run."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        client, name = MlflowClient(self.store.uri), f"fewest-{next(NUMBERS)}"
        experiment = client.create_experiment(name, f"{self.store.artifacts}/{name}")
        for trial in range(FINISHED):
            key, now = f"{name}-{trial}", time.time_ns() // 1_000_000
            self.other_run = key
            own = {"sweep_id": name, "trial_key": key, "version": "0", "attempt": 1}
            tags = names.tags(self.sweep_tags | self.tags | own) | dict.fromkeys(PARENT, "me")
            run = client.create_run(experiment, now, tags, key).info.run_id
            client.log_batch(
                run,
                metrics=[Metric(name, value, now, step) for name, value, step in self.points],
                params=[Param(key, value) for key, value in names.params(self.config).items()],
                tags=[RunTag(key, "finished") for key in ("raycl.end", "mlflow.loggedArtifacts")],
            )
            client.set_terminated(run, "FINISHED", now)
            with TemporaryDirectory() as folder:
                self._write(Path(folder), pictures)
                client.log_artifacts(run, folder)

    def _write(self, folder: Path, pictures: bool) -> None:
        for below in ("results", "tables", *(["plots"] if pictures else [])):
            (folder / below).mkdir()
        (folder / "results/matrix.json").write_text(json.dumps(self.result, indent=2))
        (folder / "tables/final.json").write_text(json.dumps(plots.final_table(self.result)))
        for name, picture in plots.pictures(self.result) if pictures else ():
            picture.save(folder / f"plots/{name}.png")

    def found(self, name: str) -> dict[str, Any]:
        """What MLflow has of a run."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store.uri)
        everywhere = [found.experiment_id for found in client.search_experiments()]
        (run,) = client.search_runs(everywhere, f"attributes.run_name = '{name}'")
        files = {
            file.path: file.file_size
            for folder in client.list_artifacts(run.info.run_id)
            for file in client.list_artifacts(run.info.run_id, folder.path)
        }
        data = run.data
        return {
            "metrics": data.metrics,
            "params": data.params,
            "tags": set(data.tags),
            "files": files,
            "status": run.info.status,
        }


def test_a_finished_trial_costs_what_the_fewest_calls_cost(
    database: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """CPU time of this process, in which the client is (and SQLite); wall time is the disk's."""
    trials = Finished(database, tmp_path)
    seen = {}
    for pictures in (False, True):
        cpu = least_cpu(
            lambda: trials.tracked(pictures=pictures),  # noqa: B023
            lambda: trials.fewest_calls(pictures=pictures),  # noqa: B023
            rounds=3,
        )
        assert trials.found(trials.tracked_run) == trials.found(trials.other_run), "the content"
        seen[pictures] = [1e3 * seconds / FINISHED for seconds in cpu]
    (plain, least), (shown, least_shown) = seen[False], seen[True]
    print(
        f"\na finished trial of {len(trials.points)} values to {request.node.callspec.id}: "
        f"{plain:.0f} ms of the client's CPU, {least:.0f} ms by the fewest calls, ratio "
        f"{plain / least:.2f} (at most {RATIO}); with {len(trials.result['matrices'])} pictures "
        f"{shown:.0f} and {least_shown:.0f} ms, ratio {shown / least_shown:.2f}; pictures are "
        f"{1 - plain / shown:.0%} of it"
    )
    assert plain <= RATIO * least
    assert shown <= RATIO * least_shown
