"""Sweeps as Ray jobs, typed as a user types them, on a cluster that asks for a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from raycl import jobs
from raycl.errors import UserError
from raycl.sweep.execution import cluster
from tests.faults.conftest import Lab
from tests.faults.test_faults import results, tracked, undisturbed
from tests.waiting import free_port, free_ports, until, until_answered

BIN = str(Path(sys.executable).parent)

SPY = '''
import os
from pathlib import Path

import torch
from fragile import Fragile as Base

SEEN = Path(os.environ["RAYCL_SEEN"])


class Spy(Base):
    """Says what a trial on the cluster sees. Nobody, 2026. Departures: none."""

    def begin_task(self, task):
        super().begin_task(task)
        names = "\\n".join(sorted(str(p) for p in Path(".").rglob("*") if p.is_file()))
        (SEEN / "files.txt").write_text(names)
        names = ("RAYCL_DATA", "AWS_REGION", "SECRET", "AWS_SECRET_ACCESS_KEY")
        words = [os.environ.get(name, "-") for name in names]
        (SEEN / "words.txt").write_text(" ".join(words))
'''


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster's dashboard, and the environment of somebody who has its token."""
    folder = Path(tempfile.mkdtemp(prefix="rj"))  # paths of sockets are short
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    gcs, dashboard, *agent = free_ports(6)
    command = [f"{BIN}/ray", "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=true"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent[0]}"]
    command += [f"--dashboard-agent-grpc-port={agent[1]}", f"--metrics-export-port={agent[2]}"]
    command += [f"--ray-client-server-port={agent[3]}", f"--temp-dir={folder}/t"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    mine = {"HOME": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment = os.environ | mine | {"RAY_AUTH_MODE": "token"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAYCL_DATA", "RAYCL_RUNS"):
        environment.pop(name, None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        until_answered(f"{address}/api/version", process, folder / "log")
        yield address, mine
    finally:
        os.kill(process.pid, signal.SIGTERM)  # `ray start --block` ends what it started
        try:
            process.wait()
        finally:
            for pid in processes_of(folder):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Processes of this test's cluster, by its folder in their command lines."""
    done = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def everything_ray_knows(address: str, mine: dict[str, str]) -> str:
    """What the dashboard says of jobs and of workers, with their runtime environments."""
    token = (Path(mine["HOME"]) / ".ray" / "auth_token").read_text()
    found = []
    for page in ("api/jobs/", "api/v0/workers?detail=true", "api/v0/tasks?detail=true"):
        request = Request(f"{address}/{page}", headers={"Authorization": f"Bearer {token}"})
        found.append(urlopen(request, timeout=20).read().decode())
    return "".join(found)


def test_a_sweep_as_a_job(lab: Lab, head: tuple[str, dict[str, str]]) -> None:
    """Followed to its end: code, environment, what was uploaded."""
    address, mine = head
    (lab.path / "spy.py").write_text(SPY)
    for folder in ("runs", "data", "mydata", "big"):
        (lab.path / folder).mkdir()
        (lab.path / folder / "file.txt").write_text("x")
    (lab.path / ".rayignore").write_text("big/\n")
    (lab.path / ".env").write_text("PASSWORD=x\n")
    methods = [
        {"name": "spy.py:Spy", "label": "good"},
        {"name": "spy.py:Spy", "label": "bad", "explode": 1},
    ]
    sweep = lab.sweep("job", methods=methods, seeds=1)
    more = {"RAYCL_SEEN": str(lab.path), "AWS_REGION": "here", "SECRET": "kept", **mine}
    more["AWS_SECRET_ACCESS_KEY"] = "hush-hush"
    where = ["--address", address, "--data", str(lab.path / "mydata")]
    output = lab.run("submit", sweep.name, *where, code=1, **more)
    assert "failed: bad-s0 ValueError: exploded as asked" in output
    assert "average accuracy" in output, "the report is part of the log"
    assert "failed, code 1" in output
    assert {run.info.status for run in tracked(lab, "job")} == {"FINISHED", "FAILED"}
    assert (lab.path / "words.txt").read_text() == f"{lab.path / 'mydata'} here - hush-hush"
    known = everything_ray_knows(address, mine)
    assert "AWS_REGION" in known
    assert "hush-hush" not in known, "it travelled in a file"
    files = (lab.path / "files.txt").read_text().split()
    assert {"spy.py", "fragile.py", "job.yaml", "mydata/file.txt"} <= set(files)
    assert not {"runs/file.txt", "data/file.txt", "big/file.txt", ".env"} & set(files)

    listed = lab.run("jobs", "--address", address, **mine)
    (row,) = [line for line in listed.splitlines() if line.startswith("raycl-job-")]
    assert row.split()[1:3] == ["job", "failed"]
    assert row.split()[-1] == "1"
    again = lab.run("jobs", "job", "--address", address, code=1, **mine)
    assert "failed: bad-s0" in again


@pytest.mark.slow
def test_detached_stopped_and_continued(lab: Lab, head: tuple[str, dict[str, str]]) -> None:
    address, mine = head
    expected = undisturbed(lab.sweep("long", seeds=2), lab.path)
    (lab.path / "trace.txt").unlink(missing_ok=True)
    method = {"name": "fragile.py:Fragile", "sleep": 0.7}
    sweep = lab.sweep("long", methods=[method], seeds=2)
    where = ["--address", address]
    follower = lab.start("submit", sweep.name, *where, **mine)
    until(lambda: len(lab.checkpoints("long")) >= 2, follower)
    os.kill(follower.pid, signal.SIGINT)
    output, _ = follower.communicate()
    assert follower.returncode == 130
    assert "goes on" in output
    assert "raycl jobs raycl-long-" in output
    before = len(lab.trace())

    output = lab.run("stop", "long", *where, **mine)
    assert "continue with: raycl resume long" in output
    assert "stopped; the same submission continues it" in output
    assert "is over: stopped" in lab.run("stop", "long", *where, **mine)
    assert not lab.outcomes("long"), "it was stopped in the middle"
    assert {run.info.status for run in tracked(lab, "long")} == {"KILLED"}

    command = [f"{BIN}/ray", "job", "submit", *where, "--working-dir", ".", "--runtime-env-json"]
    command += [json.dumps({"env_vars": lab.environment})]
    command += ["--", "python", "-m", "raycl", "run", sweep.name]
    plain = subprocess.run(
        command,
        cwd=lab.path,
        env=os.environ | mine | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
    )
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert plain.stdout.count("continues from") == 2
    again = lab.trace()[before:]
    assert before
    assert len(again) <= 2 * 3 - 1, "nothing that was learnt is learnt again"
    assert results(lab, "long") == expected
    assert {run.info.status for run in tracked(lab, "long")} == {"FINISHED"}


def test_refusals(
    lab: Lab, head: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent."""
    address, _ = head
    monkeypatch.chdir(lab.path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "RAYCL_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(lab.path))  # where there is no token
    fine = jobs.Wish(Path(lab.sweep("refused").name), [], False, None, None, None)
    with pytest.raises(UserError, match="--address: the cluster asks for a token; run ray get-"):
        jobs.submit(fine, address, None)
    elsewhere = free_port()
    with pytest.raises(UserError, match="no Ray dashboard answers at"):
        jobs.jobs(f"http://127.0.0.1:{elsewhere}")
    for change, message in (
        ({"runs": Path("here")}, "--runs: here is relative"),
        ({"data": Path("here")}, "--data: here is relative"),
        ({"tracking_uri": "sqlite:///x.db"}, "--tracking-uri: sqlite:///x.db is relative"),
        ({"overrides": ["seed=3"]}, "did you mean 'seeds'"),
    ):
        with pytest.raises(UserError, match=message):
            jobs.submit(replace(fine, **change), address, None)
    monkeypatch.setenv("RAYCL_RUNS", "runs")
    with pytest.raises(UserError, match="RAYCL_RUNS: runs is relative"):
        jobs.submit(replace(fine, sweep=lab.sweep("refused")), address, None)
    monkeypatch.delenv("RAYCL_RUNS")
    (lab.path / "below").mkdir()
    monkeypatch.chdir(lab.path / "below")
    with pytest.raises(UserError, match=r"is not below .*, and a job gets only the current dir"):
        jobs.submit(replace(fine, sweep=lab.sweep("refused", methods=["joint"])), address, None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not the one")
    with pytest.raises(UserError, match="the one found here is not the cluster's"):
        jobs.stop("any", address)


def test_folders_of_a_job_outlive_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAYCL_RUNS", "RAYCL_DATA"):
        monkeypatch.setenv(name, "restored in the end")
        monkeypatch.delenv(name)
    cluster.at_home()
    assert "RAYCL_RUNS" not in os.environ, "not a job"
    monkeypatch.setenv(cluster.JOB, "{}")
    monkeypatch.setenv("RAYCL_DATA", "/shared/data")
    cluster.at_home()
    assert os.environ["RAYCL_RUNS"] == str(tmp_path / "raycl" / "runs")
    assert os.environ["RAYCL_DATA"] == "/shared/data"


def test_what_stays_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYCL_RUNS", str(tmp_path / "results" / "runs"))
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path.parent))
    assert cluster.not_uploaded() == [*cluster.NOT_UPLOADED, "/results/runs/"]
