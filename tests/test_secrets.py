"""Passwords, tokens and keys: in no line, no file that others can read, no process list."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl import doctor, jobs, secrets
from raycl.errors import UserError
from raycl.sweep import run
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.tracked import sweep_record
from raycl.tracking import store, ui
from raycl.tracking.journal import JOURNAL
from raycl.tracking.state import STATE, State
from raycl.tracking.tracker import Tracker

WORD = "s3cret-word"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAYCL_RUNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"http://ada:{WORD}@host:5000/x", "http://ada:***@host:5000/x"),
        (f"see https://{WORD}@host, then", "see https://***@host, then"),
        (f"https://{WORD}:@host", "https://***@host"),
        (f"postgresql+psycopg2://ada:{WORD}@h/db", "postgresql+psycopg2://ada:***@h/db"),
        ("postgresql://ada@h/db", "postgresql://ada@h/db"),
        (
            f"postgresql://h/db?user=a&password={WORD}&x=1",
            "postgresql://h/db?user=a&password=***&x=1",
        ),
        (f"mysql://h/db?sslpassword={WORD}", "mysql://h/db?sslpassword=***"),
        (f"mssql+pyodbc:///?odbc_connect=PWD%3D{WORD}", "mssql+pyodbc:///?odbc_connect=***"),
        (f"https://h/x?X-Amz-Signature={WORD}&a=b", "https://h/x?X-Amz-Signature=***&a=b"),
        (f"s3://KEY:{WORD}@bucket/x", "s3://KEY:***@bucket/x"),
        (f"http://ada:p@{WORD}@host", "http://ada:***@host"),
        (f"http://ada:{WORD}/x@host", "http://ada:***@host"),
        (f"http://ada:{WORD}#x@host", "http://ada:***@host"),
        (f"--set tracking.uri=http://a:{WORD}@h", "--set tracking.uri=http://a:***@h"),
        (f"host=h user=ada password={WORD} dbname=x", "host=h user=ada password=*** dbname=x"),
        (
            "http://host:5000/a@b http://[::1]:5000/a@b",
            "http://host:5000/a@b http://[::1]:5000/a@b",
        ),
        ("sqlite:////data/me@work/mlflow.db", "sqlite:////data/me@work/mlflow.db"),
        ("'http://a:b@h' and \"http://c:d@h\"", "'http://a:***@h' and \"http://c:***@h\""),
        ("http://ada:it's-me@host", "http://ada:***@host"),
        ('tracking.uri=http://ada:a"b<c>@h', "tracking.uri=http://ada:***@h"),
        ("postgresql://h/db?password=it's&x=1", "postgresql://h/db?password=***&x=1"),
        ("--set=tracking.uri=http://ada:it's@h", "--set=tracking.uri=http://ada:***@h"),
        ("http://h/#/x?viewStateShareKey=raycl", "http://h/#/x?viewStateShareKey=raycl"),
        ("http://h/x?ShareKey=raycl", "http://h/x?ShareKey=***"),
    ],
)
def test_what_is_masked(text: str, shown: str) -> None:
    assert secrets.masked(text) == shown
    assert secrets.masked(shown) == shown, "masking again changes nothing"


def test_a_password_is_hidden_where_it_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WORD in secrets.redact(f"Port could not be cast to integer value as '{WORD}'")
    secrets.remember(f"http://ada:{WORD}%21@host")
    assert secrets.redact(f"not a port: '{WORD}!'") == "not a port: '***'"
    secrets.remember("http://ada:it's-me@host")
    assert secrets.redact("see http://ada:it's-me@host/x") == "see http://ada:***@host/x"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-tok-tok")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/ada/key.json")
    assert (
        secrets.redact("Bearer tok-tok-tok, /home/ada/key.json") == "Bearer ***, /home/ada/key.json"
    )


def test_the_words_of_a_path_and_of_an_option_are_no_passwords() -> None:
    file = "/home/ada/.postgresql/client.key"
    for path in (file, file.replace("/", "%2F")):
        secrets.remember(f"postgresql://ada@h/db?sslkey={path}&sslpassword=one/second%21")
    text = f"{file} is not at home, ada: postgresql has no client.key, and no second one"
    assert secrets.redact(text) == text
    assert secrets.redact("not one/second! and not one/second%21") == "not *** and not ***"


@pytest.mark.parametrize("secret", ["~S3cret99", "/9jAbc", ".dotted"])
def test_a_secret_may_begin_like_a_path(secret: str) -> None:
    secrets.remember(f"postgresql://ada@h/db?password={secret}&token={secret}2")
    text = secrets.redact(f"no '{secret}', nor '{secret}2'")
    assert text == "no '***', nor '***'"


ODBC = "mssql+pyodbc://?odbc_connect=DRIVER={ODBC Driver 17 for SQL Server};SERVER=h;UID=ada"


@pytest.mark.parametrize(
    "uri, code",
    [
        ("http://ada:it's-me@host", "' as %27"),
        ('postgresql://ada:a"b@h/db', '" as %22'),
        ("http://ada:a<b@h", "< as %3C"),
        ("http://a>b@h", "> as %3E"),
        ("mysql://ada:one two@h/db", "a space as %20"),
        ("postgresql://h/db?password=it's", "option password has .*' as %27"),
        ("http://h?user=it's&token=a b", "option token has .* a space as %20"),
        ("postgresql://h/db?sslkey=/my keys/k&token=it", "option token is behind .* as %20"),
        (f"{ODBC};PWD=it's", "option odbc_connect has .*' as %27"),
        (f"{ODBC};PWD={{a;b}}", "option odbc_connect has .*' as %27"),
        (f"{ODBC};PWD%3Dword", "option odbc_connect has .*' as %27"),
        (f"{ODBC}; PWD = word", "option odbc_connect has .*' as %27"),
        ("mssql+pyodbc://?odbc_connect=PWD=it's;UID=ada", "option odbc_connect has .*' as %27"),
    ],
)
def test_a_secret_with_a_character_that_ends_a_uri_is_refused(
    uri: str, code: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^tracking\.uri: the .*{code}") as caught:
        store.kind(uri)
    assert not any(part in str(caught.value) for part in ("it's", "a<b", "one two"))
    with pytest.raises(UserError, match=r"tracking\.uri: the .* ends a URI; write '") as caught:
        spec.load(sweep_file(tmp_path, tracking={"uri": uri}))
    assert not any(part in str(caught.value) for part in ("it's", "a<b", "one two"))
    with pytest.raises(UserError, match=r"^tracking\.uri: the .* ends a URI; write '") as caught:
        spec.load(sweep_file(tmp_path), [f"tracking.uri={uri}"])
    assert "://" not in str(caught.value)


@pytest.mark.parametrize("before", ["at ", ""])
def test_a_password_behind_a_space_that_is_no_part_of_it_is_hidden(
    before: str, tmp_path: Path
) -> None:
    for uri in (
        f"{ODBC};PWD={WORD};Encrypt=yes",
        f"postgresql://ada:{WORD}@h/db?sslkey=/home/ada/my keys/k.pem&sslpassword={WORD}",
        f"postgresql://ada:{WORD}@h/db?application_name=my own&password={WORD}",
    ):
        assert store.kind(uri) in ("mssql", "postgresql")
        sweep = spec.load(sweep_file(tmp_path, tracking={"uri": uri}))
        assert sweep.tracking.uri == uri
        hidden = sweep.resolved()["tracking"]["uri"]
        begun = spec.load_begun(sweep_file(tmp_path, tracking={"uri": hidden}))
        assert store.kind(begun.tracking.uri or "") == store.kind(uri)
        assert WORD not in secrets.masked(f"{before}{uri}")


def test_what_is_no_secret_may_have_such_a_character() -> None:
    for uri in ("sqlite:////it's/a b.db", "sqlite:////a;key=it's/b.db", "http://h/it's?x=it's"):
        store.kind(uri)


def test_no_error_shows_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for uri in (
        f"htp://ada:{WORD}@h",
        f"http://ada:{WORD}/x@127.0.0.1:9",
        f"http://ada:{WORD}@127.0.0.1:nine",
        f"postgresql://ada:{WORD}@127.0.0.1:9/x?sslpassword={WORD}",
    ):
        with pytest.raises(UserError) as caught:
            store.check(store.resolve(tmp_path, uri).uri)
        error = caught.value
        assert WORD not in f"{error} {error.what} {error.where} {error.hint} {error.args}"
    with pytest.raises(UserError, match="write @ as %40"):
        store.kind(f"http://ada:{WORD}/x@host")
    path = sweep_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"tracking\.urI") as caught:
        spec.load(path, [f"tracking.urI=http://ada:{WORD}@h"])
    assert WORD not in str(caught.value)
    told = store.reason(ValueError(f"request to http://ada:{WORD}@h/api failed"))
    assert told == "request to http://ada:***@h/api failed"
    assert store.shown(f"http://ada:{WORD}@h/x") == "http://h/x"


def test_all_output_is_redacted() -> None:
    """Also what libraries print, and tracebacks."""
    code = (
        "import logging, warnings; from raycl import secrets; secrets.guard_output();"
        "uri = 'http://ada:' + 's3cret-word' + '@h'; print('one', uri); logging.warning(uri);"
        "warnings.warn(uri); raise ValueError(uri)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "one http://ada:***@h\n"
    assert WORD not in done.stderr.replace("' + 's3cret-word' + '", "")
    assert done.stderr.count("http://ada:***@h") == 3


def test_a_command_line_shows_no_password() -> None:
    """Everybody on a machine can read it, and Ray notes the driver's."""
    code = (
        "import json, sys; from raycl import secrets; secrets.leave_the_command_line();"
        "import os, psutil; print(json.dumps([sys.argv[1:], psutil.Process().cmdline(),"
        "sorted(os.environ)]))"
    )
    words = ["run", "s.yaml", "--tracking-uri", f"http://ada:{WORD}@h"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    given, shown, variables = json.loads(done.stdout)
    assert given == words
    assert shown[-4:] == [*words[:3], "http://ada:***@h"]
    assert secrets.WORDS not in variables, "workers do not inherit it"


def sweep_file(folder: Path, **changes: Any) -> Path:
    data = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": ["finetune"],
        "network": {"name": "mlp", "hidden": [8]},
    } | changes
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


