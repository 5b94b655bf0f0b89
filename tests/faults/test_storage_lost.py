"""Storage that is full, read-only, or an S3 bucket; and a trial that wants all memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.faults.conftest import Lab, mount, small_disk
from tests.faults.test_faults import PICTURES, pictures, results, tracked, undisturbed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with small_disk(tmp_path / "disk", "3m") as mounted:
        if not mounted:
            pytest.skip("only root can mount a small file system")
        yield tmp_path / "disk"


@pytest.mark.slow
def test_a_full_and_a_read_only_disk(lab: Lab, disk: Path) -> None:
    sweep = lab.sweep(
        network={"name": "mlp", "hidden": [300, 300]}, storage=str(disk), checkpoint={"every_s": 0}
    )
    output = lab.run("run", str(sweep), code=1)
    said = [line for line in output.splitlines() if "No space left" in line]
    assert len(said) == 1, output
    assert said[0].startswith("stopped: results cannot be kept: ")
    assert "raycl resume fault" in output
    assert "Traceback" not in output
    assert {run.info.status for run in tracked(lab)} <= {"KILLED", "FINISHED"}, "none has failed"
    assert not list(disk.rglob("*.tmp")), "no half of a file is left"

    assert mount("-o", "remount,ro", str(disk))
    output = lab.run("resume", "fault", code=2)
    assert output.startswith(f"error: storage: {disk}/fault cannot be used: ")
    assert "Read-only file system" in output
    assert output.count("\n") == 1

    assert mount("-o", "remount,rw,size=100m", str(disk))
    lab.run("resume", "fault")
    assert results(lab) == undisturbed(sweep, lab.path)
    assert {run.info.status for run in tracked(lab)} == {"FINISHED"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Environment of somebody with a bucket called ``raycl``, on a server of this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="raycl")
    yield environment
    server.stop()


def test_a_sweep_on_s3(lab: Lab, bucket: dict[str, str]) -> None:
    sweep = lab.sweep(seeds=2, storage="s3://raycl/sweeps", checkpoint={"every_s": 0})
    expected = undisturbed(sweep, lab.path)
    (lab.path / "kill-1-2").touch()
    output = lab.run("run", str(sweep), **bucket)
    assert output.count("lost its worker") == 1
    assert "continues from raycl/sweeps/fault/" in output
    assert results(lab) == expected
    for run in tracked(lab):
        assert run.info.status == "FINISHED"
        assert pictures(lab, run) == PICTURES
    listed = boto3.client("s3").list_objects_v2(Bucket="raycl")["Contents"]
    keys = [item["Key"] for item in listed]
    assert len([key for key in keys if key.endswith(".pt")]) == 2 * 2
    assert not [key for key in keys if key.endswith((".tmp", "driver.json"))]
    assert not (lab.runs / "fault" / "trials").exists()

    missing = lab.sweep("other", storage="s3://nobucket/x")
    output = lab.run("run", str(missing), code=2, **bucket)
    assert output.startswith("error: storage: s3://nobucket/x/other cannot be used: ")
    assert output.count("\n") == 1


GREEDY = """
import numpy

from fragile import Fragile


class Greedy(Fragile):
    '''Wants more than there is in its second task. Nobody, 2026. Departures: none.'''

    class Config(Fragile.Config):
        megabytes: int = 0

    def begin_task(self, task):
        super().begin_task(task)
        if task.info.index == 1:
            numpy.ones(self.config.megabytes * 1_000_000, dtype=numpy.uint8)
"""


def test_a_trial_out_of_memory_is_alone(lab: Lab) -> None:
    (lab.path / "greedy.py").write_text(GREEDY)
    methods = [
        {"name": "greedy.py:Greedy", "label": "modest", "sleep": 0.02},
        {"name": "greedy.py:Greedy", "label": "greedy", "megabytes": 3000},
    ]
    sweep = lab.sweep(methods=methods, seeds=2, resources={"cpu": 0.5, "memory": 2})
    output = lab.run("run", str(sweep), code=1)
    assert "lost its worker" not in output
    for seed in (0, 1):
        (said,) = [line for line in output.splitlines() if f"failed: greedy-s{seed}" in line]
        assert "MemoryError" in said
        assert "(resources.memory is 2 GB)" in said
    status = {run.info.run_name: run.info.status for run in tracked(lab)}
    assert {status[f"modest-s{seed}"] for seed in (0, 1)} == {"FINISHED"}
    assert {status[f"greedy-s{seed}"] for seed in (0, 1)} == {"FAILED"}
