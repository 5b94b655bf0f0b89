"""The linear probe in MLflow: names of metrics and pictures, and the columns of a view."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tracking_helpers import matrix

from raycl.tracking import names, plots, views
from raycl.tracking.records import SweepRecord

RESULT = {
    "matrices": {"class": matrix(2), "probe/class": [[None, None], [60.0, 70.0]]},
    "tasks": ["a", "b"],
}


def test_pictures_and_the_final_table() -> None:
    assert [name for name, _ in plots.pictures(RESULT)] == [
        "accuracy_matrix_class",
        "accuracy_matrix_probe_class",
    ]
    table = plots.final_table(RESULT)
    assert table["columns"] == ["task", "class readout (%)", "probe/class readout (%)"]
    assert table["data"] == [["a", 80.0, 60.0], ["b", 90.0, 70.0]]


def test_metrics_are_drawn_over_tasks() -> None:
    name = "eval/probe/class/average_accuracy"
    assert names.axis(name) == "tasks_done"
    assert names.metric_name(name) == name


@pytest.mark.parametrize("evaluate", [None, {"probe": None}, {"probe": {"every": "end"}}])
def test_the_view_of_methods_has_columns_for_it(evaluate: Any) -> None:
    sweep = SweepRecord("s", "id", resolved={"evaluate": evaluate})
    state = json.loads(views.saved_views(sweep)[f"mlflow.sharedViewState.{views.METHODS}"])
    shown = json.loads(state["state"])["selectedColumns"]
    asked = bool(evaluate and evaluate["probe"])
    for readout in ("class", "task"):
        assert (f"metrics.`eval/probe/{readout}/average_accuracy`" in shown) == asked
    assert "metrics.`eval/class/average_accuracy`" in shown
