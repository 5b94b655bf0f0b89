"""Cost of tracking: for the trials (an append) and for the driver (10,000 values to SQLite)."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from raycl.tracking import Store, SweepRecord, Tracker, TrialRecord, resolve
from raycl.tracking.store import quiet

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
