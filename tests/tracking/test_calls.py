"""How many calls a trial costs, what they carry, and what is left out without pictures."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from mlflow.exceptions import MlflowException
from tracking_helpers import history, rows, trial

from raycl.tracking import Store, SweepRecord, Tracker, names, plots, sync
from raycl.tracking.calls import _is_final
from raycl.tracking.records import TrialRecord
from raycl.tracking.state import STATE, State
from tests.waiting import until

Open = Callable[..., Tracker]
Runs = Callable[[], dict[str, Any]]


class Counting:
    """A real client that notes each call and the run it is for."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            done = method(*args, **kwargs)
            run = done.info.run_id if name == "create_run" else str(args[0]) if args else ""
            self.calls.append((run, name, kwargs))
            return done

        return call

    def of(self, run: Any) -> list[str]:
        return [name for run_id, name, _ in self.calls if run_id == run.info.run_id]


def painter(sweep_folder: Path, key: str) -> TrialRecord:
    """A trial whose method has made a picture."""
    pictures = sweep_folder / "trials" / key / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "x-task-1.png").write_bytes(b"png")
    return replace(trial(key), storage=f"trials/{key}")


def run_trial(tracker: Tracker, record: TrialRecord) -> None:
    tracker.trial_started(record)
    made = rows()
    made[-1]["result"]["histograms"] = {"bits/a": [[1, 2], [3, 0]]}
    for row in made:
        tracker.trial_row(record.key, row | ({"pictures": ["x-task-1"]} if record.storage else {}))
    tracker.trial_ended(record.key, "finished", row)


def files(client: Any, run: Any, path: str = "") -> set[str]:
    """Paths of all artifacts of a run."""
    found = client.list_artifacts(run.info.run_id, path)
    below = [files(client, run, file.path) for file in found if file.is_dir]
    return {file.path for file in found if not file.is_dir}.union(*below)


NUMBERS = {"results/matrix.json", "tables/final.json"}
DRAWN = {f"plots/{name}.png" for name in ("accuracy_matrix_class", "accuracy_matrix_task", "bits")}


def test_a_finished_trial_is_three_calls_for_its_numbers_and_one_for_its_files(
    open_tracker: Open, runs: Runs, client: Any
) -> None:
    """The numbers are params, metrics and tags; that the run begins and ends are calls, too.

    So three is the least there can be: one makes the run, one has all numbers, one ends it. All
    trials were over before MLflow answered; one that is followed while it runs has further batches.
    """
    answers, counting = threading.Event(), Counting(client)

    def connect(uri: str) -> Any:
        assert answers.wait(20)
        return counting

    tracker = open_tracker(connect=connect)
    for key in "abc":
        run_trial(tracker, trial(key))
    answers.set()
    assert tracker.close("FINISHED") == 0
    found = runs()
    for key in "abc":
        run = found[f"finetune-{key}"]
        calls = ["create_run", "log_batch", "set_terminated", "log_artifacts"]
        assert counting.of(run) == calls
        assert history(client, run, "train/loss") == [(i, 1 / i) for i in (1, 2, 3, 4)]
        assert run.data.params["train.lr"] == "0.1"
        assert run.data.tags["raycl.end"] == "finished"
        assert files(client, run) == NUMBERS | DRAWN
    (batch,) = [
        kwargs
        for run_id, name, kwargs in counting.calls
        if name == "log_batch" and run_id == run.info.run_id
    ]
    assert {kind: bool(values) for kind, values in batch.items()} == dict.fromkeys(
        ("params", "metrics", "tags"), True
    )
    whole = [name for _, name, _ in counting.calls]
    assert len(whole) < 3 * 4 + 12, "what the sweep itself costs does not grow with its trials"


# -- without pictures --------------------------------------------------------------------------


