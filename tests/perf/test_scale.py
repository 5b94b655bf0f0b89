"""A thousand trials of a method that does nothing: what the driver and the tracker can take.

`SCALE_TRIALS=10000` (a multiple of 1,000) asks for as many: half an hour on an old machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from test_sweep_overhead import launch

pytestmark = [pytest.mark.perf, pytest.mark.timeout(7200)]
TRIALS = int(os.environ.get("SCALE_TRIALS", "1000"))
FEW = 200 if TRIALS <= 1000 else 1000


@dataclass
class Seen:
    """What was seen of a sweep of so many trials.

    Attributes:
        trials: How many.
        per_trial_s: Between the first and the last trial's end, per trial.
        mb_per_trial: By how much the driver grew from the first end to the last.
        peak_mb: The driver's largest resident set.
        tracked_s: From the first trial's end until the tracker had everything.
        values: Lines of the journal, each a call of MLflow or more.
        journal_mb: Its size.
        store_mb: The size of MLflow's database.
        whole_s: From the command to the end of its report.
    """

    trials: int
    per_trial_s: float
    mb_per_trial: float
    peak_mb: float
    tracked_s: float
    values: int
    journal_mb: float
    store_mb: float
    whole_s: float


def watch(folder: Path, name: str, trials: int) -> Seen:
    began = time.perf_counter()
    labels = -(-trials // 1000)
    method = {"name": "busy.py:Busy", "seconds": 0}
    methods = [method | {"label": f"busy{i}"} for i in range(labels)]
    driver = launch(folder, name, seeds=trials // labels, methods=methods)
    process, sweep = psutil.Process(driver.pid), folder / "runs" / name
    first = last = tracked = 0.0
    memory: list[float] = []
    while driver.poll() is None:
        over = len(list((sweep / "outcomes").glob("*.json")))
        now = time.perf_counter()
        if over:
            first = first or now
            memory.append(process.memory_info().rss / 1e6)
        if over == trials:
            last = last or now
            state = json.loads((sweep / "tracking.state.json").read_text())
            sent = state["offset"] == (sweep / "tracking.jsonl").stat().st_size
            tracked = tracked or (now if sent and not state["files"] else 0.0)
        time.sleep(0.5)
    assert driver.returncode == 0
    journal = sweep / "tracking.jsonl"
    lines = len(journal.read_text().splitlines())
    sizes = journal.stat().st_size / 1e6, (folder / "runs" / "mlflow.db").stat().st_size / 1e6
    whole = time.perf_counter() - began
    grown = (max(memory) - memory[0]) / trials
    rate, tracked_s = (last - first) / trials, (tracked or time.perf_counter()) - first
    return Seen(trials, rate, grown, max(memory), tracked_s, lines, *sizes, whole)


def reading(folder: Path, name: str) -> dict[str, float]:
    """Seconds that the report and MLflow's first page take."""
    began = time.perf_counter()
    call = [sys.executable, "-m", "raycl", "report", name, "--runs", str(folder / "runs")]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    seconds = {"raycl report": time.perf_counter() - began}
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    best = "metrics.`eval/class/average_accuracy` DESC"
    for title, order in (("newest", "attributes.start_time DESC"), ("best", best)):
        began = time.perf_counter()
        runs = client.search_runs([experiment.experiment_id], order_by=[order], max_results=100)
        assert len(runs) == 100
        seconds[f"MLflow's {title} 100 runs"] = time.perf_counter() - began
    return seconds


def test_many_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = watch(tmp_path, "few", FEW), watch(tmp_path, "many", TRIALS)
    seen_in = reading(tmp_path, "many")
    with capsys.disabled():
        for seen in (few, many):
            print(
                f"\n{seen.trials} trials that do nothing: {1 / seen.per_trial_s:.1f} trials/s, "
                f"driver {seen.peak_mb:.0f} MB, {seen.mb_per_trial * 1000:.0f} kB more per trial; "
                f"tracked {seen.values / seen.tracked_s:.0f} events/s, "
                f"{seen.trials / seen.tracked_s:.1f} trials/s; {seen.whole_s:.0f} s in all; "
                f"journal {seen.journal_mb:.1f} MB, MLflow's store {seen.store_mb:.1f} MB"
            )
        print(f"{TRIALS} trials read: " + ", ".join(f"{k} {v:.1f} s" for k, v in seen_in.items()))
        ratio = many.per_trial_s / few.per_trial_s
        print(f"a trial among {TRIALS} costs {ratio:.2f} times one among {FEW} (at most 1.5)")
    assert ratio <= 1.5, "the cost of a trial must not grow with their number"
    assert many.mb_per_trial <= 1.0
