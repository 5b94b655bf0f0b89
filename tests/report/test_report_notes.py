"""What is said below a table."""

from __future__ import annotations

from typing import Any

import pytest

from raycl.report.notes import _selection

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
