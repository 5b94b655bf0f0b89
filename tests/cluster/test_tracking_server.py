"""The tracking server of sweeps/cluster/compose.yml, really started: PostgreSQL, S3, a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from tests.faults.conftest import Lab
from tests.faults.test_faults import PICTURES
from tests.postgres import QUOTED_PASSWORD, running
from tests.waiting import free_port, until_answered

COMPOSE = Path(__file__).parents[2] / "sweeps" / "cluster" / "compose.yml"


@pytest.fixture
def postgres() -> Iterator[int]:
    """Port of a PostgreSQL with a database ``mlflow``."""
    with running() as port:
        yield port


@pytest.fixture
def server(postgres: int, tmp_path: Path) -> Iterator[str]:
    """Address of the template's server, by the template's own command line."""
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, s3_port = s3.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "raycl", "AWS_SECRET_ACCESS_KEY": "secret"}
    there = {"endpoint_url": f"http://{host}:{s3_port}", "region_name": "us-east-1"}
    mine = {"aws_access_key_id": "raycl", "aws_secret_access_key": "secret"}
    boto3.client("s3", **there, **mine).create_bucket(Bucket="raycl")
    service = yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]
    port = free_port()
    changes = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
    }
    command = "\n".join(service["command"])
    for old, new in changes.items():
        assert command.count(old) == 1
        command = command.replace(old, new)
    program, *arguments = command.split("\n")
    assert program == "mlflow"
    given = {k: str(v) for k, v in service["environment"].items()}
    environment = {k: v for k, v in given.items() if not v.startswith("${")}
    where = environment["MLFLOW_BACKEND_STORE_URI"]
    assert where.count("${POSTGRES_PASSWORD}@database/") == 1
    environment["MLFLOW_BACKEND_STORE_URI"] = where.replace(
        "${POSTGRES_PASSWORD}@database/", f"{QUOTED_PASSWORD}@127.0.0.1:{postgres}/"
    )
    environment |= keys | {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{s3_port}"}
    environment |= {"MLFLOW_SERVER_ALLOWED_HOSTS": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until_answered(f"http://127.0.0.1:{port}/health", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        s3.stop()


@pytest.mark.slow
def test_a_sweep_is_tracked_in_postgresql_and_s3(lab: Lab, server: str) -> None:
    sweep = lab.sweep("shared", seeds=2)
    output = lab.run("run", str(sweep), MLFLOW_TRACKING_URI=server)
    assert "did not reach" not in output
    assert not (lab.runs / "mlflow.db").exists()
    assert not (lab.runs / "artifacts").exists()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if run.data.tags["raycl.kind"] == "sweep"]
    for run in runs:
        if run is parent:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = client.get_metric_history(run.info.run_id, "eval/class/average_accuracy")
        assert sorted(point.step for point in history) == [1, 2, 3]
        found = client.list_artifacts(run.info.run_id, "pictures")
        assert sorted(Path(file.path).name for file in found) == PICTURES
        local = client.download_artifacts(run.info.run_id, "results/matrix.json", str(lab.path))
        assert Path(local).stat().st_size > 100
    table = lab.run("report", "shared", "--tracking-uri", server)
    assert "average accuracy" in table
