"""The tracking server goes away in the middle of a sweep and comes back a day later."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.conftest import HALF, Lab
from tests.faults.test_faults import results, undisturbed
from tests.waiting import free_port, until, until_answered

pytestmark = pytest.mark.slow


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start ``mlflow server`` on loopback, the leader of a process group."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    what = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    files = ["--artifacts-destination", str(folder / "store")]
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *where, *what, *files],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_server(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """``mlflow server`` on loopback; ended by its process group."""
    process = serve(folder, port)
    try:
        until_answered(f"http://127.0.0.1:{port}/health", process)
        yield process
    finally:
        kill_server(process)


def test_values_wait_on_disk(lab: Lab) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    slow = [{"name": "fragile.py:Fragile", "sleep": 0.05}]
    sweep = lab.sweep(methods=slow, resources=HALF, seeds=4)
    with server(lab.path, port) as process:
        driver = lab.start("run", str(sweep), "--tracking-uri", uri)
        until(lambda: lab.outcomes(), driver)
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = driver.communicate()
    assert driver.returncode == 0, output
    assert "raycl sync fault" in output
    assert results(lab) == undisturbed(sweep, lab.path)

    with server(lab.path, port):
        lab.run("sync", "fault")
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("fault")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 5
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            if run.data.tags["raycl.kind"] == "trial":
                history = client.get_metric_history(run.info.run_id, "eval/class/average_accuracy")
                assert sorted(point.step for point in history) == [1, 2, 3]
                pictures = client.list_artifacts(run.info.run_id, "pictures")
                names = [f"pictures/head-task-{task}.png" for task in (1, 2, 3)]
                assert sorted(file.path for file in pictures) == names
        table = lab.run("report", "fault", "--tracking-uri", uri)
        assert "not in the table" not in table