class Away:
    """An MLflow client that never works."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"http://ada:{WORD}@127.0.0.1:9 is away")


def test_only_the_state_has_the_password(tmp_path: Path) -> None:
    """Nothing else on disk has it; neither has the journal, whose lines become artifacts."""
    uri = f"http://ada:{WORD}@127.0.0.1:9"
    smoke = {"tracking.uri": uri}
    path = sweep_file(tmp_path, tracking={"uri": uri}, smoke=smoke, description=f"see {uri}")
    sweep = spec.load(path)
    folder = SweepFolder(tmp_path / "runs", "s")
    found = run.Execution(sweep, folder, None, None, None)
    assert found.store.uri == uri
    resolved = sweep.resolved()
    sweep_id = folder.claim("hash", resolved)
    record = sweep_record(sweep, sweep_id, yaml.safe_dump(resolved))
    tracker = Tracker(record, folder.path, *found.store, connect=lambda _: Away())
    (folder.path / f"{Path(STATE).stem}.tmp").write_text("left by a process that was killed")
    tracker.start()
    tracker.close("KILLED", 2.0)
    files = [p for p in folder.path.rglob("*") if p.is_file()]
    assert {"spec.json", "sweep.yaml", JOURNAL, STATE} <= {p.name for p in files}
    assert [p.name for p in files if WORD in p.read_text()] == [STATE]
    assert stat.S_IMODE((folder.path / STATE).stat().st_mode) == 0o600

    again = spec.load(folder.resolved_file)
    assert again.tracking.uri == "http://ada:***@127.0.0.1:9"
    assert run.Execution(again, folder, None, None, None).store.uri == uri, "resume knows it"
    other = SweepFolder(tmp_path / "elsewhere", "s")
    with pytest.raises(UserError, match="without its password, which no file keeps; give the who"):
        run.Execution(again, other, None, None, None)
    State(uri.replace("ada", "eve"), None).save(folder.path / STATE)
    with pytest.raises(UserError, match="without its password"):
        run.Execution(again, folder, None, None, None)


def test_a_storage_has_no_password(tmp_path: Path) -> None:
    """A password would stand in the names of checkpoints, in logs and in Tune's own files."""
    for storage in (
        f"sftp://ada:{WORD}@h/x",
        f"s3://KEY:{WORD}@b/x",
        f"s3://b/x?secret={WORD}",
        f"s3://KEY:it's-{WORD}@b/x",
        f" s3://KEY:it's-{WORD}@b/x",
        f"s3://KEY:a {WORD}@b/x",
        f"s3://b/x?secret=it's-{WORD}",
    ):
        with pytest.raises(UserError, match=r"storage: .*set a variable: AWS_SECRET_A") as caught:
            spec.load(sweep_file(tmp_path, storage=storage))
        assert WORD not in str(caught.value)


