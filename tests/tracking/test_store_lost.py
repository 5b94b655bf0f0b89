"""The store is emptied, restored, half made; the journal loses lines: local records win."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracking_helpers import history, rows, trial

from raycl.errors import UserError
from raycl.tracking import Store, SweepRecord, Tracker, TrialEnd, orphans, store, sync, ui, writer
from raycl.tracking.journal import Ledger, count, read
from raycl.tracking.state import STATE, State
from tests.waiting import until

SWEEP = SweepRecord("lost", "id-lost", "A note.", "name: lost\n", {"name": "lost"})


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as MLflow makes it; its tables take seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    store.make(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


class Here:
    """A sweep in a folder, tracked in a store of its own."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.directory = folder / "lost"
        self.database = database
        self.journal = self.directory / "tracking.jsonl"
        self.store = Store(f"sqlite:///{database}", (folder / "artifacts").as_uri())

    def tracker(self, ends: tuple[TrialEnd, ...] = ()) -> Tracker:
        found = Tracker(SWEEP, self.directory, *self.store)
        found.start(ends)
        return found

    def replaced(self, by: Path) -> None:
        """Another file in place of the store, as if this process had never seen the old one."""
        Path(shutil.copy(by, f"{by}.copy")).replace(self.database)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for engine in SqlAlchemyStore._engine_map.values():
            engine.dispose()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.store.uri)

    def runs(self) -> dict[str, Any]:
        experiment = self.client.get_experiment_by_name("lost")
        found = self.client.search_runs([experiment.experiment_id]) if experiment else []
        assert len({run.info.run_name for run in found}) == len(found), "a run exists twice"
        return {run.info.run_name: run for run in found}


@pytest.fixture
def here(tmp_path: Path, database: Path) -> Here:
    return Here(tmp_path, database)


def run_trial(tracker: Tracker, key: str) -> None:
    tracker.trial_started(trial(key))
    for row in rows():
        tracker.trial_row(key, row)
    tracker.trial_ended(key, "finished", row)


@pytest.fixture
def finished(here: Here) -> Here:
    tracker = here.tracker()
    run_trial(tracker, "a")
    run_trial(tracker, "b")
    assert tracker.close("FINISHED") == 0
    return here


def whole(here: Here, times: int = 1) -> None:
    """Everything of two finished trials is there, as often as they ran."""
    found = here.runs()
    assert {name: run.info.status for name, run in found.items()} == {
        "lost": "FINISHED",
        "finetune-a": "FINISHED",
        "finetune-b": "FINISHED",
    }
    for name in ("finetune-a", "finetune-b"):
        points = history(here.client, found[name], "eval/class/average_accuracy")
        assert sorted(set(points)) == [(1, 90.0), (2, 85.0)]
        assert len(points) == 2 * times
        files = here.client.list_artifacts(found[name].info.run_id, "results")
        assert [file.path for file in files] == ["results/matrix.json"]


def test_an_emptied_store_is_filled_again(finished: Here, empty_database: Path) -> None:
    """The experiment gets the same number again, so that it proves nothing."""
    finished.replaced(empty_database)
    sent = sync(finished.directory)
    assert sent == (count(finished.journal, 0), 0, None)
    whole(finished)
    assert sync(finished.directory) == (0, 0, None)


def test_a_store_restored_from_a_backup_is_filled_again(here: Here, tmp_path: Path) -> None:
    tracker = here.tracker()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    backup = shutil.copy(here.database, tmp_path / "backup.db")
    tracker = here.tracker()
    run_trial(tracker, "b")
    assert tracker.close("FINISHED") == 0
    here.replaced(backup)
    tracker = here.tracker()  # also by the next start, without sync
    assert tracker.close("FINISHED") == 0
    whole(here)


def test_a_backup_that_has_every_run_but_not_every_value(here: Here, tmp_path: Path) -> None:
    tracker = here.tracker()
    tracker.trial_started(trial("a"))
    tracker.trial_started(trial("b"))
    tracker.trial_row("a", rows()[0])
    assert tracker.close("KILLED") == 0
    backup = shutil.copy(here.database, tmp_path / "backup.db")
    for _ in range(2):
        tracker = here.tracker()
        for key in "ab":
            run_trial(tracker, key)
        assert tracker.close("FINISHED") == 0
    here.replaced(backup)
    assert sync(here.directory).left == 0
    whole(here)


