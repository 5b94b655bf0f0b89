"""What the driver's calls become in MLflow. The store is SQLite for real."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tracking_helpers import history, matrix, rows, trial

from raycl.errors import UserError
from raycl.tracking import Store, SweepRecord, Tracker, orphans, sync
from raycl.tracking.journal import count, read
from tests.waiting import until

Open = Callable[..., Tracker]
Runs = Callable[[], dict[str, Any]]


def run_trial(tracker: Tracker, key: str, **tags: str) -> None:
    tracker.trial_started(trial(key, **tags))
    for row in rows():
        tracker.trial_row(key, row)
    tracker.trial_ended(key, "finished", row)


def artifact(client: Any, run: Any, path: str, folder: Path) -> str:
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))).read_text()


def test_a_sweep_is_an_experiment_with_a_tree_of_runs(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    tracker = open_tracker()
    run_trial(tracker, "a", seed="1", setting="class")
    assert tracker.close("FINISHED") == 0

    experiment = client.get_experiment_by_name(sweep.name)
    assert "What it is." in experiment.tags["mlflow.note.content"]
    saved = [key for key in experiment.tags if key.startswith("mlflow.sharedViewState.")]
    assert len(saved) == 2
    found = runs()
    parent, child = found[sweep.name], found["finetune-a"]
    assert parent.data.tags.items() >= {
        ("raycl.kind", "sweep"),
        ("raycl.sweep_id", sweep.sweep_id),
        ("raycl.trials", "1 finished"),
    }
    assert parent.info.status == "FINISHED"
    assert time.time() - int(parent.data.tags["raycl.heartbeat"]) < 60
    assert artifact(client, parent, "sweep/sweep.yaml", tmp_path) == sweep.yaml_text
    assert artifact(client, parent, "sweep/resolved.yaml", tmp_path) == sweep.yaml_text

    assert child.info.status == "FINISHED"
    assert child.info.end_time >= child.info.start_time
    assert child.data.tags.items() >= {
        ("mlflow.parentRunId", parent.info.run_id),
        ("raycl.kind", "trial"),
        ("raycl.method", "finetune"),
        ("raycl.setting", "class"),
        ("raycl.seed", "1"),
        ("raycl.sweep_id", sweep.sweep_id),
        ("raycl.trial_key", "a"),
        ("raycl.attempt", "1"),
        ("raycl.end", "finished"),
    }
    assert child.data.params == {
        "method.name": "finetune",
        "seed": "0",
        "train.lr": "0.1",
    }
    assert history(client, child, "train/loss") == [(i, 1 / i) for i in (1, 2, 3, 4)]
    assert history(client, child, "eval/class/average_accuracy") == [(1, 90.0), (2, 85.0)]
    assert history(client, child, "validation/average_accuracy") == [(1, 70.0), (2, 71.0)]
    assert (
        json.loads(artifact(client, child, "results/matrix.json", tmp_path)) == rows()[-1]["result"]
    )
    table = pd.read_json(
        StringIO(artifact(client, child, "tables/final.json", tmp_path)), orient="split"
    )
    assert table["task"].tolist() == ["digits 0", "digits 1"]
    assert table["class readout (%)"].tolist() == matrix(2)[-1]
    plots = {file.path for file in client.list_artifacts(child.info.run_id, "plots")}
    assert plots == {"plots/accuracy_matrix_task.png", "plots/accuracy_matrix_class.png"}


@pytest.mark.parametrize(
    "status, shown",
    [
        ("finished", "FINISHED"),
        ("stopped-early", "KILLED"),
        ("error", "FAILED"),
        ("killed", "KILLED"),
    ],
)
def test_how_a_trial_ends(open_tracker: Open, runs: Runs, status: Any, shown: str) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    row = rows()[0] | (
        {"failed": "ValueError: x", "traceback": "z" * 9000} if shown == "FAILED" else {}
    )
    tracker.trial_ended("a", status, row)
    assert tracker.close("FAILED") == 0
    run = runs()["finetune-a"]
    assert (run.info.status, run.data.tags["raycl.end"]) == (shown, status)
    if shown == "FAILED":
        assert run.data.tags["raycl.error"] == "ValueError: x\n" + "z" * (5000 - 14)
        assert run.data.tags["mlflow.note.content"].startswith("**Failed:** ValueError: x\n\n```")
    else:
        assert "raycl.error" not in run.data.tags


def test_a_retried_trial_goes_on_in_its_run(open_tracker: Open, runs: Runs, client: Any) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    for row in rows()[:3]:
        tracker.trial_row("a", row)
    tracker.trial_ended("a", "error", row, "its worker was lost")
    assert tracker.close("FAILED") == 0
    assert runs()["finetune-a"].data.tags["raycl.error"] == "its worker was lost"

    tracker = open_tracker()  # a second driver: `raycl resume`
    tracker.trial_started(trial("a"))
    for row in rows()[1:]:  # epochs 2 and 3 are repeated, from the checkpoint
        tracker.trial_row("a", row)
    tracker.trial_ended("a", "finished", row)
    assert tracker.close("FINISHED") == 0

    run = runs()["finetune-a"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["raycl.attempt"] == "2"
    assert not {"raycl.error", "mlflow.note.content"} & set(run.data.tags)
    assert [step for step, _ in history(client, run, "train/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in history(client, run, "cost/seconds")] == [1, 2]


def test_descriptions_written_by_people_stay(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord
) -> None:
    for execution in range(2):
        tracker = open_tracker()
        tracker.trial_started(trial("a"))
        tracker.trial_ended("a", "killed")
        assert tracker.close("KILLED") == 0
        for run in runs().values():
            if execution == 0:
                client.set_tag(run.info.run_id, "mlflow.note.content", "by hand")
    notes = {run.data.tags["mlflow.note.content"] for run in runs().values()}
    assert notes == {"by hand"}


def test_values_that_are_not_finite_are_counted(open_tracker: Open, runs: Runs) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    for row in rows()[:3]:
        tracker.trial_row("a", row | {"train/loss": float("nan"), "train/extra": float("inf")})
    tracker.close("FINISHED")
    run = runs()["finetune-a"]
    assert run.data.tags["raycl.nonfinite"] == "6"
    assert "train/loss" not in run.data.metrics
    assert run.data.metrics["time/epoch_s"] == 0.5


def test_no_run_is_left_running(open_tracker: Open, runs: Runs, sweep: SweepRecord) -> None:
    tracker = open_tracker()
    for key in "ab":
        tracker.trial_started(trial(key))
    tracker.trial_ended("b", "stopped-early")
    tracker.close("KILLED")
    found = runs()
    assert {name: run.info.status for name, run in found.items()} == {
        sweep.name: "KILLED",
        "finetune-a": "KILLED",
        "finetune-b": "KILLED",
    }
    assert found["finetune-a"].data.tags["raycl.end"] == "killed"
    assert found[sweep.name].data.tags["raycl.trials"] == "1 killed, 1 stopped-early"


def test_two_drivers_do_not_share_a_sweep(open_tracker: Open) -> None:
    open_tracker()
    with pytest.raises(UserError, match="another process is running this sweep"):
        open_tracker()


def test_wrong_calls_are_refused_at_once(open_tracker: Open) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    with pytest.raises(ValueError, match="'done' is none of"):
        tracker.trial_ended("a", "done")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'finished' is none of"):
        tracker.close("finished")  # type: ignore[arg-type]


# -- MLflow away, slow, back -------------------------------------------------------------------


class Client:
    """A real client that counts calls, and fails or sleeps when told to."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.broken = False
        self.asleep = threading.Event()
        self.asleep.set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((threading.current_thread().name, name, kwargs))
            self.asleep.wait(600)
            if self.broken:
                raise ConnectionError("no route to tracker")
            return method(*args, **kwargs)

        return call


