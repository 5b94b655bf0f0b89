"""What ``raycl verify`` compares and says; the whole way through Ray is in the end-to-end tests."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raycl import datasets, verify
from raycl.cli import main
from raycl.datasets import Arrays, Dataset, DatasetConfig, Files
from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import fill
from raycl.sweep.record import made_of
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome
from raycl.trial.checkpoint import runs_root

MADE = {"code": "raycl 1", "data": "digits a", "device": "cpu", "versions": "torch 1"}


def sweep_of(folder: Path, **changes: Any) -> spec.Sweep:
    data = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": ["finetune", {"name": "ewc", "lam": {"quniform": [10, 50, 10]}}],
        "network": {"name": "mlp", "hidden": [8]},
        "search": {"num_samples": 2},
        "seeds": 2,
    } | changes
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    return spec.load(folder / "s.yaml")


def row(**changes: Any) -> dict[str, Any]:
    result = {
        "matrices": {"task": [[90.0, None], [80.0, 95.0 + 1e-13]]},
        "validation_matrices": {"task": [[91.0, None], [81.0, 96.0]]},
        "baseline": {"task": [10.0, 11.0]},
        "cost": {"seconds": 3.5},
    }
    return {"finished": True, "result": result, "made": dict(MADE)} | changes


def outcome(found: dict[str, Any]) -> Outcome:
    return Outcome("k", "ewc-s0", "ewc", "digits", "trial", 0, "c", "finished", row=found)


def test_the_same_bits_are_the_same() -> None:
    again = row()
    again["result"]["cost"] = {"seconds": 9.0}
    assert verify.compare(outcome(row()), "k", again, "") == ([], [])


@pytest.mark.parametrize(
    "place, said",
    [
        (
            ("matrices", "task", 1, 1),
            "matrices.task[1][1] was 95.0000000000001, is 95.00000000000011",
        ),
        (
            ("validation_matrices", "task", 0, 0),
            "validation_matrices.task[0][0] was 91.0, is 91.00",
        ),
        (("baseline", "task", 1), "baseline.task[1] was 11.0, is 11.00"),
    ],
)
def test_one_bit_is_a_difference(place: tuple[Any, ...], said: str) -> None:
    again = copy.deepcopy(row())
    *path, last = place
    tree = again["result"]
    for part in path:
        tree = tree[part]
    tree[last] = float(np.nextafter(tree[last], np.inf))
    (line,), changed = verify.compare(outcome(row()), "k", again, "")
    assert line.startswith(said)
    assert changed == []


def test_what_is_missing_is_a_difference() -> None:
    again = row()
    again["result"]["matrices"] = {"task": [[90.0]], "class": [[1.0]]}
    lines, _ = verify.compare(outcome(row()), "k", again, "")
    assert lines == [
        "matrices.class was None, is [[1.0]]",
        "matrices.task was [[90.0, None], [80.0, 95.0000000000001]], is [[90.0]]",
    ]
    lines, _ = verify.compare(outcome(row()), "k", None, "TrainingError: loss became nan")
    assert lines == ["did not finish again: TrainingError: loss became nan"]


def test_what_it_was_made_with_is_named() -> None:
    now = MADE | {"device": "H200", "code": "raycl 2"}
    _, changed = verify.compare(outcome(row()), "other", row(made=now), "")
    assert changed == [
        "code: options, defaults or a file of a method have changed since",
        "code: raycl 1 then, raycl 2 now",
        "device: cpu then, H200 now",
    ]
    old, new = (row(made=MADE | {"weights": f"timm {one}"}) for one in "ab")
    assert verify.compare(outcome(old), "k", new, "")[1] == ["weights: timm a then, timm b now"]
    assert verify.compare(outcome(row()), "k", new, "")[1] == [], "an older raycl did not say"
    old = row(made=MADE | {"continued": "with other code"})
    _, changed = verify.compare(outcome(old), "k", row(), "")
    assert changed == ["continued: with other code then, none now"]
    old = row()
    del old["made"]
    _, changed = verify.compare(outcome(old), "k", row(), "")
    assert changed[1] == "data: not recorded then, digits a now"


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_plans_are_made_again(tmp_path: Path, algorithm: str) -> None:
    sweep = sweep_of(tmp_path, search={"num_samples": 2, "algorithm": algorithm})
    ewc = expand.groups(sweep)[1]
    values = {"method.lam": 20.0}
    plans = expand.final_plans(sweep, {(ewc.benchmark, "ewc"): values})
    plans.append(fill(expand.search_base(sweep, ewc), values, 1000, "search"))
    for plan in plans:
        again = verify.plan_again(sweep, Outcome.of(plan, "finished", {}, ""))
        assert again == plan
    gone = replace(Outcome.of(plans[0], "finished", {}, ""), method="joint")
    with pytest.raises(UserError, match="the sweep has no joint on"):
        verify.plan_again(sweep, gone)
    gone = replace(Outcome.of(plans[-1], "finished", {}, ""), varied={"method.lamm": 1.0})
    with pytest.raises(UserError, match="cannot be made again"):
        verify.plan_again(sweep, gone)


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    folder = SweepFolder(tmp_path / "runs", "s")
    folder.claim("hash", sweep.resolved())
    (plan, *_) = expand.final_plans(sweep, {})
    folder.outcomes.add(Outcome.of(plan, "error", {}, "x"))
    with pytest.raises(UserError, match="no trial of 's' has finished"):
        verify.verify("s", 0.05, tmp_path / "runs", None, None)
    with pytest.raises(UserError, match="no sweep named 't'"):
        verify.verify("t", 0.05, tmp_path / "runs", None, None)


def test_what_is_run_again_and_what_it_comes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The share, the exit code, and a folder that stays as it was."""
    sweep = sweep_of(tmp_path, methods=["finetune"], seeds=20)
    folder = SweepFolder(tmp_path / "runs", "s")
    folder.claim("hash", sweep.resolved())
    for plan in expand.final_plans(sweep, {}):
        folder.outcomes.add(Outcome.of(plan, "finished", row(), ""))
    before = sorted(tmp_path.rglob("*"))
    now: dict[str, Any] = {}
    ran: list[str] = []

    def run(sweep: Any, folder: Any, address: Any, data: Any, plans: Any) -> verify.Again:
        again = verify.Again()
        ran[:] = [plan.key for plan in plans]
        for plan in plans:
            again.ended(plan, "finished", row(made=MADE | now), "")
        return again

    monkeypatch.setattr(verify, "_run", run)

    def called(share: float) -> tuple[int, str]:
        return verify.verify("s", share, tmp_path / "runs", None, None), capsys.readouterr().out

    for share, count in ((0.0, 1), (0.05, 1), (0.06, 2), (1.0, 20)):
        code, said = called(share)
        assert (code, len(set(ran))) == (0, count)
        assert said.splitlines()[-1] == f"{count} of {count} are the same"
    assert len({tuple(ran) for _ in range(30) if called(0.05)}) > 1, "a random share"
    now["device"] = "H200"
    code, said = called(0.05)
    assert code == 0
    assert "not as it was: device: cpu then, H200 now" in said
    now["data"] = "digits b"
    assert called(0.05)[0] == 1
    now.clear()
    (one, *_) = folder.outcomes.all()
    other = row()
    other["result"]["matrices"]["task"][0][0] = 90.5
    folder.outcomes.add(replace(one, row=other))
    code, said = called(1.0)
    assert code == 1
    assert f"{one.name}: matrices.task[0][0] was 90.5, is 90.0" in said
    assert said.splitlines()[-1] == "19 of 20 are the same, 1 differ"
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------- fingerprints


