"""Sweeps through the command line, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from raycl.cli import main
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.record.folder import SweepFolder

ROOT = Path(__file__).parents[2]


def raycl(folder: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "raycl", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def write(folder: Path, name: str, **changes: Any) -> str:
    spec: dict[str, Any] = {
        "name": name,
        "benchmark": {"name": "split", "dataset": {"name": "digits", "limit": 40}, "tasks": 3},
        "methods": ["finetune"],
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 3, "batch_size": 16, "lr": 0.05},
        "seeds": 2,
    } | changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    return f"{name}.yaml"


def outcomes(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in (folder / "runs" / name / "outcomes").glob("*.json")]


def best(trials: list[dict[str, Any]], readout: str) -> dict[str, Any]:
    """The one with the highest average accuracy on the validation data."""

    def validated(outcome: dict[str, Any]) -> float:
        found = outcome["row"]["result"]["validation_metrics"][readout]
        return float(found["average_accuracy"])

    return max(trials, key=validated)


def test_quickstart(tmp_path: Path) -> None:
    """The claim of the first screen: joint > naive_rehearsal > finetune, outside the intervals."""
    table, progress = raycl(tmp_path, "run", str(ROOT / "sweeps" / "quickstart.yaml"))
    assert "12/12" in progress
    assert "class-incremental" in table
    out, _ = raycl(tmp_path, "report", "quickstart", "--format", "json")
    rows = {
        row["method"]: row
        for row in json.loads(out)
        if row["readout"] == "class" and row["metric"] == "average_accuracy"
    }
    assert {row["n"] for row in rows.values()} == {3}
    assert rows["finetune"]["high"] < rows["naive_rehearsal"]["low"]
    assert rows["naive_rehearsal"]["high"] < rows["joint"]["low"]
    assert len(rows["joint"]["run_ids"]) == 3
    report = tmp_path / "runs" / "quickstart" / "report"
    assert (report / "report.md").is_file()
    assert list(report.glob("figures/*.png"))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("quickstart")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 13
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_smoke_of_blip_and_its_baselines(tmp_path: Path) -> None:
    """All methods of a published table, on bundled data; the bits of BLIP are drawn."""
    table, _ = raycl(tmp_path, "run", str(ROOT / "sweeps" / "blip" / "mnist5.yaml"), "--smoke")
    assert "task-incremental" in table
    labels = ["sgd", "sgd_frozen", "lwf", "imm_l2", "imm_mode", "ewc", "online_ewc", "blip"]
    found = {o["method"]: o for o in outcomes(tmp_path, "blip-mnist5-smoke")}
    assert sorted(found) == sorted(labels)
    assert {o["status"] for o in found.values()} == {"finished"}
    assert any("shared_seconds" in o["row"]["result"] for o in found.values())
    assert "of training (" in table.partition("shared: ")[2]
    assert not (tmp_path / "runs" / "blip-mnist5-smoke" / "trials" / "prefix").exists()
    metrics = {m: o["row"]["result"]["metrics"]["task"] for m, o in found.items()}
    assert metrics["sgd_frozen"]["backward_transfer"] == 0
    assert min(m["average_accuracy"] for m in metrics.values()) > 80
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("blip-mnist5-smoke")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`raycl.method` = 'blip'")
    assert 0 < run.data.metrics["method/capacity"] < 1
    assert "plots/bits.png" in {a.path for a in client.list_artifacts(run.info.run_id, "plots")}


@pytest.mark.slow
def test_random_search_with_asha(tmp_path: Path) -> None:
    sweep = write(
        tmp_path,
        "asha",
        methods=["finetune", {"name": "naive_rehearsal", "memory_size": {"grid": [10, 40]}}],
        train={"epochs": 2, "batch_size": 16, "lr": {"loguniform": [0.001, 0.2]}},
        search={
            "num_samples": 4,
            "metric": "validation/class/average_accuracy",
            "max_concurrent": 2,  # those that come later are stopped, on any machine
        },
        scheduler={"name": "asha", "grace_period": 1, "reduction_factor": 2},
    )
    _, progress = raycl(tmp_path, "run", sweep)
    found = outcomes(tmp_path, "asha")
    kinds = [(o["kind"], o["status"]) for o in found]
    assert sum(kind == "search" for kind, _ in kinds) == 4 + 8
    assert kinds.count(("winner", "finished")) == 4
    assert ("search", "stopped-early") in kinds
    assert "winner of naive_rehearsal on" in progress
    # the best of the finished ones, by the validation data, has won
    for method in ("finetune", "naive_rehearsal"):
        mine = [o for o in found if o["method"] == method]
        finished = [o for o in mine if o["kind"] == "search" and o["status"] == "finished"]
        winners = [o for o in mine if o["kind"] == "winner"]
        assert [o["varied"] for o in winners] == [best(finished, "class")["varied"]] * 2
        assert not {o["seed"] for o in winners} & {o["seed"] for o in finished}
    out, _ = raycl(tmp_path, "report", "asha", "--format", "json")
    assert {row["n"] for row in json.loads(out)} == {2}, "search trials are not results"


@pytest.mark.slow
def test_optuna_and_its_continuation(tmp_path: Path) -> None:
    sweep = write(
        tmp_path,
        "tpe",
        methods=[{"name": "online_ewc", "lam": {"loguniform": [0.1, 100]}, "fisher_samples": 50}],
        train={"epochs": 3, "lr": 0.05, "batch_size": {"qloguniform": [8, 32, 8]}},
        search={"num_samples": 4, "algorithm": "optuna", "max_concurrent": 2},
        seeds=1,
    )
    raycl(tmp_path, "run", sweep)
    found = outcomes(tmp_path, "tpe")
    assert sorted(o["kind"] for o in found) == ["search"] * 4 + ["winner"]
    tried = {o["key"]: o["varied"] for o in found if o["kind"] == "search"}
    assert len({v["method.lam"] for v in tried.values()}) == 4
    assert {v["train.batch_size"] for v in tried.values()} <= {8, 16, 24, 32}
    # as if the driver had died in the middle of the search: two outcomes and the winner are gone
    folder = tmp_path / "runs" / "tpe"
    lost = sorted(tried)[:2]
    for outcome in found:
        if outcome["kind"] == "winner" or outcome["key"] in lost:
            (folder / "outcomes" / f"{outcome['key']}.json").unlink()
    (folder / "winners.json").unlink()
    _, progress = raycl(tmp_path, "run", sweep)
    again = outcomes(tmp_path, "tpe")
    assert {o["key"] for o in again if o["kind"] == "search"} == set(tried)
    assert "continues from" in progress

    # an auditor runs all of it again; one number was not what came out
    changed = folder / "outcomes" / f"{lost[0]}.json"
    outcome = json.loads(changed.read_text())
    outcome["row"]["result"]["matrices"]["class"][1][0] += 1e-12
    changed.write_text(json.dumps(outcome))
    out, _ = raycl(tmp_path, "verify", "tpe", "--share", "1", code=1)
    assert f"{outcome['name']}: matrices.class[1][0] was " in out
    assert out.count(": the same to the last bit") == 4
    assert "not as it was" not in out
    assert not list(folder.rglob("verify-*")), "nothing is left of it"


def test_values_are_chosen_on_another_stream_and_reported_on_the_own(tmp_path: Path) -> None:
    """The protocol of arXiv 2403.09066; and matrices that are not measured whole."""
    other = {"name": "permuted", "dataset": {"name": "digits", "limit": 40}, "tasks": 4}
    sweep = write(
        tmp_path,
        "tuned",
        methods=["joint", {"name": "online_ewc", "lam": {"grid": [1, 10]}, "fisher_samples": 50}],
        search={"benchmark": other},
        scheduler={"name": "asha", "grace_period": 1, "reduction_factor": 2},
        evaluate={"limit": 5, "every": 9},
        seeds=1,
    )
    table, progress = raycl(tmp_path, "run", sweep)
    found = outcomes(tmp_path, "tuned")
    search, final = (
        [o for o in found if (o["kind"] == "search") == searched] for searched in (True, False)
    )
    assert {(o["benchmark"], o["config"]["benchmark"]["name"]) for o in search} == {
        ("permuted-digits-4", "permuted")
    }
    assert {o["benchmark"] for o in final} == {"split-digits-3"}
    winners = json.loads((tmp_path / "runs" / "tuned" / "winners.json").read_text())
    assert [(w["benchmark"], w["method"]) for w in winners] == [("permuted-digits-4", "online_ewc")]
    (won,) = [o for o in final if o["kind"] == "winner"]
    assert won["varied"] == winners[0]["values"]
    finished = [o for o in search if o["status"] == "finished"]
    assert won["varied"] == best(finished, "domain")["varied"]
    assert won["seed"] not in {o["seed"] for o in search}
    assert "winner of online_ewc on permuted-digits-4" in progress
    words = " ".join(table.split())
    assert "search: 2 trials" in words
    assert "chosen on permuted-digits-4, another stream, by validation/average_accuracy" in words

    ended = finished[0]["row"]["result"]
    assert [len([n for n in row if n]) for row in ended["images"]] == [2, 3, 4, 4], "asha reads all"
    assert won["row"]["result"]["matrices"]["class"][1][0] is None
    assert "below the diagonal only one row in 9 was measured" in words
    out, _ = raycl(tmp_path, "report", "tuned", "--format", "json")
    rows = json.loads(out)
    assert max(row["n"] for row in rows) == 1, "search trials are not results"
    means = {row["metric"]: row["mean"] for row in rows if row["readout"] == "class"}
    assert means["forgetting"] is None
    assert means["average_accuracy"] > 0
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tuned")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`raycl.kind` = 'winner'")
    assert "eval/class/backward_transfer" in run.data.metrics
    assert not run.data.metrics.keys() & {
        f"{way}/class/{name}"
        for way in ("eval", "validation")
        for name in ("forgetting", "average_incremental_accuracy")
    }
    assert run.data.params["evaluate.limit"] == "5"


@pytest.mark.slow
def test_first_tasks_protocol(tmp_path: Path) -> None:
    sweep = write(
        tmp_path,
        "first",
        train={"epochs": 1, "batch_size": 16, "lr": {"grid": [0.001, 0.1]}},
        search={"protocol": "first_tasks", "tasks": 2},
        seeds=1,
    )
    table, _ = raycl(tmp_path, "run", sweep)
    found = outcomes(tmp_path, "first")
    lengths = {(o["kind"], len(o["row"]["result"]["tasks"])) for o in found}
    assert lengths == {("search", 2), ("winner", 3)}
    assert "2 tasks" in table, "the report says what the search cost"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type commands in, in which Ray cannot be started."""
    for name in ("RAYCL_DATA", "RAYCL_RUNS"):
        monkeypatch.setenv(name, "restored in the end, also if the command sets it")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "connect", None)
    return tmp_path


