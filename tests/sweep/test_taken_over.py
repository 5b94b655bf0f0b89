"""Finished trials of other sweeps, taken over with all that they have left."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sharing_making import Lab, finished_in, lab, text, without
from test_events import Log

import raycl
from raycl.report.notes import _shared, _taken_over
from raycl.sweep.execution import trainable
from raycl.sweep.execution.events import Hub
from raycl.sweep.execution.stage import Stage
from raycl.sweep.execution.stages import Stages
from raycl.sweep.execution.taken_over import finished_elsewhere, take_over
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import MadeOf, continued, differences, same
from raycl.trial.checkpoint import CheckpointStore

NONE = MadeOf(raycl.__version__)
STREAM = {"name": "split", "dataset": {"name": "digits", "limit": 40}, "tasks": 2}


@pytest.fixture(autouse=True)
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "EVERY_S", 0.0)


def two(tmp_path: Path) -> tuple[Lab, list[TrialPlan], SweepFolder]:
    """A lab whose folder has the first of two trials, as the sweep ``first``; another folder."""
    spec = text(methods=["finetune", "lwf_seen"], benchmark=STREAM)
    one = lab(tmp_path, spec, storage=str(tmp_path / "runs" / "first" / "trials"))
    plans = without(one.plans())
    one.run(plans[:1])
    finished_in(tmp_path / "runs", "first", one, plans[:1])
    return one, plans, SweepFolder(tmp_path / "runs", "second")


def here(plan: TrialPlan) -> Mapping[str, str]:
    return trainable.made_with(trainable.Settings("", 1.0, 2, "x", "max"), "cpu", plan)


def test_a_trial_comes_with_its_rows_and_its_files(tmp_path: Path) -> None:
    one, plans, second = two(tmp_path)
    found = finished_elsewhere(second, plans, here, NONE)
    assert found.keys() == {plans[0].key}
    log, storage = Log(), str(second.path / "trials")
    take_over(plans[0], found[plans[0].key], storage, Hub([log]))
    assert log.calls[0] == ("started", plans[0].key)
    assert log.calls[-1] == ("ended", plans[0].key, "finished")
    rows = [call[2] for call in log.calls if call[0] == "row"]
    before = [row for _, row in one.rows]
    assert rows[-1]["result"] == before[-1]["result"] | {"taken_from": "first"}
    for name in ("train/loss", "eval/class/average_accuracy"):
        assert {row[name] for row in rows if name in row} == {r[name] for r in before if name in r}
    assert [row["tasks_done"] for row in rows if "tasks_done" in row][:-1] == [1, 2]
    stores = [CheckpointStore(f"{folder}/{plans[0].key}") for folder in (one.storage, storage)]
    names = [[path.rpartition("/")[2] for path in store.paths()] for store in stores]
    assert names[1] == names[0][-1:] != []
    assert stores[1].load() is not None


def test_what_was_made_with_something_else_is_not_taken_over(tmp_path: Path) -> None:
    _, plans, second = two(tmp_path)
    assert finished_elsewhere(second, plans, here, NONE)
    assert not finished_elsewhere(second, plans, lambda plan: None, NONE)
    for word in ("device", "versions"):
        other = {**here(plans[0]), word: "another"}
        assert not finished_elsewhere(second, plans, lambda plan, now=other: now, NONE)
    threads = [replace(plan, config=plan.config | {"threads": 7}) for plan in plans]
    assert not finished_elsewhere(second, threads, here, NONE)
    players = [replace(plan, resources=plan.resources | {"env_runners": 2}) for plan in plans]
    assert not finished_elsewhere(second, players, here, NONE)
    assert not finished_elsewhere(SweepFolder(second.root, "first"), plans, here, NONE)
    (outcome,) = (second.root / "first" / "outcomes").glob("*.json")
    outcome.write_text("{")
    assert not finished_elsewhere(second, plans, here, NONE)


def test_a_driver_without_a_gpu_says_why_it_takes_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of ``raycl submit`` is one; trials that nobody has finished are not counted."""
    one, plans, second = two(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = trainable.Settings(str(second.path / "trials"), 1.0, 2, "x", "max", made_of=NONE)
    stage = Stage(one.data, settings, 0, 1.0, tmp_path / "tune", Hub([]))
    said: list[str] = []
    console = Console(quiet=True)
    stages = Stages(one.sweep, second, second.outcomes, stage, one.data, console, said.append)
    on_gpu = [replace(plan, resources=plan.resources | {"gpu": 0.5}) for plan in plans]
    stages._take_over(on_gpu)
    (line,) = said
    assert line.startswith("1 trials that other sweeps have finished are not taken over: they ask")
    said.clear()
    stages._take_over(plans[1:])
    assert said == []


def test_a_trial_without_its_checkpoints_is_not_taken_over(tmp_path: Path) -> None:
    one, plans, second = two(tmp_path)
    for path in Path(one.storage).glob("*/step-*.pt"):
        path.unlink()
    assert not finished_elsewhere(second, plans, here, NONE)


@pytest.mark.parametrize(
    "then, now, expected",
    [
        ({}, {}, True),
        ({"code": "raycl 1"}, {"code": "raycl 2"}, False),
        ({"data": "a 0123456789ab"}, {"data": "a 0123456789ab, b ba9876543210"}, True),
        ({"data": "a 0123456789ab"}, {"data": "b ba9876543210, a 1123456789ab"}, False),
        ({"weights": "w 0123456789ab"}, {"weights": "v 0123456789ab"}, False),
        ({}, {"weights": "v 0123456789ab"}, True),
        ({"env_runners": "4"}, {"env_runners": "8"}, False),
        ({"continued": "with other code"}, {}, False),
    ],
)
def test_what_is_the_same(then: dict[str, str], now: dict[str, str], expected: bool) -> None:
    assert same(then, now) == expected


@pytest.mark.parametrize(
    "then, now, said",
    [
        ({"data": "a 0123456789ab, b ba9876543210"}, {"data": "a 0123456789ab"}, False),
        ({"data": "a 0123456789ab"}, {"data": "a 1123456789ab"}, True),
        ({"data": "b 0123456789ab"}, {"data": "a 0123456789ab"}, True),
        ({}, {"data": "a 0123456789ab"}, True),
    ],
)
def test_other_data_of_the_whole_sweep_are_no_difference(
    then: dict[str, str], now: dict[str, str], said: bool
) -> None:
    assert bool(differences(then, now)) == said


@pytest.mark.parametrize(
    "then, now, expected",
    [
        ({"code": "raycl 1", "data": "a 0123456789ab"}, {"code": "raycl 1"}, ""),
        ({"code": "raycl 1"}, {"code": "raycl 2"}, "with other code"),
        ({"code": "1", "threads": "1"}, {"code": "2", "threads": "2"}, "with other code, threads"),
        ({"data": "a 0123456789ab"}, {"data": "a 1123456789ab"}, "with other data"),
        ({"code": "1", "weights": "w 0123456789ab"}, {"code": "1"}, ""),
        ({}, {"code": "raycl 1"}, "from a checkpoint of an older raycl"),
    ],
)
def test_what_a_trial_goes_on_with(
    then: dict[str, str], now: dict[str, str], expected: str
) -> None:
    assert continued(then, now) == expected


def test_files_whose_content_differs_are_other_data(tmp_path: Path) -> None:
    """A result names files and their sizes; records of sweeps tell their contents apart."""
    _, plans, second = two(tmp_path)
    SweepFolder(second.root, "first").record_made_of(replace(NONE, data={"data set a": "1"}), [])
    (path,) = (second.root / "first" / "outcomes").glob("*.json")
    outcome = json.loads(path.read_text())
    path.write_text(json.dumps(outcome | {"tags": {}}))
    assert finished_elsewhere(second, plans, here, replace(NONE, data={"data set a": "1"}))
    assert finished_elsewhere(second, plans, here, replace(NONE, data={"data set b": "2"}))
    assert not finished_elsewhere(second, plans, here, replace(NONE, data={"data set a": "2"}))


class Tracked:
    """A run of a report."""

    def __init__(self, **result: Any) -> None:
        self.result = {"cost": {"seconds": 50.0}} | result


def test_the_report_says_what_was_not_run_here() -> None:
    both = [Tracked(taken_from="first"), Tracked(taken_from="first")]
    runs: Any = [Tracked(), Tracked(shared_seconds=25.0), *both]
    assert list(_taken_over(runs)) == ["taken over, not run again: 2 trials of first"]
    (line,) = _shared(runs)
    assert line.startswith(
        "shared: 1 trials began with what another had trained, 25.0 s of 3.3 min"
    )
    assert "(12%)" in line
    assert not [*_shared(runs[:1]), *_taken_over(runs[:1])]


def test_a_sweep_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hidden copy of one, and one whose storage is away or needs a package."""
    _, plans, second = two(tmp_path)
    first = second.root / "first"
    shutil.copytree(first, second.root / ".first")
    assert finished_elsewhere(second, plans, here, NONE)
    assert not caplog.messages, "a hidden folder is none of a sweep"
    identity = json.loads((first / "spec.json").read_text())
    identity["resolved"]["storage"] = "nosuch://bucket"
    (first / "spec.json").write_text(json.dumps(identity))
    assert not finished_elsewhere(second, plans, here, NONE)
    (said,) = caplog.messages
    assert said.startswith(f"nothing more of {first} is taken over: ")


@pytest.mark.parametrize("torn", [0, 1])
def test_a_damaged_outcome_costs_that_trial_alone(tmp_path: Path, torn: int) -> None:
    one, plans, second = two(tmp_path)
    one.run(plans[1:])
    finished_in(second.root, "first", one, plans)
    files = sorted((second.root / "first/outcomes").glob("*.json"))
    assert len(files) == 2
    files[torn].write_text("{")
    found = finished_elsewhere(second, plans, here, NONE)
    assert found.keys() == {plan.key for plan in plans} - {files[torn].stem}


def test_a_trial_that_is_gone_while_it_is_copied_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, plans, second = two(tmp_path)
    (found,) = finished_elsewhere(second, plans, here, NONE).values()
    log, storage = Log(), second.path / "trials"
    read = found.store.fs.cat_file

    class Failing:
        """A file system whose last file cannot be read."""

        def __getattr__(self, name: str) -> Any:
            return getattr(CheckpointStore(str(storage)).fs, name)

        def cat_file(self, path: str) -> Any:
            if path == found.store.paths()[-1]:
                raise EndpointConnectionError("away")
            return read(path)

    class EndpointConnectionError(Exception):
        pass

    store = CheckpointStore(found.store.url)
    store.fs = Failing()
    assert not take_over(plans[0], replace(found, store=store), str(storage), Hub([log]))
    assert log.calls == []
    shutil.rmtree(found.store.root)
    assert not take_over(plans[0], found, str(storage), Hub([log]))
    assert log.calls == []
    said = f"{plans[0].name} of {found.folder.path} is not taken over: "
    assert [line.startswith(said) for line in caplog.messages] == [True, True]


def test_a_disk_that_is_full_is_no_fault_of_the_other_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plans, second = two(tmp_path)
    (found,) = finished_elsewhere(second, plans, here, NONE).values()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "put_bytes", full)
    with pytest.raises(OSError, match="No space"):
        take_over(plans[0], found, str(second.path / "trials"), Hub([]))


def test_a_result_that_a_storage_had_before_says_so(tmp_path: Path) -> None:
    """Two runs folders use one storage, one after the other."""
    spec = text(methods=["finetune"], benchmark=STREAM)
    one = lab(tmp_path, spec)
    plans = without(one.plans())
    one.made_of = replace(NONE, data={"data set digits": "1"})
    one.run(plans)
    assert "continued" not in one.rows[-1][1]["made"]
    one.run(plans)
    assert "continued" not in one.rows[-1][1]["made"], "its driver was killed before it wrote it"
    one.made_of = replace(NONE, data={"data set digits": "2"})
    one.run(plans)
    _, last = one.rows[-1]
    assert last["made"]["continued"] == "with other made_of"
    assert last["note"].endswith(".pt, with other made_of")