def test_lost_artifacts_are_sent_again(finished: Here, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "artifacts")
    assert sync(finished.directory).sent == 3, "two results, one sweep file"
    whole(finished)


def test_a_journal_of_another_time_is_sent_from_its_beginning(finished: Here) -> None:
    """A journal restored from a backup, to which lines were added since."""
    lines = finished.journal.read_bytes().splitlines(keepends=True)
    older = [line for line in lines if b'"key":"b"' not in line]
    finished.journal.write_bytes(b"".join(older) + b"x" * 10_000 + b"\n")
    tracker = finished.tracker()
    for key in "ab":
        run_trial(tracker, key)
    assert tracker.close("FINISHED") == 0
    found = finished.runs()
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["finetune-b"].data.tags["raycl.attempt"] == "1", "the line of the new journal"


def damage(journal: Path, what: str) -> None:
    """Spoil the first line that has these bytes."""
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if what.encode() in line)
    lines[at] = b"X" * (len(lines[at]) - 1) + b"\n"
    journal.write_bytes(b"".join(lines))


def known(key: str) -> TrialEnd:
    return TrialEnd(trial(key), "finished", rows()[-1])


@pytest.mark.parametrize("line", ['"event":"end"', '"event":"trial"', '"event":"sweep"'])
@pytest.mark.parametrize("how", ["run", "sync"])
def test_a_damaged_line_is_made_again_from_the_outcome(
    finished: Here, empty_database: Path, line: str, how: str
) -> None:
    damage(finished.journal, line)
    finished.replaced(empty_database)
    ends = (known("a"), known("b"))
    if how == "run":
        assert finished.tracker(ends).close("FINISHED") == 0
    else:
        assert sync(finished.directory, None, SWEEP, ends).left == 0
    whole(finished)
    assert not Ledger.of(finished.journal).open_trials
    assert orphans(finished.directory.parent) == []


def test_a_lost_journal_is_made_again_from_the_outcomes(
    finished: Here, empty_database: Path
) -> None:
    finished.journal.unlink()
    finished.replaced(empty_database)
    assert sync(finished.directory, None, SWEEP, (known("a"), known("b"))).left == 0
    found = finished.runs()
    assert found["finetune-a"].info.status == "FINISHED"
    assert found["finetune-a"].data.metrics["eval/class/average_accuracy"] == 85.0


def test_what_has_finished_is_never_orphaned(here: Here) -> None:
    """The trial's outcome was lost, it was started again, and that driver was killed."""
    tracker = here.tracker()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    tracker = here.tracker()
    tracker.trial_started(trial("a"))
    tracker.close("KILLED")
    run = here.runs()["finetune-a"]
    assert (run.info.status, run.data.tags["raycl.end"]) == ("FINISHED", "finished")


def test_a_run_deleted_by_hand_stays_so(finished: Here) -> None:
    finished.client.delete_run(finished.runs()["finetune-a"].info.run_id)
    tracker = finished.tracker()
    assert tracker.close("FINISHED") == 0
    assert set(finished.runs()) == {"lost", "finetune-b"}


# -- what MLflow refuses -----------------------------------------------------------------------


class Strict:
    """A client that refuses a metric, a param or a tag, by its name or its value.

    The connection breaks after calls that have one of the names in ``lost``, once for each.
    """

    def __init__(self, real: Any, refused: str, lost: Sequence[str] = ()) -> None:
        self.real, self.refused, self.lost = real, refused, list(lost)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if any(self.refused in (v.key, v.value) for v in (*metrics, *params, *tags)):
            raise MlflowException("it is not wanted", error_code=1000)
        self.real.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        if self.lost and any(value.key == self.lost[0] for value in (*metrics, *params, *tags)):
            raise ConnectionError(f"the answer to {self.lost.pop(0)} was lost")


