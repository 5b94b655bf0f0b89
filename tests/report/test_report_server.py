"""The report through a real tracking server: nothing but HTTP is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_helpers import Store, realistic

from raycl.report.load import load
from raycl.report.main import write_report
from raycl.report.table import make_table
from tests.waiting import free_port, until_answered


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until_answered(f"{url}/health", process, tmp_path / "server.log")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        log.close()


def test_report_through_a_server(server: str, store: Store, tmp_path: Path) -> None:
    methods = ["finetune", "joint"]
    realistic(store, "remote", methods, seeds=2, tasks=3)
    writer = realistic(Store(server, None), "remote", methods, seeds=2, tasks=3)
    here, there = (make_table(load("remote", uri)) for uri in (store.uri, server))
    assert [{**r, "run_ids": 0} for r in here.rows] == [{**r, "run_ids": 0} for r in there.rows]
    assert len(there.rows) > 10
    write_report("remote", server, tmp_path / "out", log_to_parent=True)
    assert Store(server, None).client.list_artifacts(writer.parent, "report/figures")
