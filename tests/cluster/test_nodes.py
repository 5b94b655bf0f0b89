"""Several nodes, some of which die: every trial finishes, with the bits of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.nodes import BIN, Nodes, nodes, why_not
from tests.faults.conftest import Lab
from tests.faults.test_faults import PICTURES, pictures, results, steps, tracked, undisturbed
from tests.waiting import until


@pytest.fixture
def rig(lab: Lab) -> Iterator[Nodes]:
    """A head without CPUs and two nodes of one CPU; commands run on the head."""
    if reason := why_not():
        pytest.skip(reason)
    with nodes(lab.path / "local") as made:
        for cpus in (0, 1, 1):
            made.start(cpus)
        made.wait(3)
        lab.prefix = tuple(made.head.command(folder=lab.path))
        yield made


def sweep(lab: Lab, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A sweep file of three slow trials, and what they come to if nothing happens."""
    shared: dict[str, Any] = {"storage": str(lab.path / "shared"), "checkpoint": {"every_s": 0}}
    expected = undisturbed(lab.sweep(**shared), lab.path)
    (lab.path / "trace.txt").unlink(missing_ok=True)
    slow = {"methods": [{"name": "fragile.py:Fragile", "sleep": 0.25}]}
    return lab.sweep(**(shared | slow | changes)).name, expected


def check(lab: Lab, output: str, expected: dict[str, Any]) -> None:
    """Every trial is whole, once in MLflow, its attempts counted."""
    assert results(lab) == expected
    runs = tracked(lab)
    assert len(runs) == len(expected)
    assert {run.info.status for run in runs} == {"FINISHED"}
    lost = output.count("lost its worker")
    assert lost >= 1
    attempts = sum(int(run.data.tags["raycl.attempt"]) for run in runs)
    assert attempts == len(expected) + lost
    for run in runs:
        assert steps(lab, run, "eval/class/average_accuracy") == [1, 2, 3]
        assert pictures(lab, run) == PICTURES


def spread(lab: Lab) -> list[str]:
    """Networks of the nodes that trials have begun on, the first one first."""
    return list(dict.fromkeys(line[2] for line in lab.traced()))


@pytest.mark.slow
def test_a_node_that_is_killed(lab: Lab, rig: Nodes) -> None:
    name, expected = sweep(lab)
    output = lab.run(
        "run", name, "--address", rig.address, "--set", f"storage={lab.path}/local", code=2
    )
    assert output.startswith("error: storage: ")
    assert "is not one folder for all: node 10." in output
    assert "give a folder that all nodes share" in output
    assert output.count("\n") == 1
    assert not lab.trace(), "before any trial"

    driver = lab.start("run", name, "--address", rig.address)
    until(lambda: len(lab.checkpoints_in("shared")) >= 3 and len(spread(lab)) == 2, driver)
    (victim,) = [node for node in rig.nodes if node.network == spread(lab)[0]]
    victim.kill()
    begun = len(lab.trace())
    output, _ = driver.communicate()
    assert driver.returncode == 0, output
    check(lab, output, expected)
    assert "continues from" in output
    assert {line[2] for line in lab.traced()[begun:]} == {spread(lab)[1]}, "on the other node"
    again = [tag for tag in set(lab.trace()) if lab.trace().count(tag) > 1]
    assert len(again) <= 1, "only the task under way begins again"


@pytest.mark.slow
def test_a_node_that_is_cut_off(lab: Lab, rig: Nodes) -> None:
    """The trial of a node that is cut off goes on, unheard, and so does its successor."""
    name, expected = sweep(lab)
    driver = lab.start("run", name, "--address", rig.address)
    until(lambda: len(lab.checkpoints_in("shared")) >= 3 and len(spread(lab)) == 2, driver)
    (victim,) = [node for node in rig.nodes if node.network == spread(lab)[0]]
    victim.plug(out=True)
    output, _ = driver.communicate()
    assert driver.returncode == 0, output
    check(lab, output, expected)