def test_the_server_of_the_interface_gets_the_uri_in_a_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(
        ui.subprocess, "Popen", lambda command, env, **_: started.update(c=command, env=env)
    )
    uri = f"postgresql://ada:{WORD}@h/db"
    ui._start(uri, None, 5000)
    assert WORD not in " ".join(started["c"])
    assert started["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
    assert started["env"]["MLFLOW_REGISTRY_STORE_URI"] == uri


VARIABLES = {
    "AWS_REGION": "here",
    "AWS_ACCESS_KEY_ID": "AK-something",
    "AWS_SECRET_ACCESS_KEY": WORD,
    "AZURE_STORAGE_CONNECTION_STRING": WORD,
    "FSSPEC_S3": f'{{"secret": "{WORD}"}}',
    "MLFLOW_TRACKING_USERNAME": "ada",
    "MLFLOW_TRACKING_PASSWORD": WORD,
    "MLFLOW_TRACKING_TOKEN": WORD,
    "MLFLOW_TRACKING_URI": f"http://ada:{WORD}@h",
    "GOOGLE_CLOUD_PROJECT": "p",
}


def test_rays_metadata_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables with secrets reach the trials as an argument instead."""
    for name in [name for name in os.environ if name.startswith(cluster.PASSED_ON)]:
        monkeypatch.delenv(name)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    environment = cluster._runtime_env("auto", own_files=False)
    shown = {"AWS_REGION", "GOOGLE_CLOUD_PROJECT", "MLFLOW_TRACKING_USERNAME"}
    assert environment == {"env_vars": {name: VARIABLES[name] for name in shown}}
    for uri in ("http://ada:it's-me@h", "http://ada:one two@h", " http://ada:it's me@h"):
        assert secrets.is_secret("MLFLOW_TRACKING_URI", uri)
    hidden = cluster.hidden("auto")
    assert hidden == {k: v for k, v in VARIABLES.items() if k not in shown}
    assert cluster.hidden(None) == {}, "a local Ray's workers inherit them"
    from raycl.sweep.execution.trainable import Settings

    assert WORD not in repr(Settings("/x", 1, 2, "m", "max", variables=hidden))


def test_tune_shows_no_keys() -> None:
    """Ray's actors take their runtime environment from this set."""
    from ray.tune.execution import class_cache

    from raycl.sweep.execution import stage

    stage.hide_keys()
    left = class_cache.ENV_VARS_TO_PROPAGATE
    assert left
    assert not [name for name in left if secrets.is_secret(name, "")]
    assert "AWS_SECRET_ACCESS_KEY" not in left


def test_a_jobs_metadata_have_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Secrets travel in a file of mode 0600."""
    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **job: Any) -> str:
            (module,) = job["runtime_env"]["py_modules"]
            file = Path(module) / secrets.FILE
            sent.update(job, file=json.loads(file.read_text()), mode=file.stat().st_mode)
            return "id"

    uri = f"http://eve:{WORD}@h"
    wish = jobs.Wish(sweep_file(tmp_path), [f"tracking.uri={uri}"], False, Path("/r"), None, uri)
    jobs._send(Client(), spec.load(wish.sweep, wish.overrides), wish)  # type: ignore[arg-type]
    shown = {key: sent[key] for key in ("entrypoint", "submission_id", "runtime_env", "metadata")}
    assert WORD not in json.dumps(shown)
    assert shown["entrypoint"].endswith("--runs /r --tracking-uri 'http://eve:***@h'")
    assert stat.S_IMODE(sent["mode"]) == 0o600
    variables = sent["file"]["variables"]
    assert variables["AWS_SECRET_ACCESS_KEY"] == WORD
    words = json.loads(variables[secrets.WORDS])
    where = ["--runs", "/r", "--tracking-uri", uri]
    assert words == ["run", "s.yaml", "--set", f"tracking.uri={uri}", *where]


def test_a_job_finds_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "restored in the end")
    monkeypatch.setenv("FSSPEC_MINE_PASSWORD", "restored in the end")
    from fsspec.config import conf

    monkeypatch.setitem(conf, "mine", {})
    secrets.pack({"AWS_SECRET_ACCESS_KEY": WORD, "FSSPEC_MINE_PASSWORD": WORD}, tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    secrets.unpack()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == WORD
    assert conf["mine"] == {"password": WORD}, "fsspec had read its variables before"


# ---------------------------------------------------------------------- Ray


def test_rays_token_is_its_owners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".ray" / "auth_token"
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN_PATH", "/mine")):
        with monkeypatch.context() as here:
            here.setenv(name, value)
            cluster.make_token_private()
            assert not file.exists(), "Ray would make none either"
    cluster.make_token_private()
    token = file.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["auth_token"]
    assert list(doctor.token_mode({}, file)) == []

    file.chmod(0o644)  # made by Ray
    (found,) = doctor.token_mode({}, file)
    assert (found.level, found.cure) == ("warn", f"chmod 600 {file}")
    cluster.make_token_private()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == token


def test_loopback_is_asked_for_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is what Ray is asked for; tests/faults see that it listens nowhere else."""
    from ray._private import ray_constants, services

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.delenv(name, raising=False)
    with cluster.on_loopback():
        assert os.environ[name] == "0"
        assert services.resolve_ip_for_localhost("localhost") == "127.0.0.1"
    assert name not in os.environ
    assert ray_constants.ENABLE_RAY_CLUSTER, "a cluster may be joined next"
    monkeypatch.setenv(name, "1")
    with cluster.on_loopback():
        assert os.environ[name] == "1"
        assert ray_constants.ENABLE_RAY_CLUSTER


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, why",
    [
        ("mlflow.db", "belongs to the runs folder"),
        ("MLflow.DB", "belongs to the runs folder"),
        ("mlflow.db-journal", "belongs to the runs folder"),
        ("mlflow.db-wal", "belongs to the runs folder"),
        ("artifacts", "belongs to the runs folder"),
        ("mlruns", "belongs to the runs folder"),
        ("mlartifacts", "belongs to the runs folder"),
        ("..", "names a folder"),
        (".hidden", "names a folder"),
        ("a/b", "names a folder"),
        ("a\\b", "names a folder"),
        ("a\n", "names a folder"),
        ("", "names a folder"),
        ("con", "on Windows"),
        ("NUL.txt", "on Windows"),
        ("com1", "on Windows"),
        ("ends.", "on Windows"),
    ],
)
def test_names_that_no_sweep_can_have(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"name: .*{why}"):
        spec.load(sweep_file(tmp_path, name=name))


def test_names_that_sweeps_can_have(tmp_path: Path) -> None:
    for name in ("mlflow", "my-mlflow.db", "artifacts2", "console", "nul1"):
        assert spec.load(sweep_file(tmp_path, name=name)).name == name


@pytest.mark.parametrize("name", ["../s", "a/b", "..", ".", "", "a\\b", "/etc"])
def test_no_name_leads_out_of_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a sweep"):
        SweepFolder.existing(tmp_path, name)


def test_a_sweep_is_not_where_its_store_is(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/runs/s"})
    with pytest.raises(UserError, match="'s' is the file of the tracking store"):
        run.Execution(spec.load(path), SweepFolder(tmp_path / "runs", "s"), None, None, None)
    (tmp_path / "s").write_text("")
    with (
        pytest.raises(UserError, match="is a file, and no folder of a sweep"),
        SweepFolder(tmp_path, "s").lock(),
    ):
        pytest.fail("it has it")