def test_a_tracker_that_comes_back_is_caught_up(
    open_tracker: Open, runs: Runs, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Client(client)
    fake.broken = True
    tracker = open_tracker(connect=lambda uri: fake)
    run_trial(tracker, "a")
    until(lambda: len(fake.calls) > 3)  # it tries again and again
    assert tracker.problem == "no route to tracker"
    fake.broken = False
    until(lambda: tracker.problem is None)
    assert tracker.close("FINISHED") == 0
    assert len(history(client, runs()["finetune-a"], "train/loss")) == 4
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2, "said once that it is gone, once that it is back"
    assert "tracking.jsonl" in warnings[0]


def test_a_tracker_that_never_comes_back(
    open_tracker: Open, runs: Runs, client: Any, tmp_path: Path, sweep: SweepRecord, store: Store
) -> None:
    fake = Client(client)
    fake.broken = True
    tracker = open_tracker(connect=lambda uri: fake)
    run_trial(tracker, "a")
    begin = time.monotonic()
    left = tracker.close("FINISHED", timeout_s=600)
    assert time.monotonic() - begin < 300
    assert left == count(tmp_path / sweep.name / "tracking.jsonl", 0) > 12
    assert orphans(tmp_path) == [tmp_path / sweep.name]
    assert sync(tmp_path / sweep.name, store.uri) == (left, 0, None)
    assert orphans(tmp_path) == []
    assert runs()["finetune-a"].info.status == "FINISHED"


def test_a_tracker_that_hangs_holds_nobody(open_tracker: Open, client: Any) -> None:
    fake = Client(client)
    fake.asleep.clear()
    tracker = open_tracker(connect=lambda uri: fake)
    until(lambda: fake.calls)
    run_trial(tracker, "a")  # while the thread hangs in its first call
    begin = time.monotonic()
    assert tracker.close("FINISHED", timeout_s=0.5) > 12
    assert 0.4 < time.monotonic() - begin < 300
    assert {thread for thread, *_ in fake.calls} == {"raycl-tracking"}
    fake.asleep.set()


def test_a_failure_in_mid_chunk_repeats_nothing(
    open_tracker: Open, runs: Runs, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call fails once, after MLflow did what it asked for."""
    fake = Client(client)
    failed: set[str] = set()
    real = fake.__getattr__

    def flaky(self: Client, name: str) -> Any:
        method = real(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            done = method(*args, **kwargs)
            if name not in failed:
                failed.add(name)
                raise ConnectionError("the answer was lost")
            return done

        return call

    monkeypatch.setattr(Client, "__getattr__", flaky)
    tracker = open_tracker(connect=lambda uri: fake)
    run_trial(tracker, "a")
    until(lambda: tracker.problem is None and {"set_terminated", "log_artifacts"} <= failed)
    until(lambda: tracker.problem is None)
    assert tracker.close("FINISHED") == 0
    assert {"create_experiment", "create_run", "log_batch", "search_runs"} <= failed
    run = runs()["finetune-a"]  # once
    for name in run.data.metrics:
        steps = [step for step, _ in history(client, run, name)]
        assert len(steps) == len(set(steps)), name


def test_calls_keep_mlflows_limits(open_tracker: Open, client: Any, runs: Runs) -> None:
    fake = Client(client)
    tracker = open_tracker(connect=lambda uri: fake)
    record = trial("a")
    record.params.update({f"p{i}": i for i in range(250)})
    tracker.trial_started(record)
    wide = {f"train/m{i:04d}": float(i) for i in range(2500)}
    tracker.trial_row("a", {"progress": 1, **wide})
    assert tracker.close("FINISHED") == 0
    batches = [kwargs for _, name, kwargs in fake.calls if name == "log_batch"]
    for what, limit, total in (("metrics", 1000, 2500), ("params", 100, 253)):
        sizes = [len(batch[what]) for batch in batches if batch.get(what)]
        assert max(sizes) <= limit
        assert sum(sizes) == total
        assert len(sizes) == -(-total // limit), "as few calls as can be"
    together = [sum(len(values) for values in batch.values()) for batch in batches]
    assert max(together) <= 1000, "MLflow's limit of a call"
    run = runs()["finetune-a"]
    assert len(run.data.metrics) == 2500
    assert len(run.data.params) == 253


def test_a_run_deleted_by_hand_does_not_hold_up_the_others(
    open_tracker: Open, runs: Runs, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker()
    for key in "ab":
        tracker.trial_started(trial(key))
    until(lambda: {"finetune-a", "finetune-b"} <= set(runs()))
    client.delete_run(runs()["finetune-a"].info.run_id)
    for row in rows():
        for key in "ab":
            tracker.trial_row(key, row)
    assert tracker.close("FINISHED") == 0
    assert "finetune-a" not in runs()
    assert len(history(client, runs()["finetune-b"], "train/loss")) == 4
    assert "MLflow refused a value" in caplog.text


# -- the driver dies ---------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from tracking_helpers import rows, trial
from raycl.tracking import SweepRecord, Tracker

name, directory, uri, artifacts = sys.argv[1:]
tracker = Tracker(SweepRecord(name, f"id-{name}"), Path(directory), uri, artifacts)
tracker.start()
tracker.trial_started(trial("a"))
for row in rows()[:3]:
    tracker.trial_row("a", row)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_driver_loses_nothing(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, store: Store, tmp_path: Path
) -> None:
    directory = tmp_path / sweep.name
    arguments = [sys.executable, "-c", KILLED, sweep.name, str(directory), *map(str, store)]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(arguments, env=os.environ | path, check=False)
    assert killed.returncode == -signal.SIGKILL

    assert orphans(tmp_path) == [directory]
    sent = sync(directory, store.uri)
    assert (sent.left, sent.problem) == (0, None)
    assert orphans(tmp_path) == []
    run = runs()["finetune-a"]
    assert (run.info.status, run.data.tags["raycl.end"]) == ("KILLED", "orphaned")
    assert [step for step, _ in history(client, run, "train/loss")] == [1, 2, 3]

    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    until(lambda: runs()["finetune-a"].info.status == "RUNNING")
    assert "raycl.end" not in runs()["finetune-a"].data.tags
    for row in rows():
        tracker.trial_row("a", row)
    tracker.trial_ended("a", "finished", row)
    assert tracker.close("FINISHED") == 0
    run = runs()["finetune-a"]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(client, run, "train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("state", ["lost", "damaged", "behind"])
def test_sending_again_changes_nothing(
    open_tracker: Open,
    runs: Runs,
    client: Any,
    sweep: SweepRecord,
    store: Store,
    tmp_path: Path,
    state: str,
) -> None:
    tracker = open_tracker()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    before = runs()
    directory = tmp_path / sweep.name
    file = directory / "tracking.state.json"
    if state == "lost":
        file.unlink()
    elif state == "damaged":
        file.write_text(file.read_text()[:20])
    else:
        lines = [end for _, end, _ in read(directory / "tracking.jsonl")]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"offset": lines[3]}))

    sent = sync(directory, store.uri)
    assert sent.sent > 0
    assert sent.left == 0
    after = runs()  # asserts that no name appears twice
    for name, run in before.items():
        assert after[name].info.run_id == run.info.run_id
        assert after[name].info.status == run.info.status
        assert after[name].data.params == run.data.params
        for metric in run.data.metrics:
            assert history(client, after[name], metric) == history(client, run, metric)
    files = client.list_artifacts(after["finetune-a"].info.run_id, "tables")
    assert [file.path for file in files] == ["tables/final.json"]


def test_another_store_gets_everything(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, store: Store, tmp_path: Path
) -> None:
    """The state belongs to one URI; at another the journal is sent from its beginning.

    (Here it is the same file by another name, from which the experiment was deleted meanwhile.)
    """
    tracker = open_tracker()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    client.delete_experiment(client.get_experiment_by_name(sweep.name).experiment_id)
    other = store.uri + "?timeout=20"
    sent = sync(tmp_path / sweep.name, other)
    assert (sent.sent, sent.left) == (count(tmp_path / sweep.name / "tracking.jsonl", 0), 0)
    assert len(history(client, runs()["finetune-a"], "train/loss")) == 4


def test_nothing_to_sync(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was tracked here"):
        sync(tmp_path)


def test_a_live_sweep_is_not_synced(open_tracker: Open, tmp_path: Path, sweep: SweepRecord) -> None:
    open_tracker()
    assert orphans(tmp_path) == []
    with pytest.raises(UserError, match="another process"):
        sync(tmp_path / sweep.name)


def full(events: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_a_full_disk_does_not_take_is_written_later(
    open_tracker: Open,
    monkeypatch: pytest.MonkeyPatch,
    client: Any,
    runs: Runs,
) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    monkeypatch.setattr(tracker._journal, "append", full)
    for row in rows():
        with pytest.raises(OSError, match="No space left"):
            tracker.trial_row("a", row)
    assert tracker.lost == 12 + 6
    monkeypatch.undo()
    tracker.trial_ended("a", "finished", row)
    assert tracker.lost == 0
    assert tracker.close("FINISHED") == 0
    assert len(history(client, runs()["finetune-a"], "train/loss")) == 4


def test_a_disk_that_stays_full(
    open_tracker: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    monkeypatch.setattr(tracker._journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        tracker.trial_row("a", rows()[0])
    lost = tracker.lost
    assert tracker.close("KILLED") == lost + 2, "the trial's end and the sweep's are derived"
    assert caplog.text.count("No space left") == 1
