"""What is said below a table."""

from __future__ import annotations

from typing import Any

import pytest

from raycl.report.notes import _baseline, _selection, _tasks

SEEN = {"train": {"select": "seen_accuracy"}}
LAST = {"train": {"select": "last"}}


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"methods": [{"name": "joint"}]}, []),
        (
            {**SEEN, "methods": [{"name": "a"}, {"name": "b", "train": {}}]},
            ["epochs were chosen on validation data of all tasks seen"],
        ),
        (
            {**SEEN, "methods": [{"name": "a", "label": "A"}, {"name": "b", **LAST}]},
            ["epochs were chosen on validation data of all tasks seen: A"],
        ),
        (
            {**LAST, "methods": [{"name": "a"}, {"name": "b", **SEEN}]},
            ["epochs were chosen on validation data of all tasks seen: b"],
        ),
    ],
)
def test_epochs_chosen_on_all_tasks(spec: dict[str, Any], said: list[str]) -> None:
    assert list(_selection(spec)) == said


def row(method: str, baseline: str | None, shared: int | None, n: int = 3) -> dict[str, Any]:
    return {
        "benchmark": "b",
        "method": method,
        "baseline": baseline,
        "difference_n": shared,
        "n": n,
        "task_percent": None,
    }


@pytest.mark.parametrize(
    "shared, said",
    [
        ([3, 3], []),
        ([3, None], []),  # the baseline does not have the second metric
        ([2, None], ["differences use the seeds shared with base only: ours"]),
        ([None, None], ["differences use the seeds shared with base only: ours"]),
    ],
)
def test_seeds_of_differences(shared: list[int | None], said: list[str]) -> None:
    rows = [row("base", None, None), *(row("ours", "base", n) for n in shared)]
    assert list(_baseline(rows, "base")) == said


def test_cost_of_a_task_is_explained() -> None:
    rows = [row("base", None, None)]
    assert list(_tasks(rows)) == []
    (said,) = _tasks([*rows, rows[0] | {"task_percent": 2.4}])
    assert said.startswith("task (%): what the last task adds beside its head")
