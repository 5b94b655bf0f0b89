"""Signals to all processes of a sweep, and the death of Ray's own; see also sweep/test_signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.faults.conftest import Lab
from tests.faults.test_faults import results, tracked, undisturbed
from tests.waiting import until

pytestmark = pytest.mark.slow


def to_the_group(*numbers: int) -> Callable[[int], None]:
    """What ``timeout`` and a shell do: the driver leads a process group of its own."""

    def send(pid: int) -> None:
        for number in numbers:
            os.killpg(pid, number)

    return send


def to_all(*numbers: int) -> Callable[[int], None]:
    """What systemd and Slurm do: every process, whatever its group."""

    def send(pid: int) -> None:
        family = psutil.Process(pid).children(recursive=True)
        for number in numbers:
            for process in (*family, psutil.Process(pid)):
                process.send_signal(number)

    return send


def kill(name: str) -> Callable[[int], None]:
    """What the kernel does when memory is short."""

    def send(pid: int) -> None:
        family = psutil.Process(pid).children()
        (found,) = [process for process in family if process.name() == name]
        found.kill()

    return send


INTERRUPTED = "interrupted; continue with: raycl resume fault"
DIED = "Ray on this machine has died; continue with: raycl resume fault"
ACCIDENTS = {
    "timeout": (to_the_group(signal.SIGTERM), 130, INTERRUPTED),
    "closed terminal": (to_the_group(signal.SIGHUP), 130, INTERRUPTED),
    "impatience": (to_the_group(signal.SIGINT, signal.SIGINT, signal.SIGINT), 130, INTERRUPTED),
    "systemd": (to_all(signal.SIGTERM, signal.SIGHUP), 130, INTERRUPTED),
    "raylet": (kill("raylet"), 3, DIED),
    "control service": (kill("gcs_server"), 3, DIED),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_trials_save_runs_are_closed_and_nothing_is_left(lab: Lab, accident: str) -> None:
    send, code, said = ACCIDENTS[accident]
    slow = [{"name": "fragile.py:Fragile", "sleep": 0.3}]
    sweep = lab.sweep(methods=slow, seeds=2, resources={"cpu": 0.5}, checkpoint={"every_s": 600})
    driver = lab.start("run", str(sweep))
    until(lambda: len(lab.trace()) >= 2, driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    send(driver.pid)
    output, _ = driver.communicate()
    assert driver.returncode == code, output
    assert output.splitlines()[-1] == said
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family)
    assert not alive, f"left behind: {alive}"
    assert {run.info.status for run in tracked(lab)} == {"KILLED"}
    if code == 130:
        saved = {path.parent.name for path in lab.checkpoints()}
        assert len(saved) == 2, "every trial that had begun has saved"
    lab.run("run", str(sweep))
    assert results(lab) == undisturbed(sweep, lab.path)
    assert {run.info.status for run in tracked(lab)} == {"FINISHED"}


def test_a_driver_killed_while_ray_starts(lab: Lab) -> None:
    sweep = lab.sweep(seeds=1)
    driver = lab.start("run", str(sweep))
    until((lab.runs / "fault" / "trials" / "driver.json").exists, driver)
    driver.kill()
    driver.wait()
    output = lab.run("run", str(sweep))
    assert "average accuracy" in output
