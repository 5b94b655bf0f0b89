"""What a person sees in MLflow's own pages, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import CHROMIUM, Browser
from tracking_helpers import Server, rows, trial

from raycl.tracking import Store, SweepRecord, Tracker
from raycl.tracking.ui import page

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")


def test_what_a_person_sees(
    server: Server,
    store: Store,
    sweep: SweepRecord,
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    for method in ("finetune", "joint"):
        tracker.trial_started(trial(method, method=method))
        for row in rows():
            tracker.trial_row(method, row)
        tracker.trial_ended(method, "finished", row)
    tracker.trial_started(trial("broken"))
    tracker.trial_ended("broken", "error", {}, "TrainingError: loss became inf in task 4")
    assert tracker.close("FAILED") == 0
    server.start()

    base = f"{server.uri}/#/experiments/{runs()[sweep.name].info.experiment_id}/runs"
    good, bad = (f"{base}/{runs()[f'finetune-{key}'].info.run_id}" for key in ("joint", "broken"))

    with Browser(tmp_path / "profile") as browser:
        first = browser.open(
            page(store.uri, server.uri, sweep.name),
            "What it is.",  # the description
            "Methods: mean over seeds",  # the saved view is there and chosen
            "Group: finetune",
            "Group: joint",
            "finetune-joint",  # a run
            "eval/class/average_accuracy",  # a column
        )
        assert "finetune-broken" not in first, "failed runs are not in the means"

        charts = browser.open(
            page(store.uri, server.uri, sweep.name) + "&compareRunsMode=CHART",
            "eval/class (1)",  # a section of charts for each readout that there is
        )
        for absent in ("eval/task", "cost (1)", "Error loading shared view"):
            assert absent not in charts, absent

        browser.open(
            good,
            *("finetune-joint", "train/loss", "eval/class/average_accuracy", "method.name"),
            *("raycl.method", "joint", "raycl.end", "finished", "Finished"),
        )
        browser.open(bad, "TrainingError: loss became inf in task 4")
        browser.open(f"{good}/artifacts", "plots", "results", "tables")
