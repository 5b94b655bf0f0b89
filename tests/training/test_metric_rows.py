"""Metrics of a matrix that was not measured whole, and diagnostics beside readouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raycl.training.matrices import Matrices
from raycl.training.metrics import METRICS, compute
from raycl.trial.matrix import needed

Array = NDArray[np.float64]
LAST_ONLY = np.array([[math.nan, math.nan], [60.0, 90.0]])


@pytest.mark.parametrize("name", METRICS)
def test_metrics_say_which_entries_they_read(name: str) -> None:
    """Each entry that is named is needed, and nothing else is."""
    metric = METRICS[name]
    entries = needed(metric.entries, 4)
    whole = np.arange(16, dtype=float).reshape(4, 4) + 1

    def value(r: Array) -> float:
        also = {"sizes": [1, 2, 3, 4], "baseline": np.zeros(4), "selection": r, "": None}
        given = also[metric.also]
        return metric.function(r, *(() if given is None else (given,)))

    assert value(np.where(entries, whole, math.nan)) == pytest.approx(value(whole))
    for t, i in zip(*np.nonzero(entries), strict=True):
        r = whole.copy()
        r[t, i] = math.nan
        with pytest.raises(ValueError, match="NaN"):
            value(r)


def test_only_those_that_need_the_last_row() -> None:
    last = needed("last", 2)
    assert compute(LAST_ONLY, measured=last) == {"average_accuracy": 75.0}
    found = compute(LAST_ONLY, sizes=[10, 20], measured=last)
    assert found == {"average_accuracy": 75.0, "average_accuracy_by_item": 80.0}
    with pytest.raises(ValueError, match="NaN"):
        compute(LAST_ONLY)


def test_only_those_that_need_both_ends() -> None:
    r = np.array([[80.0, math.nan, 0], [math.nan, 78, 0], [70, 74, 82]])
    found = compute(r, measured=needed("ends", 3))
    assert found == {
        "average_accuracy": pytest.approx(226 / 3),
        "backward_transfer": -7.0,
        "backward_transfer_all": pytest.approx(-14 / 3),
        "learning_accuracy": 80.0,
    }


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