def test_a_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    config = DatasetConfig(name="digits")
    digits = datasets.load(config, tmp_path)
    first = made_of.data({"digits": digits})
    assert first == made_of.data({"digits": datasets.load(config, tmp_path)})
    assert first.startswith("digits ")
    assert isinstance(digits.train, Arrays)
    images = digits.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    changed = replace(digits, train=replace(digits.train, images=images))
    assert made_of.data({"digits": changed}) != first
    labels = digits.train.labels.copy()
    labels[0] ^= 1
    assert (
        made_of.data({"digits": replace(digits, train=replace(digits.train, labels=labels))})
        != first
    )
    assert made_of.data({"digits": replace(digits, mean=(0.1,))}) != first
    assert made_of.data({}) == ""


def test_a_fingerprint_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "1.png"
    file.write_bytes(b"one")
    part = Files((str(file),), np.zeros(1, np.int64), 32)
    one = Dataset("folder", part, part, ("a",), (0.5,), (0.5,))
    first = made_of.data({"x": one})
    assert first == made_of.data({"x": one})
    file.write_bytes(b"other")
    assert made_of.data({"x": one}) != first


def test_code_and_machine_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_of.code().startswith("raycl ")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} == set(made_of.OURS)
    (tmp_path / "ours").mkdir()
    file = tmp_path / "ours" / "__init__.py"
    file.write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(made_of, "OURS", ("raycl", "ours"))
    before = made_of.code.__wrapped__()
    file.write_text("A = 2\n")
    assert made_of.code.__wrapped__() != before
    machine = made_of.process("cpu")
    assert machine["device"]
    assert machine["versions"].startswith("python 3.")
    for package in ("torch 2", "timm 1", "ale-py 0", "gymnasium 1"):
        assert package in machine["versions"]
    assert made_of._sources("timm.models.vit").keys() == {"timm"}
    assert made_of._sources("raycl.methods.ewc") == made_of._sources("no_such") == {}


