from __future__ import annotations

import math

import numpy as np
import pytest

from raycl.tracking import names


def test_rows_are_sorted_onto_their_axes() -> None:
    row = {
        "task": 1,
        "phase": "train",
        "progress": 7,
        "tasks_done": 2,
        "at_task_end": True,
        "train/loss": np.float32(0.5),
        "time/epoch_s": 2,
        "validation/accuracy_current": 80.0,
        "validation/average_accuracy": 70.0,
        "eval/class/task_00": 60.0,
        "cost/seconds": 3.0,
        "method/penalty": 0.25,
        "result": {"matrices": {}},
    }
    assert names.points(row) == {
        "progress": (
            7,
            {"train/loss": 0.5, "time/epoch_s": 2.0, "validation/accuracy_current": 80.0},
            0,
        ),
        "tasks_done": (
            2,
            {
                "validation/average_accuracy": 70.0,
                "eval/class/task_00": 60.0,
                "cost/seconds": 3.0,
                "method/penalty": 0.25,
            },
            0,
        ),
    }


def test_what_ends_a_task_is_left_out_within_it() -> None:
    row = {"progress": 3, "tasks_done": 1, "at_task_end": False, "train/loss": 1.0}
    row["validation/average_accuracy"] = 70.0  # in every row, for the scheduler
    assert set(names.points(row)) == {"progress"}


def test_a_row_without_steps_has_no_points() -> None:
    assert names.points({"failed": "RuntimeError: no", "train/loss": 1.0}) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_dropped_and_counted(bad: float) -> None:
    row = {"progress": 1, "at_task_end": False, "train/loss": bad, "train/lr": 0.1}
    assert names.points(row) == {"progress": (1, {"train/lr": 0.1}, 1)}


@pytest.mark.parametrize(
    "name",
    [
        "eval/acc[top=1]",
        "train/../loss",
        "/train//loss/",
        "train/loss>0",
        "eval/Größe",
        "",
        "a" * 999,
    ],
)
def test_mlflow_accepts_every_sanitised_name(name: str) -> None:
    from mlflow.utils.validation import _validate_metric, _validate_param

    clean = names.metric_name(name)
    _validate_metric(clean, 1.0, 1, 1)
    _validate_param(clean, "x")


def test_a_legal_name_stays() -> None:
    assert names.metric_name("eval/class/average_accuracy") == "eval/class/average_accuracy"


@pytest.mark.parametrize(
    "name, clean",
    [("bits", "bits"), ("..", "_"), ("", "_"), ("a/b c", "a_b_c"), ("Größe", "Gr__e")],
)
def test_names_of_files_are_plain(name: str, clean: str) -> None:
    assert names.file_name(name) == clean


def test_params_are_flat_text_of_what_is_set() -> None:
    config = {
        "method": {"name": "ewc", "lam": 1e-05, "online": True},
        "network": {"hidden": [400, 400]},
        "fixed_seeds": {"init": None},
        "empty": {},
        "long": "x" * 7000,
    }
    assert names.params(config) == {
        "method.name": "ewc",
        "method.lam": "1e-05",
        "method.online": "true",
        "network.hidden": "[400, 400]",
        "empty": "{}",
        "long": "x" * 6000,
    }


def test_tags_get_the_prefix_once() -> None:
    given = {"method": "ewc", "raycl.seed": 3, "mlflow.user": "me", "none": None}
    assert names.tags(given) == {"raycl.method": "ewc", "raycl.seed": "3", "mlflow.user": "me"}