def test_without_pictures_the_numbers_are_all_there(
    open_tracker: Open,
    runs: Runs,
    client: Any,
    sweep: SweepRecord,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / sweep.name
    record = painter(folder, "a")
    plain = Tracker(replace(sweep, pictures=False), folder, *store)
    drawn = plots.pictures
    monkeypatch.setattr(plots, "pictures", lambda result: pytest.fail("it was drawn"))
    plain.start()
    run_trial(plain, record)
    assert plain.close("FINISHED") == 0
    run = runs()["finetune-a"]
    assert files(client, run) == NUMBERS
    place = client.download_artifacts(run.info.run_id, "results/matrix.json", str(tmp_path))
    assert list(json.loads(Path(place).read_text())["matrices"]) == ["task", "class"]
    assert len(history(client, run, "train/loss")) == 4
    note = client.get_experiment_by_name(sweep.name).tags["mlflow.note.content"]
    assert "tracking: {pictures: false}" in note
    assert "plots/" not in note
    assert sync(folder) == (0, 0, None), "what is not wanted is not lost"

    monkeypatch.setattr(plots, "pictures", drawn)
    assert open_tracker().close("FINISHED") == 0  # the same sweep, with pictures
    assert sync(folder).left == 0
    assert files(client, runs()["finetune-a"]) == NUMBERS | DRAWN | {"pictures/x-task-1.png"}


def test_pages_say_where_pictures_are_unless_there_are_none() -> None:
    for kind in ("images", "games"):
        sweep = SweepRecord("s", "id", kind=kind)
        assert "`plots/`" in names.experiment_note(sweep)
        assert "`plots/`" not in names.experiment_note(replace(sweep, pictures=False))


def test_lost_plots_are_drawn_again(
    open_tracker: Open, runs: Runs, client: Any, sweep: SweepRecord, tmp_path: Path
) -> None:
    tracker = open_tracker()
    run_trial(tracker, trial("a"))
    assert tracker.close("FINISHED") == 0
    run = runs()["finetune-a"]
    shutil.rmtree(Path(unquote(urlsplit(run.info.artifact_uri).path)) / "plots")
    assert sync(tmp_path / sweep.name) == (1, 0, None)
    assert files(client, run) == NUMBERS | DRAWN


# -- refused, lost, resumed --------------------------------------------------------------------


def answer(status: int) -> requests.HTTPError:
    """The error of a server's answer, as it comes where files are sent through it."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error", response=response)


class Picky(Counting):
    """A client that refuses one file."""

    def __init__(self, real: Any, refusal: Exception) -> None:
        super().__init__(real)
        self.refusal = refusal

    def log_artifacts(self, run_id: str, folder: str) -> None:
        if list(Path(folder).rglob("bits.png")):
            raise self.refusal
        self.real.log_artifacts(run_id, folder)

    def log_artifact(self, run_id: str, file: str, folder: str) -> None:
        if file.endswith("bits.png"):
            raise self.refusal
        self.real.log_artifact(run_id, file, folder)


@pytest.mark.parametrize(
    "refusal", [MlflowException("it is not wanted", error_code=1000), answer(413), answer(403)]
)
def test_a_refused_file_is_kept_counted_and_takes_no_other_with_it(
    open_tracker: Open,
    runs: Runs,
    client: Any,
    sweep: SweepRecord,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    refusal: Exception,
) -> None:
    tracker = open_tracker(connect=lambda uri: Picky(client, refusal))
    for key in "ab":
        run_trial(tracker, trial(key))
    assert tracker.close("FINISHED") == 2
    assert caplog.text.count("MLflow refused plots/bits.png") == 1, "named once"
    for key in "ab":
        assert files(client, runs()[f"finetune-{key}"]) == NUMBERS | DRAWN - {"plots/bits.png"}
    saved = State.saved(tmp_path / sweep.name / STATE)
    assert saved is not None
    assert list(saved.refused.values()) == [1, 1]
    assert sync(tmp_path / sweep.name) == (2, 0, None), "it takes them now"
    for key in "ab":
        assert files(client, runs()[f"finetune-{key}"]) == NUMBERS | DRAWN


@pytest.mark.parametrize("status, final", [(404, True), (408, False), (429, False), (502, False)])
def test_only_some_answers_are_final(status: int, final: bool) -> None:
    assert _is_final(answer(status)) == final


def test_a_file_that_cannot_be_made_is_counted_and_takes_no_other_with_it(
    open_tracker: Open,
    runs: Runs,
    client: Any,
    sweep: SweepRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(result: Any) -> Any:
        raise KeyError("tasks")

    with monkeypatch.context() as patched:
        patched.setattr(plots, "pictures", broken)
        tracker = open_tracker()
        for key in "ab":
            run_trial(tracker, trial(key))
        assert tracker.close("FINISHED") == 2
    said = "cannot make a file of trial a: KeyError: 'tasks'; it is kept in the journal"
    assert caplog.text.count("cannot make") == caplog.text.count(said) == 1, "said once"
    for key in "ab":
        assert files(client, runs()[f"finetune-{key}"]) == NUMBERS
    assert sync(tmp_path / sweep.name) == (2, 0, None), "it can be made now"
    for key in "ab":
        assert files(client, runs()[f"finetune-{key}"]) == NUMBERS | DRAWN


def test_a_full_disk_is_waited_for(
    open_tracker: Open, runs: Runs, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are made on it before they are sent."""
    full = [OSError(28, "No space left on device")] * 2
    drawn = plots.pictures

    def room(result: Any) -> Any:
        if full:
            raise full.pop()
        return drawn(result)

    monkeypatch.setattr(plots, "pictures", room)
    tracker = open_tracker()
    run_trial(tracker, trial("a"))
    until(lambda: not full and tracker.problem is None)
    assert tracker.close("FINISHED") == 0
    assert files(client, runs()["finetune-a"]) == NUMBERS | DRAWN


def test_a_param_that_has_changed_takes_no_metric_with_it(
    open_tracker: Open, runs: Runs, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow refuses the whole call for it; everything of the trial is in that call."""
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    tracker.trial_ended("a", "killed")
    assert tracker.close("KILLED") == 0
    tracker = open_tracker()
    record = trial("a")
    record.params["seed"] = 7
    record.params["new"] = "value"
    run_trial(tracker, record)
    assert tracker.close("FINISHED") == 1
    assert caplog.text.count("MLflow refused seed") == 1
    run = runs()["finetune-a"]
    assert (run.data.params["seed"], run.data.params["new"]) == ("0", "value")
    assert len(history(client, run, "train/loss")) == 4
    assert run.data.tags["raycl.end"] == "finished"
    assert run.info.status == "FINISHED"


def test_after_a_failure_a_resumed_sweep_is_still_the_resumed_one(
    open_tracker: Open, store: Store, sweep: SweepRecord, runs: Runs, client: Any, tmp_path: Path
) -> None:
    """A client that is made again reads the sweep's latest line, not the first."""
    assert open_tracker().close("FINISHED") == 0
    counting, broken = Counting(client), threading.Event()

    def connect(uri: str) -> Any:
        if broken.is_set():
            broken.clear()
            raise ConnectionError("no route to tracker")
        return counting

    later = replace(sweep, tags={"changes": "code"}, pictures=False)
    tracker = Tracker(later, tmp_path / sweep.name, *store, connect=connect)
    tracker.start()
    while "raycl.changes" not in runs()[sweep.name].data.tags:
        assert tracker.alive
    broken.set()
    tracker._writer._calls = None  # as after any failure
    while broken.is_set():
        assert tracker.alive
    run_trial(tracker, trial("a"))
    assert tracker.close("FINISHED") == 0
    run = runs()["finetune-a"]
    assert run.data.tags["raycl.changes"] == "code"
    assert files(client, run) == NUMBERS
