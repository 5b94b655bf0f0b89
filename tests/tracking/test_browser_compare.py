"""Methods compared in MLflow's own pages, in a real browser: tables, charts, files of many runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser_helpers import CHROMIUM, Browser
from PIL import Image
from tracking_helpers import Server, rows

from raycl.tracking import Store, SweepRecord, Tracker, TrialRecord, views
from raycl.tracking.plots import _colours
from raycl.tracking.ui import page
from tests.waiting import until

in_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")
METHODS = {"finetune": 60.0, "blip": 70.0, "joint": 80.0, "online_ewc": 65.0}
LAMS = (1.5, 20.0, 300.0)


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> SweepRecord:
    """Four methods; of one the strength is searched."""
    methods = [{"name": m, "label": m, "train": {}, "network": {}} for m in METHODS]
    methods[-1]["lam"] = {"loguniform": [1, 1000]}
    resolved = {
        "benchmark": [{"name": "split"}],
        "methods": methods,
        "network": {"name": "mlp", "hidden": [100, 100]},
        "train": {"lr": 0.1},
        "search": {"metric": "validation/average_accuracy", "mode": "max"},
    }
    name = request.node.name
    return SweepRecord(name, f"id-{name}", "What it is.", f"name: {name}\n", resolved)


def log(tracker: Tracker, method: str, seed: int, kind: str = "winner", lam: float = 20.0) -> None:
    """One trial of a method from its start to its end."""
    own = {"name": method} | ({"lam": lam} if method == "online_ewc" else {})
    key = f"{method}-{lam:g}-s{seed}" if kind == "search" else f"{method}-s{seed}"
    tags = {"kind": kind, "method": method, "benchmark": "digits", "seed": str(seed)}
    params = {"label": method, "method": own, "seed": seed, "train": {"lr": 0.1}}
    tracker.trial_started(TrialRecord(key, key, tags | {"config_key": method}, params))
    for row in rows():
        row["validation/average_accuracy"] = 90.0 - lam / 10
        if row["at_task_end"]:
            row["eval/class/average_accuracy"] = METHODS[method] + seed
        if "result" in row:
            row["result"]["matrices"]["class"] = [[90.0, None], [METHODS[method] + seed, 80.0]]
        tracker.trial_row(key, row)
    tracker.trial_ended(key, "finished", row)


@pytest.mark.slow
@in_browser
def test_comparing_more_than_twenty_runs(
    server: Server,
    store: Store,
    sweep: SweepRecord,
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    for lam in LAMS:
        log(tracker, "online_ewc", 1000, "search", lam)
    for method, seed in product(METHODS, range(5)):
        log(tracker, method, seed)
    assert tracker.close("FINISHED") == 0
    server.start()
    found = runs()
    assert len(found) == 1 + 3 + 20
    address = page(store.uri, server.uri, sweep.name)
    searched = address.replace(views.METHODS, views.SEARCH)
    ids = [run.info.run_id for name, run in found.items() if name[-3:-1] == "-s"]
    compared = (
        f"{server.uri}/#/compare-runs?runs={quote(json.dumps(ids))}"
        f"&experiments={quote(json.dumps([found[sweep.name].info.experiment_id]))}"
    )

    with Browser(tmp_path / "profile") as browser:
        groups = (f"Group: {method} 5" for method in METHODS)
        means = (f"{accuracy + 2:g} (average)" for accuracy in METHODS.values())
        shown = browser.open(address, *groups, *means)
        assert "joint-s0" not in shown, "its row is folded"

        names = [f"online_ewc-{lam:g}-s1000" for lam in LAMS]
        shown = browser.open(searched, *names)
        assert sorted(names, key=shown.find) == names, "the best one first"
        assert "joint-s0" not in shown
        browser.open(
            f"{searched}&compareRunsMode=CHART",
            "searched values (1) Add chart Parallel Coordinates",
            *("Showing all runs online_ewc label", "method.lam"),  # its axes
        )

        browser.open(
            compared,
            "Comparing 20 Runs from 1 Experiment",
            *(f"{method}-s{seed}" for method, seed in product(METHODS, range(5))),
            "Parameters: label method.lam method.name Metrics:",  # those that differ
            *("Box Plot", "Show diff only", "eval/class/average_accuracy", "84"),
        )


@pytest.mark.slow
@in_browser
def test_a_runs_table_and_heat_map(
    server: Server,
    sweep: SweepRecord,
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    log(tracker, "blip", 3)
    assert tracker.close("FINISHED") == 0
    server.start()
    run = runs()["blip-s3"].info
    files = f"{server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts"

    with Browser(tmp_path / "profile") as browser:
        browser.open(
            f"{files}/tables/final.json",
            "View as table",
            "task task readout (%) class readout (%) digits 0 80 73 digits 1 90 80",
        )
        browser.open(f"{files}/plots/accuracy_matrix_class.png", "plots/accuracy_matrix_class.png")
        shown = "document.querySelector('img[src^=blob]')?.naturalWidth > 200"
        until(lambda: browser.value(shown))
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    for percent in (90.0, 73.0, 80.0):
        colour = _colours(np.array(percent))
        assert (np.asarray(picture) == colour).all(axis=-1).sum() > 40 * 40, f"a cell of {percent}"


def test_what_is_searched_is_found_in_the_sweep_file() -> None:
    one = {"train": {"lr": 0.1}, "network": {}, "lam": {"choice": [1, 2]}}  # its own rate is fixed
    two = {"train": {"schedule": {"factor": {"uniform": [0, 1]}}}, "network": {}}
    resolved = {
        "methods": [one, two, {"train": {}, "network": {}}, {"train": {}, "network": {}}],
        "train": {"lr": {"loguniform": [0.01, 1]}, "schedule": {"milestones": [3]}},
        "network": {"hidden": {"grid": [[10], [20, 20]]}},
    }
    assert views.searched(SweepRecord("s", "id", resolved=resolved)) == [
        ("method.lam", "network.hidden"),
        ("network.hidden", "train.lr", "train.schedule.factor"),
        ("network.hidden", "train.lr"),
    ]
    assert views.searched(SweepRecord("s", "id")) == []
    assert "mlflow.sharedViewState.raycl-search" not in views.saved_views(SweepRecord("s", "id"))
