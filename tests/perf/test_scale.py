"""A thousand trials of a method that does nothing: what the driver and the tracker can take."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from test_sweep_overhead import launch

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]


@dataclass
class Seen:
    """Of a sweep of so many trials.

    Attributes:
        trials: How many.
        per_trial_s: Between the first and the last trial's end, per trial.
        mb_per_trial: By how much the driver grew from the first end to the last.
        peak_mb: The driver's largest resident set.
        tracked_s: From the first trial's end until the tracker had everything.
        values: Lines of the journal, each a call of MLflow or more.
        whole_s: From the command to the end of its report.
    """

    trials: int
    per_trial_s: float
    mb_per_trial: float
    peak_mb: float
    tracked_s: float
    values: int
    whole_s: float


def watch(folder: Path, name: str, trials: int) -> Seen:
    began = time.perf_counter()
    driver = launch(folder, name, seeds=trials, methods=[{"name": "busy.py:Busy", "seconds": 0}])
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
    lines = len((sweep / "tracking.jsonl").read_text().splitlines())
    whole = time.perf_counter() - began
    grown = (max(memory) - memory[0]) / trials
    rate, tracked_s = (last - first) / trials, (tracked or time.perf_counter()) - first
    return Seen(trials, rate, grown, max(memory), tracked_s, lines, whole)


def test_a_thousand_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = watch(tmp_path, "few", 200), watch(tmp_path, "many", 1000)
    with capsys.disabled():
        for seen in (few, many):
            print(
                f"\n{seen.trials} trials that do nothing: {1 / seen.per_trial_s:.1f} trials/s, "
                f"driver {seen.peak_mb:.0f} MB, {seen.mb_per_trial * 1000:.0f} kB more per trial; "
                f"tracked {seen.values / seen.tracked_s:.0f} events/s, "
                f"{seen.trials / seen.tracked_s:.1f} trials/s; {seen.whole_s:.0f} s in all"
            )
        ratio = many.per_trial_s / few.per_trial_s
        print(f"a trial among 1,000 costs {ratio:.2f} times one among 200 (at most 1.5)")
    assert ratio <= 1.5, "the cost of a trial must not grow with their number"
    assert many.mb_per_trial <= 1.0