@pytest.mark.slow
def test_a_driver_that_is_killed_and_one_too_many(lab: Lab, rig: Nodes) -> None:
    name, expected = sweep(lab)
    driver = lab.start("run", name, "--address", rig.address)
    until(lambda: len(lab.checkpoints_in("shared")) >= 2, driver)

    elsewhere = Lab(lab.path, tuple(rig.nodes[1].command(folder=lab.path)))
    output = elsewhere.run("run", name, "--address", rig.address, code=2)
    assert output == f"error: name: 'fault' is being run by process {driver.pid}\n"
    others = {"RAYCL_RUNS": str(lab.path / "other-runs")}
    output = elsewhere.run("run", name, "--address", rig.address, code=2, **others)
    assert output.startswith(f"error: storage: {lab.path}/shared/fault is in use by process ")
    assert output.count("\n") == 1

    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    begun, finished = lab.trace(), len(lab.outcomes())
    assert finished < 3
    pids = {pid for node in rig.nodes for pid in node.pids()}
    until(lambda: not [p for p in pids if is_trial(p)])  # Ray ends what has lost its driver

    output = lab.run("resume", "fault", "--address", rig.address)
    assert results(lab) == expected
    again = [tag for tag in set(lab.trace()) if lab.trace().count(tag) > 1]
    assert set(again) <= set(begun)
    assert len(again) <= 2, "only the tasks under way begin again"
    runs = tracked(lab)
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}


def is_trial(pid: int) -> bool:
    try:
        return "ImplicitFunc" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_a_node_that_is_preempted(lab: Lab, rig: Nodes) -> None:
    """Told so, its trials save in the middle of a task; that is no failure of theirs."""
    keep = {"checkpoint": {"every_s": 10_000}, "failures": {"max_retries": 0}}
    train = {"train": {"epochs": 12, "batch_size": 16, "lr": 0.05}}
    expected = undisturbed(lab.sweep(**train), lab.path)
    (lab.path / "trace.txt").unlink(missing_ok=True)
    method = {"name": "fragile.py:Fragile", "sleep": 0.2}
    storage = str(lab.path / "shared")
    name = lab.sweep(methods=[method], storage=storage, **keep, **train).name
    driver = lab.start("run", name, "--address", rig.address)
    until(lambda: len(spread(lab)) == 2, driver)
    (victim,) = [node for node in rig.nodes if node.network == spread(lab)[0]]
    trial = lab.traced()[0][1]
    drain(rig, victim.address)
    until(lambda: lab.checkpoints_in("shared"), driver)
    assert lab.trace() == [trial, *lab.trace()[1:]]
    assert not any(line[1] == trial.rpartition("-")[0] + "-1" for line in lab.traced())
    victim.kill()
    output, _ = driver.communicate()
    assert driver.returncode == 0, output
    assert "has saved, for its node is being drained" in output
    assert "continues from" in output
    assert results(lab) == expected
    assert {run.info.status for run in tracked(lab)} == {"FINISHED"}


def drain(rig: Nodes, address: str) -> None:
    """What a cloud's notice of preemption comes to, by Ray's own command."""
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
    code += "print([n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == sys.argv[2]][0])"
    command = rig.head.command(sys.executable, "-c", code, rig.address, address)
    environment = rig.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    options = ["--address", rig.address, "--node-id", done.stdout.strip()]
    options += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    options += ["--deadline-remaining-seconds", "120"]
    command = rig.head.command(str(BIN / "ray"), "drain-node", *options)
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_the_rig_cleans_up_after_itself(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with nodes(tmp_path / "local") as made:
        mine = f"r*{made.tag}*"  # other tests may have nodes at the same time
        node = made.start(1)
        until(lambda: len(node.pids()) > 3)
        assert list(Path("/sys/class/net").glob(mine))
    assert not subprocess.run(["ip", "netns", "pids", node.name], capture_output=True).stdout
    assert not list(Path("/sys/class/net").glob(mine))
