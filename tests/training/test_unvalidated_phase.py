"""Phases that leave the outputs as they are, such as an inversion."""

from __future__ import annotations

from typing import Any

import pytest

from raycl.methods.finetune import Finetune
from raycl.testing import toy_data
from raycl.training.run import Run

HERE = f"{__file__}:"


class TwoPhases(Finetune):
    """The usual phase after one that is not looked at."""

    def phases(self, task: Any) -> list[Any]:
        silent, usual = super().phases(task)[0], super().phases(task)[0]
        silent.name, silent.validate = "silent", False
        return [silent, usual]


class SilentLast(Finetune):
    """All phases are silent, the last one too."""

    def phases(self, task: Any) -> list[Any]:
        (phase,) = super().phases(task)
        phase.validate = False
        return [phase]


def rows(name: str) -> list[dict[str, Any]]:
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
        "method": {"name": HERE + name},
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 2, "lr": 0.05},
    }
    run, found = Run(config, toy_data()), []
    while not run.done:
        found.append(run.advance())
    return found


def test_a_silent_phase_is_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    validate = Run._validate_current

    def count(self: Run, task: Any) -> dict[str, Any]:
        asked.append(self.progress)
        return validate(self, task)

    monkeypatch.setattr(Run, "_validate_current", count)
    found = rows("TwoPhases")
    assert [row["phase"] for row in found] == ["silent", "silent", "train", "train"] * 2
    validated = ["validation/accuracy_current" in row for row in found]
    assert validated == [False, False, True, True] * 2
    assert asked == [3, 7]  # the last epoch of a task is measured with the whole row of R
    assert "validation/average_accuracy" not in found[0]
    assert "validation/average_accuracy" in found[4]  # that of the tasks before


def test_a_task_is_measured_at_its_end_all_the_same() -> None:
    found = rows("SilentLast")
    ends = [row for row in found if row["at_task_end"]]
    assert len(ends) == 2
    assert all("validation/accuracy_current" in row for row in ends)
