"""Many runs compared in MLflow's own pages, in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow.artifacts import download_artifacts
from PIL import Image
from test_browser import CHROMIUM, text_of
from tracking_helpers import Server, rows, trial

from raycl.tracking import Store, SweepRecord, Tracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed"),
]
METHODS = ("finetune", "blip", "joint", "online_ewc")


def test_comparing_twenty_runs(
    server: Server,
    store: Store,
    sweep: SweepRecord,
    client: Any,
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    for method in METHODS:
        for seed in range(5):
            key = f"{method}-{seed}"
            tracker.trial_started(trial(key, method=method, seed=str(seed)))
            for row in rows():
                if "result" in row:
                    row["result"]["matrices"]["class"][1] = [70.0 + seed, 80.0]
                tracker.trial_row(key, row)
            tracker.trial_ended(key, "finished", row)
    assert tracker.close("FINISHED") == 0
    server.start()
    found = {name: run for name, run in runs().items() if name != sweep.name}
    assert len(found) == 20
    experiment = next(iter(found.values())).info.experiment_id

    ids = quote(json.dumps([run.info.run_id for run in found.values()]))
    page = f"{server.uri}/#/compare-runs?runs={ids}&experiments={quote(json.dumps([experiment]))}"
    compared = text_of(page, tmp_path / "1")
    assert "Comparing 20 Runs from 1 Experiment" in compared
    for text in (*found, "Parallel Coordinates Plot", "Box Plot", "Show diff only", "train.lr"):
        assert text in compared, text
    assert "eval/class/average_accuracy" in compared

    run = found["finetune-blip-3"]
    files = f"{server.uri}/#/experiments/{experiment}/runs/{run.info.run_id}/artifacts"
    table = text_of(f"{files}/tables/final.json", tmp_path / "2")
    assert "View as table" in table
    for text in ("class readout (%)", "digits 0", "digits 1", "73", "80"):
        assert text in table, text
    heat = text_of(f"{files}/plots/accuracy_matrix_class.png", tmp_path / "3", images=True)
    assert "plots/accuracy_matrix_class.png" in heat
    assert heat.count("[image blob:") >= 1, "the page shows it"
    path = download_artifacts(
        f"runs:/{run.info.run_id}/plots/accuracy_matrix_class.png", tracking_uri=server.uri
    )
    picture = Image.open(io.BytesIO(Path(path).read_bytes()))
    assert min(picture.size) >= 200
    assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 10