@pytest.mark.parametrize("name, values", [("train/loss", 4), ("train.lr", 1)])
def test_a_refused_value_is_kept_counted_and_takes_no_other_with_it(
    here: Here, caplog: pytest.LogCaptureFixture, name: str, values: int
) -> None:
    strict = Strict(here.client, name)
    tracker = Tracker(SWEEP, here.directory, *here.store, connect=lambda uri: strict)  # type: ignore[arg-type,return-value]
    tracker.start()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == values
    assert caplog.text.count(f"MLflow refused {name}") == 1, "named once"
    assert orphans(here.directory.parent) == [here.directory], "raycl doctor says so"
    run = here.runs()["finetune-a"]
    assert run.info.status == "FINISHED"
    assert len(history(here.client, run, "time/epoch_s")) == 4
    assert sum(State.saved(here.directory / STATE).refused.values()) == values  # type: ignore[union-attr]
    assert sync(here.directory).left == 0, "it takes it now"
    run = here.runs()["finetune-a"]
    assert name in run.data.params or len(history(here.client, run, name)) == 4
    assert orphans(here.directory.parent) == []


def test_a_refused_file_of_the_sweep_is_sent_again_and_leaves_its_end(here: Here) -> None:
    class NoSweep(Strict):
        def log_artifacts(self, run_id: str, folder: str) -> None:
            if (Path(folder) / "sweep").exists():
                raise MlflowException("failed with error code 413", error_code=1)
            self.real.log_artifacts(run_id, folder)

        def log_artifact(self, *_: str) -> None:
            raise MlflowException("failed with error code 413", error_code=1)

    narrow = NoSweep(here.client, "")
    tracker = Tracker(SWEEP, here.directory, *here.store, connect=lambda uri: narrow)  # type: ignore[arg-type,return-value]
    tracker.start()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 2
    run_id = here.runs()["lost"].info.run_id
    here.client.set_tag(run_id, "mlflow.note.content", "edited")
    before = here.runs()["lost"]
    assert sync(here.directory).left == 0, "it takes it now"
    after = here.runs()["lost"]
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert after.data.tags == before.data.tags
    files = here.client.list_artifacts(run_id, "sweep")
    assert [file.path for file in files] == ["sweep/resolved.yaml", "sweep/sweep.yaml"]


@pytest.mark.parametrize("refused", ["1 error", "raycl.error"])
def test_an_old_end_of_which_something_was_refused_leaves_the_new_one(
    here: Here, refused: str
) -> None:
    """A sweep was stopped after its trial had failed; resumed, both finished."""
    strict = Strict(here.client, refused)
    for sweep_status in ("KILLED", "FINISHED"):
        tracker = Tracker(SWEEP, here.directory, *here.store, connect=lambda uri: strict)  # type: ignore[arg-type,return-value]
        tracker.start()
        if sweep_status == "KILLED":
            tracker.trial_started(trial("a"))
            tracker.trial_ended("a", "error", error="ValueError: no")
            assert tracker.close("KILLED") == 1
        else:
            run_trial(tracker, "a")
            tracker.close("FINISHED")
    before = here.runs()
    assert {run.info.status for run in before.values()} == {"FINISHED"}
    assert sync(here.directory).left == 0
    after = here.runs()
    for name, run in before.items():
        ended = (run.info.status, run.info.end_time)
        assert (after[name].info.status, after[name].info.end_time) == ended
        assert after[name].data.tags == run.data.tags


def test_a_deleted_run_of_which_something_was_refused_stays_deleted(here: Here) -> None:
    strict = Strict(here.client, "train.lr")
    tracker = Tracker(SWEEP, here.directory, *here.store, connect=lambda uri: strict)  # type: ignore[arg-type,return-value]
    tracker.start()
    tracker.trial_started(trial("a"))
    until(lambda: tracker._writer.state.refused)
    tracker.trial_ended("a", "killed")
    assert tracker.close("KILLED") == 1
    here.client.delete_run(here.runs()["finetune-a"].info.run_id)
    assert sync(here.directory).left == 0
    assert set(here.runs()) == {"lost"}


