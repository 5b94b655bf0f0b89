"""Workers, drivers and files that are lost: the numbers stay the same to the last bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient

from raycl import datasets
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.testing import finish
from raycl.training.run import Run
from tests.faults.conftest import HALF, Lab
from tests.waiting import until


def undisturbed(sweep_file: Path, directory: Path) -> dict[str, Any]:
    """Result of every trial, from plain runs in this process, in which no method sleeps."""
    left = [path.name for path in directory.glob("kill-*") if path.suffix != ".done"]
    assert not left, "an accident that has not happened would end this process"
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(directory)
        patch.setattr(time, "sleep", lambda seconds: None)
        sweep = spec.load(sweep_file)
        data = check_data(sweep, datasets.data_root())
        plans = expand.final_plans(sweep, {})
        return {plan.name: finish(Run(plan.config, data))["matrices"] for plan in plans}


def results(lab: Lab, name: str = "fault") -> dict[str, Any]:
    found = {}
    for path in lab.outcomes(name):
        outcome = json.loads(path.read_text())
        found[outcome["name"]] = outcome["row"]["result"]["matrices"]
    return found


def tracked(lab: Lab, name: str = "fault") -> list[Any]:
    client = MlflowClient(f"sqlite:///{lab.runs}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trials = [run for run in runs if run.data.tags["raycl.kind"] != "sweep"]
    keys = [run.data.tags["raycl.trial_key"] for run in trials]
    assert len(set(keys)) == len(keys), "a trial has two runs"
    return trials


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which any of the processes can be reached."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
    return found


def steps(lab: Lab, run: Any, metric: str) -> list[int]:
    client = MlflowClient(f"sqlite:///{lab.runs}/mlflow.db")
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, metric))


def pictures(lab: Lab, run: Any) -> list[str]:
    """The method's pictures among a run's artifacts."""
    client = MlflowClient(f"sqlite:///{lab.runs}/mlflow.db")
    return sorted(Path(a.path).name for a in client.list_artifacts(run.info.run_id, "pictures"))


PICTURES = [f"head-task-{task}.png" for task in (1, 2, 3)]


def test_worker_killed_at_a_random_step_of_each_task(lab: Lab) -> None:
    sweep = lab.sweep(checkpoint={"every_s": 0}, failures={"max_retries": 3})
    expected = undisturbed(sweep, lab.path)
    (lab.path / "trace.txt").unlink(missing_ok=True)
    chooser = random.Random(20)
    for task in range(3):
        (lab.path / f"kill-{task}-{chooser.randrange(1, 9)}").touch()
    output = lab.run("run", str(sweep))
    assert len(list(lab.path.glob("kill-*.done"))) == 3, "not every accident happened"
    assert output.count("lost its worker") == 3
    assert results(lab) == expected
    runs = tracked(lab)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sum(int(run.data.tags["raycl.attempt"]) for run in runs) == 3 + 3
    for run in runs:
        assert steps(lab, run, "eval/class/average_accuracy") == [1, 2, 3]
        assert pictures(lab, run) == PICTURES


def test_driver_killed(lab: Lab) -> None:
    sweep = lab.sweep(
        methods=[{"name": "fragile.py:Fragile", "sleep": 0.05}], resources=HALF, seeds=4
    )
    driver = lab.start("run", str(sweep))
    # when something is finished and something is under way
    until(lambda: lab.outcomes() and len(lab.checkpoints()) > 4, driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    reached = listening([psutil.Process(driver.pid), *family])
    assert reached, "Ray listens somewhere"
    assert reached <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "and nobody else can reach it"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(family)
    for process in alive:
        process.kill()
    assert not alive, f"left behind: {alive}"
    finished = {path.name for path in lab.outcomes()}
    begun = lab.trace()
    assert 0 < len(finished) < 4

    output = lab.run("run", str(sweep))
    trace = lab.trace()
    assert results(lab) == undisturbed(sweep, lab.path)
    again = [tag for tag in set(trace) if trace.count(tag) > 1]
    assert set(again) <= set(begun)
    assert all(trace.count(tag) <= 2 for tag in again)
    assert len(again) <= 2, f"only the tasks under way may begin again, not {again}"
    assert "continues from" in output or not again
    runs = tracked(lab)
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(pictures(lab, run) == PICTURES for run in runs)

    trace = lab.trace()
    assert "nothing to run" in lab.run("run", str(sweep))
    assert lab.trace() == trace


def has_two(lab: Lab) -> bool:
    """Whether both trials have begun, and one that is not over has two checkpoints."""
    over = {path.stem for path in lab.outcomes()}
    count = Counter(path.parent.name for path in lab.checkpoints())
    return len(count) == 2 and any(n >= 2 and name not in over for name, n in count.items())


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGUSR1)),
    ],
)
def test_interrupted_damaged_and_resumed(lab: Lab, number: signal.Signals) -> None:
    """Ctrl-C; a preemption that leaves a torn file behind; a batch system's own signal."""
    sweep = lab.sweep(methods=[{"name": "fragile.py:Fragile", "sleep": 0.3}], seeds=2)
    driver = lab.start("run", str(sweep))
    until(lambda: has_two(lab), driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, number)
    output, _ = driver.communicate()
    assert driver.returncode == 130, output
    assert "raycl resume fault" in output
    _, alive = psutil.wait_procs(family)
    assert not alive, f"left behind: {alive}"
    over = {path.stem for path in lab.outcomes()}
    assert len(over) < 2, "something was under way"  # on a busy machine one trial begins late
    ends = sorted(["FINISHED"] * len(over) + ["KILLED"] * (2 - len(over)))
    assert sorted(run.info.status for run in tracked(lab)) == ends
    killed = {run.data.tags["raycl.end"] for run in tracked(lab) if run.info.status == "KILLED"}
    assert killed == {"killed"}

    left = [path for path in lab.checkpoints() if path.parent.name not in over]
    trial = left[0].parent
    if len(list(trial.glob("step-*.pt"))) < 2:
        trial = left[-1].parent
    previous, newest = sorted(trial.glob("step-*.pt"))
    if number == signal.SIGTERM:
        newest.write_bytes(newest.read_bytes()[:-100])
    output = lab.run("resume", "fault")
    if number == signal.SIGTERM:
        assert f"continues from {previous}; passed over as damaged: {newest}" in output
    else:
        assert f"continues from {newest}" in output
    assert results(lab) == undisturbed(sweep, lab.path)
    assert {run.info.status for run in tracked(lab)} == {"FINISHED"}
    assert all(pictures(lab, run) == PICTURES for run in tracked(lab))


def test_one_failed_trial_stops_no_other(lab: Lab) -> None:
    methods = [
        {"name": "fragile.py:Fragile", "label": "good"},
        {"name": "fragile.py:Fragile", "label": "bad", "explode": 1},
    ]
    sweep = lab.sweep(methods=methods, seeds=2)
    output = lab.run("run", str(sweep), code=1)
    assert "failed: bad-s0 ValueError: exploded as asked" in output
    assert "raycl resume fault" in output
    status = {run.info.run_name: run for run in tracked(lab)}
    assert {status[f"good-s{s}"].info.status for s in (0, 1)} == {"FINISHED"}
    assert {status[f"bad-s{s}"].info.status for s in (0, 1)} == {"FAILED"}
    assert "exploded as asked" in status["bad-s0"].data.tags["raycl.error"]
    assert "not in the table" in output
    begun = len(lab.trace())
    assert begun == 2 * 3 + 2 * 2, "a deterministic error is not retried"
    lab.run("run", str(sweep), code=1)
    assert len(lab.trace()) == begun, "run does not retry what failed"
    lab.run("resume", "fault", code=1)
    assert len(lab.trace()) == begun + 2, "resume does, from the last checkpoint"
