"""A runs folder that raycl 0.1.0 wrote before its modules moved: it reports, and it continues.

``earlier/kept`` has two trials on digits: ``finetune`` finished, ``online_ewc`` was interrupted.
What belongs to one machine was left out (MLflow's database, Tune's files, how far the journal was
sent) or replaced (the device's name).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycl import cli, datasets
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.testing import finish
from raycl.training.run import Run
from raycl.trial.checkpoint import CheckpointStore

EARLIER = Path(__file__).with_name("earlier")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER, tmp_path / "runs")


@pytest.fixture
def folder(runs: Path) -> SweepFolder:
    return SweepFolder.existing(runs, "kept")


def plans(folder: SweepFolder) -> dict[str, TrialPlan]:
    """The trials by their methods, as today's raycl expands the file."""
    found = expand.final_plans(spec.load(folder.resolved_file), {})
    return {plan.method: plan for plan in found}


def the_outcomes(folder: SweepFolder) -> dict[str, dict[str, Any]]:
    return {o.method: o.row for o in folder.outcomes.all()}


def test_the_file_means_the_same_trials(folder: SweepFolder) -> None:
    sweep = spec.load(folder.resolved_file)
    folder.check(expand.spec_hash(sweep), sweep.resolved())
    assert {plan.key for plan in plans(folder).values()} == {
        path.name for path in (folder.path / "trials").iterdir()
    }
    assert plans(folder)["finetune"].key in folder.outcomes
    assert plans(folder)["online_ewc"].key not in folder.outcomes
    assert not folder.outcomes.damaged


def test_the_table_has_what_was_written_then(
    runs: Path, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = ["raycl", "report", "kept", "--runs", str(runs), "--format", "json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr()
    assert "the table is from the sweep's folder" in said.err  # there is no database of MLflow
    rows = json.loads(said.out)
    metrics = the_outcomes(folder)["finetune"]["result"]["metrics"]
    (shown,) = (r for r in rows if (r["readout"], r["metric"]) == ("class", "average_accuracy"))
    assert shown["method"] == "finetune"
    assert shown["mean"] == pytest.approx(metrics["class"]["average_accuracy"])
    assert (shown["n"], shown["seeds"]) == (1, [0])


def test_a_checkpoint_of_then_goes_on(folder: SweepFolder) -> None:
    plan = plans(folder)["online_ewc"]
    data = check_data(spec.load(folder.resolved_file), datasets.data_root())
    run = Run(plan.config, data)
    loaded = CheckpointStore(str(folder.path / "trials" / plan.key)).load()
    assert loaded is not None
    assert not loaded.damaged
    run.load_state_dict(loaded.state)
    assert 0 < run.progress < 80
    assert run.last_row["progress"] == run.progress
    matrix = finish(run)["matrices"]["task"]
    assert run.last_row["progress"] == 80
    assert min(matrix[0][0], matrix[1][1]) > 60


@pytest.mark.slow
def test_the_sweep_of_then_is_resumed(runs: Path, folder: SweepFolder) -> None:
    before = the_outcomes(folder)["finetune"]
    # what has changed is the version, once it rises
    words = ("resume", "kept", "--runs", str(runs), "--accept-changes")
    done = subprocess.run(
        [sys.executable, "-m", "raycl", *words],
        cwd=runs,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues from" in done.stderr
    after = the_outcomes(SweepFolder.existing(runs, "kept"))
    assert after["finetune"] == before
    assert after["online_ewc"]["progress"] == 80
    assert "online_ewc" in done.stdout
