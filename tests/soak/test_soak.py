"""Half an hour of accidents: nothing lost, nothing false. ``pytest -m soak -s`` shows them.

Processes are killed by SIGKILL: trials' workers, the driver, Ray's own. The MLflow server is killed
and comes back; the disk with the sweep's folder is full for a while. The driver is started again
until it exits with 0. The README says how to make it longer.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from raycl import datasets
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.tracking import names
from raycl.training.run import Run
from tests.faults.test_faults import PICTURES
from tests.soak import work
from tests.soak.chaos import Chaos
from tests.soak.conftest import Soaked

pytestmark = [pytest.mark.soak, pytest.mark.timeout(6 * 3600)]

EVERY_S = 2
SPEC: dict[str, Any] = {
    "train": {"epochs": 5, "batch_size": 16, "lr": 0.05},
    "resources": {"cpu": 0.5},
    "checkpoint": {"every_s": EVERY_S},
    "failures": {"max_retries": 20},
}
SLEEP_S = 0.15
TIMED = ("seconds", "_s", "per_second", "memory", "peak")
"""Parts of the names of metrics whose values no two runs share."""


@dataclass
class Plain:
    """A trial as it is when nothing happens to it, run in this process.

    Attributes:
        rows: Of each epoch.
        epoch_ends: Steps after which one ends.
        task_ends: Steps after which a task ends.
    """

    rows: list[dict[str, Any]]
    epoch_ends: list[int]
    task_ends: list[int]

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Mapping[str, Any]) -> Plain:
        run, found = Run(config, data), cls([], [], [])
        while not run.done:
            row = run.advance()
            found.rows.append(row)
            found.epoch_ends.append(int(run.method.taken))  # type: ignore[arg-type]
            if row["at_task_end"]:
                found.task_ends.append(found.epoch_ends[-1])
        return found

    @property
    def matrices(self) -> Any:
        return self.rows[-1]["result"]["matrices"]

    def points(self, tasks: int | None = None) -> dict[str, dict[int, float]]:
        """Metric, step, value, as the tracker names them, up to the end of a task."""
        found: dict[str, dict[int, float]] = {}
        for row in self.rows:
            for step, values, _ in names.points(row).values():
                for name, value in values.items():
                    found.setdefault(name, {})[step] = value
            if row["at_task_end"] and row["tasks_done"] == tasks:
                break
        return found


@contextlib.contextmanager
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where methods are found by the names in the sweep file, and each other; nobody sleeps."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        sys.modules.pop("fragile", None)  # of another test
        patch.setattr(time, "sleep", lambda seconds: None)
        yield


def outcomes(soaked: Soaked, name: str) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in soaked.lab.outcomes(name)]
    return {outcome["key"]: outcome for outcome in found}


def tracked(folder: Path, name: str) -> dict[str, Any]:
    """The run of each trial; every one is over, and none is there twice."""
    client = MlflowClient(f"sqlite:///{folder}/server.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs: list[Any] = []
    token = None
    while token or not runs:
        page = client.search_runs([experiment.experiment_id], max_results=500, page_token=token)
        runs, token = [*runs, *page], page.token
    (parent,) = [run for run in runs if run.data.tags["raycl.kind"] == "sweep"]
    assert parent.info.status == "FINISHED"
    trials = [run for run in runs if run is not parent]
    found = {run.data.tags["raycl.trial_key"]: run for run in trials}
    assert len(found) == len(trials), "a trial has two runs"
    return found


def histories(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Run, metric, step and value of all points: one question instead of thousands."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with contextlib.closing(sqlite3.connect(folder / "server.db")) as database:
        for run, name, step, value in database.execute(
            "SELECT run_uuid, key, step, value FROM metrics ORDER BY step"
        ):
            found.setdefault(run, {}).setdefault(name, []).append((step, value))
    return found


def check_tracked(
    run: Any,
    history: Mapping[str, list[tuple[int, float]]],
    outcome: Mapping[str, Any],
    plain: Plain,
    store: Path,
) -> None:
    """A run has all points of the undisturbed one and no other, its pictures, and its result."""
    finished = outcome["status"] == "finished"
    assert run.info.status == ("FINISHED" if finished else "KILLED")
    assert run.data.tags["raycl.end"] == outcome["status"]
    expected = plain.points(None if finished else outcome["row"]["tasks_done"])
    assert set(history) == set(expected), run.info.run_name
    for name, points in expected.items():
        steps = [step for step, _ in history[name]]
        assert steps == sorted(points), f"{run.info.run_name}: {name}"
        if not any(part in name for part in TIMED):
            assert dict(history[name]) == points, f"{run.info.run_name}: {name}"
    files = store / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    pictures = sorted(path.name for path in files.glob("pictures/*"))
    assert pictures == PICTURES[: outcome["row"]["tasks_done"]]
    assert bool(list(files.glob("results/*"))) == finished
    if finished:
        result = json.loads((files / "results" / "matrix.json").read_text())
        assert result["matrices"] == plain.matrices, run.info.run_name


def report(chaos: Chaos, done: work.Work, trials: int) -> None:
    minutes = (time.monotonic() - chaos.began) / 60
    happened = ", ".join(f"{name} {count}" for name, count in sorted(chaos.happened.items()))
    print(
        f"{trials} trials in {minutes:.1f} minutes; accidents: {happened}; exit codes: "
        f"{dict(sorted(chaos.exits.items()))}; {done.attempts} attempts at trials; {done.needed} "
        f"steps needed, {done.again} taken again ({done.again / done.needed:.1%}), of them beyond "
        f"the interval of checkpoints {done.beyond} ({done.beyond / done.needed:.2%})"
    )


def nothing_left(folder: Path) -> None:
    """No process of anybody who worked there."""
    mark = str(folder)
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("RAYCL_SCENE") == mark:
                left.append(process)
    assert not left, f"left behind: {left}"


def check(
    soaked: Soaked,
    chaos: Chaos,
    sweep_file: Path,
    keys: Sequence[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, dict[str, Any]]:
    """Every outcome is what it would have been, and MLflow has all of it; returns the outcomes.

    Args:
        soaked: The scene.
        chaos: What happened.
        sweep_file: Of the sweep.
        keys: Trials that must have one; ``None``: whichever the search has chosen.
        monkeypatch: To be used.
    """
    lab, name = soaked.lab, sweep_file.stem
    nothing_left(lab.path)
    taken = work.read(lab.path / "steps")
    found = outcomes(soaked, name)
    assert keys is None or set(found) == set(keys)
    with inside(lab.path, monkeypatch):
        sweep = spec.load(sweep_file)
        data = check_data(sweep, datasets.data_root())
        plain = {key: Plain.of(outcome["config"], data) for key, outcome in found.items()}
    some = next(iter(plain.values()))
    done = work.account(taken, some.epoch_ends, some.task_ends, EVERY_S)
    report(chaos, done, len(found))
    assert len(taken) == len(found)
    for key, outcome in found.items():
        row = outcome["row"]
        if outcome["status"] == "finished":
            assert row["result"]["matrices"] == plain[key].matrices, outcome["name"]
        else:
            assert outcome["status"] == "stopped-early", outcome
    assert done.beyond <= 0.01 * done.needed
    with chaos.tracker():
        sent = lab.start("sync", name)
        output, _ = sent.communicate()
        assert sent.returncode == 0, output
        print(output)
    runs, points = tracked(lab.path, name), histories(lab.path)
    assert set(runs) == set(found)
    for key, run in runs.items():
        check_tracked(run, points[run.info.run_id], found[key], plain[key], lab.path / "store")
    return found


def test_a_sweep(soaked: Soaked, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = soaked.lab
    methods = [{"name": "counted.py:Counted", "sleep": SLEEP_S}]
    sweep_file = lab.sweep("soak", methods=methods, seeds=soaked.trials, **SPEC)
    chaos = soaked.chaos(sweep_file)
    chaos.run()
    with inside(lab.path, monkeypatch):
        plans = expand.final_plans(spec.load(sweep_file), {})
    found = check(soaked, chaos, sweep_file, [plan.key for plan in plans], monkeypatch)
    assert {outcome["status"] for outcome in found.values()} == {"finished"}


SEARCHES = {
    "asha": {"scheduler": {"name": "asha", "grace_period": 1}},
    "optuna": {"search": {"algorithm": "optuna"}},
}


@pytest.mark.parametrize("way", SEARCHES)
def test_a_search(soaked: Soaked, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, count = soaked.lab, max(4, soaked.trials // 5)
    spaces = {"scale": {"loguniform": [0.1, 10]}}
    blocks = SPEC | SEARCHES[way]
    blocks["search"] = {"num_samples": count} | blocks.get("search", {})
    methods = [{"name": "counted.py:Counted", "sleep": SLEEP_S, **spaces}]
    sweep_file = lab.sweep(way, methods=methods, seeds=2, **blocks)
    chaos = soaked.chaos(sweep_file)
    chaos.run()
    found = check(soaked, chaos, sweep_file, None, monkeypatch)
    searched = [outcome for outcome in found.values() if outcome["kind"] == "search"]
    winners = [outcome for outcome in found.values() if outcome["kind"] == "winner"]
    assert len(searched) == count
    assert len(winners) == 2
    if way == "optuna":
        assert {outcome["status"] for outcome in searched} == {"finished"}
    else:
        assert {outcome["status"] for outcome in searched} == {"finished", "stopped-early"}
    kept = [o for o in searched if o["status"] == "finished"]
    best = max(o["row"]["result"]["validation_metrics"]["class"]["average_accuracy"] for o in kept)
    (chosen,) = {json.dumps(outcome["varied"], sort_keys=True) for outcome in winners}
    assert best in {
        o["row"]["result"]["validation_metrics"]["class"]["average_accuracy"]
        for o in kept
        if json.dumps(o["varied"], sort_keys=True) == chosen
    }