def test_only_its_own_folder_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though the runs folder has a name that fsspec reads as a chain of URLs."""
    theirs = tmp_path / "a" / "theirs"
    mine = tmp_path / "a::b" / "runs" / "s" / "trials" / "verify-0"
    for folder in (theirs, mine):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    verify._remove(str(mine))
    assert theirs.exists()
    assert not mine.exists()
    assert mine.parent.exists()
    verify._remove(str(mine))
    assert not caplog.messages, "nothing was written there"
    verify._remove("nosuch://x/y")
    assert caplog.messages[0].startswith("nosuch://x/y cannot be removed: ")


def test_a_trial_runs_again_with_as_many_threads_as_it_had(tmp_path: Path) -> None:
    (plan, *_) = expand.final_plans(sweep_of(tmp_path, methods=["finetune"]), {})
    now = sweep_of(tmp_path, methods=["finetune"], resources={"cpu": 4})
    again = verify.plan_again(now, Outcome.of(plan, "finished", {}, ""))
    assert (again.config["threads"], again.key) == (1, plan.key)


@pytest.mark.parametrize("made, expected", [({"env_runners": "2"}, 2), ({}, 4)])
def test_a_trial_of_games_runs_again_with_as_many_env_runners_as_it_had(
    tmp_path: Path, made: dict[str, str], expected: int
) -> None:
    """Each runner has a generator of its own, from which actions are drawn."""
    games: dict[str, Any] = {
        "benchmark": {"name": "atari", "games": ["KungFuMaster", "Boxing"], "frames": 16000},
        "methods": ["finetune"],
        "network": {"name": "atari_cnn", "channels": [4, 4, 4], "features": 16},
        "train": {"envs": 8, "rollout": 25},
        "seeds": 1,
    }
    (plan,) = expand.final_plans(sweep_of(tmp_path, **games, resources={"env_runners": 2}), {})
    now = sweep_of(tmp_path, **games, resources={"env_runners": 4})
    again = verify.plan_again(now, Outcome.of(plan, "finished", {"made": made}, ""))
    assert (again.resources["env_runners"], again.key) == (expected, plan.key)


def test_other_env_runners_are_named() -> None:
    old, new = (row(made=MADE | {"env_runners": n}) for n in "24")
    assert verify.compare(outcome(old), "k", new, "")[1] == ["env_runners: 2 then, 4 now"]
    assert verify.compare(outcome(row()), "k", new, "")[1] == [], "an older raycl did not say"


@pytest.mark.parametrize("option", ["--runs", "--data"])
def test_a_folder_of_nobody_is_refused_in_one_line(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["raycl", "verify", "s", option, "~ghost/x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option}: '~ghost/x' begins with the home directory of a user")


@pytest.mark.parametrize("name", ["RAYCL_RUNS", "RAYCL_DATA"])
def test_a_folder_of_nobody_in_the_environment_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "~ghost/x")
    with pytest.raises(UserError, match=f"^{name}: '~ghost/x' begins with the home directory"):
        (runs_root if name == "RAYCL_RUNS" else datasets.data_root)()
