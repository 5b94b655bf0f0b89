"""``evaluate: {limit, every}``: what is measured, and that training does not depend on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from raycl.testing import finish, tensors, toy_data
from raycl.training.run import Run
from raycl.trial.run import Row

TASKS, IMAGES = 5, 80


def config(method: str = "finetune", evaluate: Any = None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "benchmark": {"name": "permuted", "dataset": "digits", "tasks": TASKS, "validation": 0.2},
        "method": {"name": method},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.05},
        "evaluate": evaluate or {},
    }
    return found | changes


def done(*given: Any, **changes: Any) -> tuple[Run, dict[str, Any]]:
    run = Run(config(*given, **changes), toy_data())
    return run, finish(run)


def matrix(result: dict[str, Any], readout: str = "domain") -> np.ndarray:
    return np.array(result["matrices"][readout], dtype=float)


SOME = {"limit": 20, "every": 2}


def test_the_ends_are_whole_and_the_rest_is_what_was_asked_for() -> None:
    whole, some = done()[1], done(evaluate=SOME)[1]
    assert "images" not in whole
    assert some["images"] == [
        [80, 20, None, None, None],
        [20, 80, 20, None, None],
        [None, None, 80, 20, None],
        [20, 20, 20, 80, 20],
        [80, 80, 80, 80, 80],
    ]
    full, drawn = matrix(whole), matrix(some)
    assert np.array_equal(np.diag(drawn), np.diag(full))
    assert np.array_equal(drawn[-1], full[-1])
    measured = np.array([[n is not None for n in row] for row in some["images"]])
    assert np.array_equal(~np.isnan(drawn), measured)
    sampled = np.array([[n == 20 for n in row] for row in some["images"]])
    assert set(drawn[sampled] % 5) == {0}, "20 images: 5 % each"
    assert not np.array_equal(drawn[sampled], full[sampled])
    ends = {"average_accuracy", "average_accuracy_by_item", "learning_accuracy"}
    ends |= {"backward_transfer", "backward_transfer_all", "forward_transfer"}
    assert set(some["metrics"]["domain"]) == ends < set(whole["metrics"]["domain"])
    for name in ends - {"forward_transfer"}:
        assert some["metrics"]["domain"][name] == whole["metrics"]["domain"][name]
    assert np.isnan(np.array(some["validation_matrices"]["domain"], dtype=float)[2, :2]).all()
    assert set(some["validation_metrics"]["domain"]) < ends


@pytest.mark.parametrize("method", ["finetune", "naive_rehearsal", "joint", "linear_probe", "lwf"])
def test_training_is_the_same_to_the_last_bit(method: str) -> None:
    train = {"epochs": 2, "batch_size": 8, "lr": 0.05, "select": "seen_accuracy"}
    states = []
    for evaluate in ({}, SOME, {"limit": 3, "every": 50}):
        run, _ = done(method, evaluate, train=train)
        state = run.state_dict()
        states.append([*tensors(run.method.state_dict()), *tensors(state["random"])])
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], other, strict=True))


def test_the_images_are_the_same_in_every_trial_and_row() -> None:
    def drawn(method: str, seed: int, column: int, name: str = "test") -> list[int]:
        run = Run(config(method, SOME, seed=seed), toy_data())
        found = [run.coverage.examples(name, row, column) for row in (-1, 3)]
        assert found[0] is found[1] is not None
        return found[0].rows.tolist()  # type: ignore[union-attr]

    first = drawn("finetune", 0, 0)
    assert first == sorted(set(first))
    assert len(first) == 20
    assert drawn("online_ewc", 7, 0) == first
    assert drawn("finetune", 0, 1) != first, "every task has a sample of its own"
    run = Run(config(evaluate=SOME), toy_data())
    assert run.coverage.examples("test", 2, 1) is None
    assert run.coverage.examples("test", 2, 2) is run.sets.data[2].test


def test_a_sampled_entry_is_the_accuracy_on_the_images_drawn() -> None:
    run = Run(config(evaluate=SOME), toy_data())
    while run.task_index < 4:
        run.advance()
    for column in range(5):
        examples = run.coverage.examples("test", 3, column)
        assert examples is not None
        found = run.evaluator.accuracy(run.method, examples, column, 4)
        assert matrix(run.result())[3, column] == found["domain"]


def test_what_cannot_have_changed_is_whole_without_measuring() -> None:
    split = {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2}
    whole, some = (
        done("separate_finetune", evaluate, benchmark=split)[1]
        for evaluate in ({}, {"limit": 3, "every": 9})
    )
    assert some.pop("images") == [[40, None], [40, 40]]
    for result in (whole, some):
        del result["cost"]
    assert some == whole


def test_a_stream_that_is_cut_ends_with_a_whole_row() -> None:
    _, result = done(evaluate={"limit": 5, "every": 9}, tasks=3)
    assert result["images"] == [[80, 5, None], [None, 80, 5], [80, 80, 80]]


def test_limits_of_all_images_change_nothing() -> None:
    whole, some = done()[1], done(evaluate={"limit": IMAGES})[1]
    assert some["matrices"] == whole["matrices"]
    assert some["metrics"] == whole["metrics"]
    assert some["validation_matrices"] == whole["validation_matrices"]


def rows_of(run: Run) -> list[Row]:
    rows = []
    while not run.done:
        rows.append(run.advance())
    return rows


def test_rows_have_numbers_only_for_what_was_measured() -> None:
    rows = rows_of(Run(config(evaluate=SOME), toy_data()))
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers))
    third, fourth, last = rows[2], rows[3], rows[4]
    for way in ("eval/domain/", "validation/domain/", "eval/task/"):
        final = {name for name in last if name.startswith(way)}
        ever = {name for row in rows for name in row if name.startswith(way)}
        assert ever == final, "what is said last of a metric is of the whole stream"
    assert {name for name in third if name.startswith("eval/domain/")} == {
        "eval/domain/learning_accuracy",
        "eval/domain/forward_transfer",
        "eval/domain/task_02",
    }
    assert "validation/average_accuracy" not in third
    assert "validation/accuracy_current" in third
    assert "validation/domain/average_accuracy" not in third
    assert fourth["validation/average_accuracy"] == fourth["validation/domain/average_accuracy"]
    assert "eval/domain/forgetting" not in fourth
    assert fourth["eval/domain/average_accuracy"] > 0
    assert fourth["eval/domain/task_01"] % 5 == 0


def test_killed_and_resumed_it_measures_the_same() -> None:
    _, result = done(evaluate=SOME)
    killed = Run(config(evaluate=SOME), toy_data())
    for _ in range(3):
        killed.advance()
    resumed = Run(config(evaluate=SOME), toy_data())
    resumed.load_state_dict(killed.state_dict())
    again = finish(resumed)
    assert [again[k] for k in ("matrices", "images", "metrics")] == [
        result[k] for k in ("matrices", "images", "metrics")
    ]


def test_a_checkpoint_from_before_these_options_goes_on() -> None:
    run = Run(config(), toy_data())
    run.advance()
    state = run.state_dict()
    state["config"]["evaluate"] = {"probe": None, "cache_mb": 1024}
    Run(config(), toy_data()).load_state_dict(state)
    with pytest.raises(ValueError, match="another configuration"):
        Run(config(evaluate=SOME), toy_data()).load_state_dict(state)
