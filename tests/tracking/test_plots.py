"""Pictures that a finished trial's run has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tracking_helpers import rows, trial

from raycl.tracking import Tracker, plots
from raycl.tracking.plots import LEFT, TOP, _colours


def artifact(client: Any, run: Any, path: str, folder: Path) -> Path:
    return Path(client.download_artifacts(run.info.run_id, path, str(folder)))


def test_histograms_are_drawn_group_by_group(
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    client: Any,
    tmp_path: Path,
) -> None:
    histograms = {
        "bits/layers.0.weight": [[6, 2, 0], [1, 2, 5]],
        "bits/layers.1.weight": [[0, 0, 0], [0, 4, 0]],  # nothing in it after the first task
        "mask values": [[1, 3], [2, 2]],
    }
    row = rows()[-1]
    row["result"] |= {"histograms": histograms}
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    tracker.trial_ended("a", "finished", row)
    assert tracker.close("FINISHED") == 0
    run = runs()["finetune-a"]
    found = json.loads(artifact(client, run, "results/matrix.json", tmp_path).read_text())
    assert found["histograms"] == histograms
    drawn = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert drawn >= {"plots/bits.png", "plots/mask_values.png"}
    path = artifact(client, run, "plots/bits.png", tmp_path)
    panels = np.asarray(Image.open(path).convert("RGB"))[:, LEFT : LEFT + 3 * 40]
    cells = panels.reshape(2, -1, 3, 40, 3)[:, :, :, 3]  # a column of pixels in each bin
    shares = [[[75, 25, None], [12.5, 25, 62.5]], [[None] * 3, [None, 100, None]]]
    for panel, expected in zip(cells, shares, strict=True):
        for task, percent in enumerate(expected):
            shown = panel[TOP + 40 * task + 3]
            np.testing.assert_array_equal(shown, _colours(np.array(percent, dtype=float)))


def test_deep_networks_and_odd_shapes_fit_their_picture() -> None:
    deep = {f"layer{i}": [[1] * 21] * 20 for i in range(20)}
    assert max(plots.histograms(deep, "bits").size) < 2500
    for shape in ((1, 1), (100, 256), (3, 1000)):
        picture = plots.histograms({"a": np.ones(shape, dtype=int).tolist()}, "x")
        pixels = np.asarray(picture.convert("L"))
        assert (pixels[:, -2:] == 255).all(), "the colour bar's numbers end within the picture"
        assert (pixels[-2:] == 255).all()