def test_a_refused_value_counts_once_however_often_it_is_sent(here: Here) -> None:
    """The connection breaks after it was refused: while the sweep runs, and when it is tried again.

    Nothing is sent before all is written, so that the trial is one call.
    """
    strict, written = Strict(here.client, "train/loss", ["raycl.end"] * 2), threading.Event()

    def connect(uri: str) -> Any:
        assert written.wait(20)
        return strict

    tracker = Tracker(SWEEP, here.directory, *here.store, connect=connect)
    tracker.start()
    run_trial(tracker, "a")
    written.set()
    until(lambda: not strict.lost and tracker.problem is None)
    assert tracker.close("FINISHED") == 4

    strict.lost = ["time/epoch_s"] * 2
    again = writer.Writer(here.directory, *here.store, connect)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            again.step()
        assert again.left() == 4
    assert not again.step()
    assert again.left() == 4
    assert sync(here.directory).left == 0
    assert len(history(here.client, here.runs()["finetune-a"], "train/loss")) == 4


def test_a_call_too_large_for_a_proxy_is_sent_in_parts(here: Here) -> None:
    class Narrow(Strict):
        def log_batch(
            self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()
        ) -> None:
            if len(metrics) + len(params) + len(tags) > 10:
                text = "API request to endpoint /x failed with error code 413 != 200. <html>"
                raise MlflowException(text, error_code=1)
            super().log_batch(run_id, metrics, params, tags)

    narrow = Narrow(here.client, "")
    tracker = Tracker(SWEEP, here.directory, *here.store, connect=lambda uri: narrow)  # type: ignore[arg-type,return-value]
    tracker.start()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    assert len(history(here.client, here.runs()["finetune-a"], "train/loss")) == 4


