from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from raycl.errors import UserError
from raycl.tracking import Store, check, resolve
from raycl.tracking.state import STATE, State, store_of
from raycl.tracking.store import Away, for_mlflow, make, quiet, reason, shown
from raycl.tracking.store import _reach as reach
from tests.waiting import free_port


@pytest.fixture(autouse=True)
def _no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_default_is_sqlite_below_the_runs(tmp_path: Path) -> None:
    assert resolve(tmp_path) == Store(
        f"sqlite:///{tmp_path}/mlflow.db", f"file://{tmp_path}/artifacts"
    )


def test_the_environment_names_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert resolve(tmp_path) == Store("http://tracker:5000", None)
    assert resolve(tmp_path, "https://other") == Store("https://other", None)


def test_a_relative_file_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("runs"), "sqlite:///my.db") == Store(
        f"sqlite:///{tmp_path}/my.db", f"file://{tmp_path}/runs/artifacts"
    )
    with pytest.raises(UserError, match="is relative"):
        check("sqlite:///my.db")


@pytest.mark.parametrize(
    "uri, message",
    [
        ("file:///tmp/mlruns", "plain files"),
        ("./mlruns", "plain files"),
        ("databricks", "plain files"),
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("htp://tracker:5000", "did you mean 'http'"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("http://[::1:5000", "tracking.uri: not a URI: .* Invalid IPv6 URL"),
        ("http://tracker:nine", "tracking.uri: not a URI: .*'nine'"),
        ("postgresql://h:nine/db", "tracking.uri: not a URI: .*'nine'"),
        ("postgresql://ada:a[b@h/db", "the password has a character .* \\[ as %5B"),
        ("http://ada:a]b@h", "the password has a character .* \\] as %5D"),
    ],
)
def test_other_stores_are_refused(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(tmp_path, uri)


def test_a_new_file_is_not_made_but_its_folder_is(tmp_path: Path) -> None:
    check(resolve(tmp_path / "new").uri)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check(resolve(tmp_path).uri)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        check(resolve(tmp_path / "file" / "runs").uri)


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are not the runs you are looking for")
    with pytest.raises(UserError, match="not a database"):
        check(resolve(tmp_path).uri)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_address_nobody_listens_on(scheme: str) -> None:
    uri = f"{scheme}://me:secret@127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="no tracking server answers at") as caught:
        check(uri)
    assert "secret" not in str(caught.value)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycl.tracking.store.ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begin = time.monotonic()
        with pytest.raises(UserError, match="does not work"):
            check(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - begin < 100, "MLflow itself waits for 120 s, several times"


def test_passwords_are_not_shown() -> None:
    assert shown("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert "secret" not in shown("postgresql://me:secret@host/x")
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_reasons_are_short() -> None:
    quiet()
    from mlflow import MlflowClient

    with pytest.raises(Exception, match="Max retries exceeded") as caught:
        MlflowClient(f"http://127.0.0.1:{free_port()}").search_experiments()
    assert reason(caught.value) == "[Errno 111] Connection refused"
    assert reason(ValueError("(sqlite3.Error) no such table: runs\n[SQL: SELECT *]")) == (
        "(sqlite3.Error) no such table: runs"
    )


NAMES = (
    "müller",
    "a b",
    "a#b",
    "a?b",
    "a%41b",
    "100%",
    "o'b\"r",
    "a;b&c=d",
    "x@y:z",
    "[a]*",
    "a::b",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_folder_with_any_name(tmp_path: Path, name: str) -> None:
    """MLflow makes the folder that is written in a URI; SQLAlchemy opens the file that is meant."""
    from sqlalchemy import create_engine

    runs = tmp_path / name / "runs"
    runs.mkdir(parents=True)
    uri = resolve(runs).uri
    assert resolve(runs, uri).uri == uri
    assert resolve(runs, uri + "?timeout=3").uri == uri + "?timeout=3"
    given = for_mlflow(uri)
    assert Path(given.removeprefix("sqlite:///")).parent.is_dir()
    with create_engine(given).connect() as connection:
        connection.exec_driver_sql("create table t (a)")
    assert (runs / "mlflow.db").stat().st_size
    assert shown(uri) == f"sqlite:///{runs}/mlflow.db"


def test_escapes_that_were_written_before_are_understood(tmp_path: Path) -> None:
    assert for_mlflow(f"sqlite:///{tmp_path}/m%C3%BCller/mlflow.db") == (
        f"sqlite:///{tmp_path}/müller/mlflow.db"
    )


def test_mlflow_in_a_folder_with_every_such_character(tmp_path: Path) -> None:
    quiet()
    from mlflow import MlflowClient

    runs = tmp_path / " ".join(NAMES) / "runs"
    runs.mkdir(parents=True)
    used = resolve(runs)
    make(used.uri)
    assert [path.name for path in runs.iterdir()] == ["mlflow.db"]
    client = MlflowClient(for_mlflow(used.uri))
    experiment = client.create_experiment("x", artifact_location=used.artifacts)
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "hello", "a.txt")
    assert [file.path for file in client.list_artifacts(run)] == ["a.txt"]
    assert sorted(path.name for path in runs.iterdir()) == ["artifacts", "mlflow.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [" ".join(NAMES)]


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot keep runs in '.*/caf\\xe9', .* is not UTF-8"):
        resolve(tmp_path / os.fsdecode(b"caf\xe9"))


def test_a_database_that_refuses_says_so_without_a_traceback(
    store: Store, client: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk refuses every statement for as long as it is full."""
    from mlflow.exceptions import MlflowException

    quiet()
    run = client.create_run(client.create_experiment("refused")).info.run_id
    broken = "CREATE TRIGGER refuse BEFORE INSERT ON tags BEGIN INSERT INTO missing VALUES (1); END"
    path = make_url(store.uri).database or ""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(broken)
        database.commit()
        try:
            with pytest.raises(MlflowException, match="no such table"):
                client.set_tag(run, "a", "b")
        finally:
            database.execute("DROP TRIGGER refuse")
            database.commit()
    client.set_tag(run, "a", "b")
    assert "Traceback" not in capfd.readouterr().err


def test_a_sweep_goes_on_where_it_was_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Store("http://tracker:5000", None)
    assert resolve(tmp_path, used=used) == used
    assert resolve(tmp_path, "http://new", used=used) == Store("http://new", None)
    file = Store(f"sqlite:///{tmp_path}/own.db", "file:///elsewhere")
    assert resolve(tmp_path, used=file) == resolve(tmp_path), "the runs have been moved"
    (tmp_path / "own.db").touch()
    assert resolve(tmp_path, used=file) == file
    beside = resolve(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert resolve(tmp_path, used=beside) == beside
    assert resolve(tmp_path / "copy", used=beside) == resolve(tmp_path / "copy"), "a copy"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable")
    assert resolve(tmp_path, used=used) == Store("http://variable", None)


def test_a_sweep_is_read_where_it_was_tracked_and_a_copy_in_its_own_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, copy = tmp_path / "runs", tmp_path / "copy"
    used = resolve(runs)
    (runs / "s").mkdir(parents=True)
    (runs / "mlflow.db").touch()
    State(used.uri, used.artifacts).save(runs / "s" / STATE)
    shutil.copytree(runs, copy)
    assert store_of(runs / "s") == used
    assert store_of(copy / "s") == resolve(copy) != used
    monkeypatch.chdir(tmp_path)
    assert store_of(Path("runs/s")) == used
    assert store_of(runs / "s", "http://asked") == Store("http://asked", None)
    assert store_of(runs / "never") == used
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable")
    assert store_of(runs / "s") == used, "a variable set since then does not move it"
    assert store_of(copy / "s") == store_of(runs / "never") == Store("http://variable", None)


@pytest.mark.parametrize(
    "uri, variables",
    [
        ("https://mlflow.example.org", {"https_proxy": "http://proxy:3128"}),
        ("https://mlflow.example.org", {"ALL_PROXY": "http://proxy:3128"}),
        ("postgresql:///db?host=/var/run/postgresql", {}),
    ],
)
def test_what_no_plain_connection_reaches_is_left_to_mlflow(
    monkeypatch: pytest.MonkeyPatch, uri: str, variables: dict[str, str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refused)
    with pytest.raises(Away):
        reach("https://mlflow.example.org", "https")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    reach(uri, uri.partition(":")[0])
