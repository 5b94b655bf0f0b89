"""Pictures of a method as artifacts: MLflow there or away, rows twice or lost, a file lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from mlflow.exceptions import MlflowException
from tracking_helpers import rows, trial

from raycl.tracking import Store, SweepRecord, Tracker, sync
from raycl.tracking.journal import JOURNAL, count, read
from raycl.tracking.records import TrialRecord

Open = Callable[..., Tracker]
Runs = Callable[[], dict[str, Any]]
NAMES = ["a-task-1", "a-task-2"]


def painter(key: str = "k") -> TrialRecord:
    return replace(trial(key), storage=f"trials/{key}")


def painted() -> list[dict[str, Any]]:
    """Rows as a run makes them: at a task's end the names of all pictures so far."""
    return [
        row | ({"pictures": NAMES[: row["tasks_done"]]} if row["at_task_end"] else {})
        for row in rows()
    ]


def keep(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.png").write_bytes(name.encode())


def kept(client: Any, run: Any, folder: Path) -> dict[str, bytes]:
    """Contents of the artifacts in ``pictures/``."""
    run_id = run.info.run_id
    return {
        Path(file.path).name: Path(
            client.download_artifacts(run_id, file.path, str(folder))
        ).read_bytes()
        for file in client.list_artifacts(run_id, "pictures")
    }


EXPECTED = {f"{name}.png": name.encode() for name in NAMES}


def test_pictures_are_artifacts_as_soon_as_their_task_is_over(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    keep(tmp_path / sweep.name / "trials/k/pictures", *NAMES)
    tracker = open_tracker()
    tracker.trial_started(painter())
    for row in painted()[:2]:
        tracker.trial_row("k", row)
    assert tracker.close("KILLED") == 0
    assert kept(client, runs()["finetune-k"], tmp_path) == {"a-task-1.png": b"a-task-1"}


def test_a_retry_and_a_second_driver_note_each_once(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    keep(tmp_path / sweep.name / "trials/k/pictures", *NAMES)
    for made in (painted()[:3], painted()[1:]):
        tracker = open_tracker()
        for _ in range(2):  # its worker is lost once
            tracker.trial_started(painter())
            for row in made:
                tracker.trial_row("k", row)
        tracker.trial_ended("k", "finished", row)
        assert tracker.close("FINISHED") == 0
    noted = [e["names"] for _, _, e in read(tmp_path / sweep.name / JOURNAL) if "names" in e]
    assert noted == [["a-task-1"], ["a-task-2"]]
    assert kept(client, runs()["finetune-k"], tmp_path) == EXPECTED


def test_a_row_that_was_lost_with_its_driver_is_made_up_for(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    """The row of the first task's end never came: the next one names all pictures."""
    keep(tmp_path / sweep.name / "trials/k/pictures", *NAMES)
    tracker = open_tracker()
    tracker.trial_started(painter())
    tracker.trial_ended("k", "finished", painted()[-1])
    assert tracker.close("FINISHED") == 0
    assert kept(client, runs()["finetune-k"], tmp_path) == EXPECTED


def test_pictures_wait_while_mlflow_is_away(
    store: Store, sweep: SweepRecord, runs: Runs, client: Any, tmp_path: Path
) -> None:
    keep(tmp_path / sweep.name / "trials/k/pictures", *NAMES)

    def away(uri: str) -> Any:
        raise ConnectionRefusedError(uri)

    directory = tmp_path / sweep.name
    tracker = Tracker(sweep, directory, *store, connect=away)
    tracker.start()
    tracker.trial_started(painter())
    for row in painted():
        tracker.trial_row("k", row)
    tracker.trial_ended("k", "finished", row)
    left = tracker.close("FINISHED")
    assert left == count(directory / JOURNAL, 0)
    moved = directory.rename(tmp_path / "moved")  # with its trials: paths are relative
    assert sync(moved, store.uri).left == 0
    assert kept(client, runs()["finetune-k"], tmp_path) == EXPECTED


def test_an_upload_that_fails_is_tried_again(
    open_tracker: Open, store: Store, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    keep(tmp_path / sweep.name / "trials/k/pictures", *NAMES)
    failures = [MlflowException("gone"), OSError("gone")]

    def connect(uri: str) -> Any:
        from mlflow import MlflowClient

        made = MlflowClient(uri)
        send = made.log_artifacts

        def fragile(*args: Any, **kwargs: Any) -> None:
            send(*args, **kwargs)
            if failures:
                raise failures.pop()

        made.log_artifacts = fragile  # type: ignore[method-assign]
        return made

    tracker = open_tracker(connect=connect)
    tracker.trial_started(painter())
    tracker.trial_row("k", painted()[1])
    while failures:
        assert tracker.alive
    tracker.trial_ended("k", "finished", painted()[-1])
    assert tracker.close("FINISHED") == 0
    assert kept(client, runs()["finetune-k"], tmp_path) == EXPECTED


def test_a_lost_file_is_a_warning_and_holds_up_nothing(
    open_tracker: Open,
    runs: Runs,
    client: Any,
    sweep: SweepRecord,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep(tmp_path / sweep.name / "trials/k/pictures", NAMES[1])
    with caplog.at_level(logging.WARNING):
        tracker = open_tracker()
        tracker.trial_started(painter())
        for row in painted():
            tracker.trial_row("k", row)
        tracker.trial_ended("k", "finished", row)
        assert tracker.close("FINISHED") == 0
    (warning,) = [r.getMessage() for r in caplog.records if "picture" in r.getMessage()]
    assert "trials/k/pictures/a-task-1.png" in warning
    run = runs()["finetune-k"]
    assert run.info.status == "FINISHED"
    assert kept(client, run, tmp_path) == {"a-task-2.png": b"a-task-2"}
    assert client.list_artifacts(run.info.run_id, "results")


def test_pictures_may_be_anywhere(
    open_tracker: Open, runs: Runs, client: Any, tmp_path: Path
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/sweep/k/pictures/a-task-1.png", b"there")
    tracker = open_tracker()
    tracker.trial_started(replace(trial("k"), storage="memory://bucket/sweep/k"))
    tracker.trial_row("k", painted()[1])
    assert tracker.close("KILLED") == 0
    assert kept(client, runs()["finetune-k"], tmp_path) == {"a-task-1.png": b"there"}