def refused(*arguments: str) -> None:
    """Type a command in this process, which is quicker, and see it refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raycl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"benchmark": {"name": "split", "dataset": "mnist", "tasks": 5}},
            "raycl data fetch mnist",
        ),
        ({"benchmark": {"name": "split", "dataset": "digits", "tasks": 11}}, "benchmark.tasks"),
        ({"resources": {"cpu": 1, "gpu": 64}}, "resources.gpu: trial finetune-s0 asks for 64 GPUs"),
    ],
)
def test_refused_before_ray_starts(
    here: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    refused("run", write(here, "bad", **change), "--data", str(here / "nowhere"))
    check_refused(here, *capsys.readouterr(), message)


def test_a_tracker_that_is_away_is_refused_before_ray_starts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("run", write(here, "bad", tracking={"uri": "http://127.0.0.1:9"}))
    check_refused(here, *capsys.readouterr(), "http://127.0.0.1:9")


def test_a_name_that_is_taken_is_refused_before_ray_starts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process is running it, or another specification had it before."""
    sweep = write(here, "taken")
    folder = SweepFolder(here / "runs", "taken")
    with folder.lock():
        refused("run", sweep)
    said = capsys.readouterr().err
    assert said == f"error: name: 'taken' is being run by process {os.getpid()}\n"
    begun = spec.load(here / sweep)
    folder.claim(expand.spec_hash(begun), begun.resolved())
    write(here, "taken", train={"epochs": 4, "batch_size": 16, "lr": 0.05})
    refused("run", sweep)
    said = capsys.readouterr().err
    assert "'taken' is already in use by another specification in" in said
    assert "(differs in train.epochs)" in said
    assert said.count("\n") == 1


def check_refused(folder: Path, out: str, error: str, message: str) -> None:
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out
    assert not (folder / "runs" / "bad" / "spec.json").exists(), "the name is not taken"
