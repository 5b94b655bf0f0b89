"""One SQLite store for all tests here (its schema takes seconds); each test has its own sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import Server

from raycl.tracking import Store, SweepRecord, Tracker, check, resolve
from raycl.tracking import tracker as tracker_module
from raycl.tracking.store import quiet


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An SQLite store below a folder whose name has a space, for sweeps in other folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("runs of mine")
        found = resolve(folder, artifacts=(folder / "files").as_uri())
    check(found.uri)
    quiet()
    from mlflow import MlflowClient

    MlflowClient(found.uri)
    return found


@pytest.fixture
def client(store: Store) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "PERIOD_S", 0.05)
    monkeypatch.setattr(tracker_module, "BACKOFF_S", (0.05, 0.2))


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> SweepRecord:
    name = request.node.name
    return SweepRecord(name, f"id-{name}", "What it is.", f"name: {name}\n", {"name": name})


@pytest.fixture
def open_tracker(
    store: Store, sweep: SweepRecord, tmp_path: Path
) -> Iterator[Callable[..., Tracker]]:
    """Start a tracker of this test's sweep; what the test does not close is closed after it."""
    started: list[Tracker] = []

    def start(**options: Any) -> Tracker:
        tracker = Tracker(sweep, tmp_path / sweep.name, *store, **options)
        tracker.start()
        started.append(tracker)
        return tracker

    yield start
    for tracker in started:
        tracker.close("KILLED", 5.0)


@pytest.fixture
def runs(client: Any, sweep: SweepRecord) -> Callable[[], dict[str, Any]]:
    """Runs of this test as MLflow has them, by name."""

    def search() -> dict[str, Any]:
        experiment = client.get_experiment_by_name(sweep.name)
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        names = [run.info.run_name for run in found]
        assert len(names) == len(set(names)), f"a run exists twice: {names}"
        return dict(zip(names, found, strict=True))

    return search


@pytest.fixture(scope="session")
def server(store: Store) -> Iterator[Server]:
    """A tracking server over the same store; a test starts it when it needs it."""
    made = Server(store)
    yield made
    made.stop()