def test_variables_of_other_programs_do_not_reach_the_client(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in store.MISLEADING:
        monkeypatch.setenv(name, "true" if "ENABLE" in name else "m-0123")
    tracker = here.tracker()
    run_trial(tracker, "a")
    assert tracker.close("FINISHED") == 0
    assert here.runs()["finetune-a"].data.metrics["train/loss"] == 0.25
    assert not set(store.MISLEADING) & set(os.environ)


# -- making a store ----------------------------------------------------------------------------


@pytest.fixture
def half_made(empty_database: Path, tmp_path: Path) -> Path:
    """What a driver leaves that is killed before MLflow's first experiment is there."""
    path = Path(shutil.copy(empty_database, tmp_path / "half.db"))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM experiments")
        connection.execute("UPDATE alembic_version SET version_num = '5d2d30f0abce'")
    connection.close()
    return path


@pytest.mark.parametrize("state", ["half", "tables missing", "whole", "empty file"])
def test_a_half_made_store_does_not_block_the_folder(
    half_made: Path, empty_database: Path, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    if state == "tables missing":
        half_made.unlink()
        connection = sqlite3.connect(half_made)
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.close()
    elif state == "whole":
        shutil.copy(empty_database, half_made)
    elif state == "empty file":
        half_made.write_bytes(b"")
    store.check(f"sqlite:///{half_made}")
    moved = half_made.with_name("half.db.half-made").exists()
    assert moved == (state in ("half", "tables missing"))
    assert half_made.exists() != moved
    assert ("was never finished" in caplog.text) == moved


@pytest.mark.parametrize("faster", [False, True])
def test_a_store_is_made_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    path = tmp_path / "mlflow.db"

    def written(uri: str, artifacts: str) -> Any:
        Path(uri.removeprefix("sqlite:///")).write_text("mine")
        return SimpleNamespace(engine=SimpleNamespace(dispose=lambda: None))

    def refused(*_: object) -> None:
        if faster:
            path.write_text("another's")
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", written)
    monkeypatch.setattr(os, "link", refused)
    store.make(f"sqlite:///{path}")
    assert path.read_text() == ("another's" if faster else "mine")
    assert list(tmp_path.iterdir()) == [path]


def test_a_data_base_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute("CREATE TABLE studies (id INTEGER)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"study.db is no store of MLflow: it has a table 'studies'"
    ):
        store.check(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["study.db"]


def test_what_was_moved_away_before_stays_and_the_rest_of_a_file_goes_along(
    half_made: Path,
) -> None:
    earlier = half_made.with_name("half.db.half-made")
    earlier.write_bytes(b"earlier")
    Path(f"{half_made}-journal").write_bytes(b"")
    store.check(f"sqlite:///{half_made}")
    assert earlier.read_bytes() == b"earlier"
    assert half_made.with_name("half.db.half-made-2").exists()
    assert not Path(f"{half_made}-journal").exists()


def test_a_store_that_somebody_still_makes_is_waited_for(
    half_made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_open_elsewhere", lambda path: True)
    monkeypatch.setattr(store, "MAKING_S", 0.0)
    with pytest.raises(UserError, match="is being made by another process"):
        store.check(f"sqlite:///{half_made}")
    assert half_made.exists()


def test_a_store_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    path = tmp_path / "mlflow.db"
    (tmp_path / ".mlflow.db.999999999.tmp").touch()  # of a process that was killed

    def killed(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        assert not path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", killed)
    with pytest.raises(KeyboardInterrupt):
        store.make(f"sqlite:///{path}")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(gzip.compress(os.urandom(5000)))
    with pytest.raises(UserError, match=r"does not work: .*; if it is damaged, move it away"):
        store.check(f"sqlite:///{path}")


def test_a_damaged_store_is_one_line_also_to_look_at(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(gzip.compress(os.urandom(5000)))
    with pytest.raises(UserError, match=r"^tracking.uri: .* cannot be read: .*not a database"):
        ui.page(f"sqlite:///{path}", "http://127.0.0.1:5000", "lost")


def test_the_state_of_another_raycl_or_a_torn_one_is_made_again(
    finished: Here, caplog: pytest.LogCaptureFixture
) -> None:
    file = finished.directory / STATE
    good = json.loads(file.read_text())
    for bad in ("", "[]", "{", json.dumps(good | {"new": 1}), json.dumps(good | {"offset": "x"})):
        caplog.clear()
        file.write_text(bad)
        assert State.saved(file) is None
        assert f"{file}" in caplog.text
        assert "sending the journal again" in caplog.text
    assert sync(finished.directory, finished.store.uri).left == 0
    whole(finished)


def test_lines_that_are_no_events_are_passed_over(finished: Here) -> None:
    before = [event for _, _, event in read(finished.journal)]
    with finished.journal.open("ab") as file:
        file.write(b'null\n5\n{}\n{"event":"later"}\n\0\0\0\0\n\xff\xfe\n')
    assert [event for _, _, event in read(finished.journal)] == before


def test_unreadable_lines_hold_up_nothing(finished: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than are read at once, in the middle and at the end."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1000)
    with finished.journal.open("ab") as file:
        file.write(b"\0" * 3000 + b"\n")
    tracker = finished.tracker()
    run_trial(tracker, "c")
    assert tracker.close("FINISHED") == 0
    assert finished.runs()["finetune-c"].info.status == "FINISHED"
    with finished.journal.open("ab") as file:
        file.write(b"\0" * 3000 + b"\n")
    assert sync(finished.directory) == (0, 0, None)
    assert orphans(finished.directory.parent) == []


def test_what_a_killed_driver_left_is_closed_without_an_empty_line(
    finished: Here, caplog: pytest.LogCaptureFixture
) -> None:
    lines = finished.journal.read_bytes().splitlines(keepends=True)
    assert b'"event":"close"' in lines[-1]
    finished.journal.write_bytes(b"".join(lines[:-1]))
    assert sync(finished.directory).left == 0
    assert Ledger.of(finished.journal).closed == "KILLED"
    assert b"\n\n" not in finished.journal.read_bytes()
    assert "unreadable line" not in caplog.text


def test_of_a_sweep_of_somebody_else_only_its_end_is_known(
    finished: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its owner may read how far it has been sent."""
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != STATE and may(path, mode)
    )
    assert orphans(finished.directory.parent) == []
    with finished.journal.open("ab") as file:
        file.write(json.dumps({"event": "sweep", "tags": {}}).encode() + b"\n")
    assert orphans(finished.directory.parent) == [finished.directory]
