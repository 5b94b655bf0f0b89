"""Metrics of a matrix of which only the last row was measured, and diagnostics beside readouts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raycl.training.matrices import Matrices
from raycl.training.metrics import METRICS, compute

LAST_ONLY = np.array([[math.nan, math.nan], [60.0, 90.0]])


def test_metrics_say_which_rows_they_read() -> None:
    last = {name for name, metric in METRICS.items() if metric.rows == "last"}
    assert last == {"average_accuracy", "average_accuracy_by_item"}
    for metric in METRICS.values():
        also = {
            "sizes": [1, 2],
            "baseline": [0.0, 0.0],
            "selection": LAST_ONLY,
            "": None,
        }[metric.also]
        given = () if also is None else (also,)
        if metric.rows == "last":
            assert metric.function(LAST_ONLY, *given) > 0
        else:
            with pytest.raises(ValueError, match="NaN"):
                metric.function(LAST_ONLY, *given)


def test_only_those_that_need_the_last_row() -> None:
    assert compute(LAST_ONLY, rows="last") == {"average_accuracy": 75.0}
    found = compute(LAST_ONLY, sizes=[10, 20], rows="last")
    assert found == {"average_accuracy": 75.0, "average_accuracy_by_item": 80.0}
    with pytest.raises(ValueError, match="NaN"):
        compute(LAST_ONLY)


def test_diagnostics_have_rows_of_their_own_and_no_validation() -> None:
    matrices = Matrices(["class"], 2, {"probe/class": "last", "probe/task": "all"})
    for t in range(2):
        for i in range(t + 1):
            for name in ("test", "validation"):
                matrices.fill(name, t, i, {"class": 50.0})
            matrices.fill("test", t, i, {"probe/task": 80.0})
    first = matrices.row(0, [1])
    assert first["eval/probe/task/task_00"] == first["eval/probe/task/average_accuracy"] == 80.0
    assert not any(key.startswith("eval/probe/class") for key in first)
    for i in range(2):
        matrices.fill("test", 1, i, {"probe/class": 60.0 + 30 * i})
    found = matrices.as_dict([10, 20])
    assert list(found["matrices"]) == list(found["metrics"]) == list(matrices.tested)
    assert found["matrices"]["probe/class"] == [[None, None], [60.0, 90.0]]
    assert found["metrics"]["probe/class"]["average_accuracy_by_item"] == 80.0
    assert "forgetting" in found["metrics"]["probe/task"]
    for key in ("validation_matrices", "validation_metrics", "baseline"):
        assert list(found[key]) == ["class"]
    again = Matrices(["class"], 2, matrices.diagnostics)
    again.load_state_dict(matrices.state_dict())
    assert again.as_dict([10, 20]) == found


def test_somebody_else_who_is_asked_has_no_class_accuracy_ahead() -> None:
    matrices = Matrices(["class", "task", "teacher/class", "teacher/task"], 2)
    matrices.fill("test", 0, 1, dict.fromkeys(matrices.tested, 50.0))
    matrices.fill_baseline(1, dict.fromkeys(matrices.tested, 50.0))
    for readout in matrices.tested:
        ahead = matrices.sets["test"][readout][0, 1], matrices.baseline[readout][1]
        assert bool(np.isnan(ahead).all()) == readout.endswith("class")
