"""A run takes what another has trained in a phase: with ``cdl``, the phase of its teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raycl.testing_claims import Desk
from raycl.training.run import Run
from tests.methods.prompt_making import build, distilled


def finished(desk: Desk | None, scheme: str = "kd") -> Run:
    run = build(distilled("coda_prompt", scheme))
    run.shelf = desk
    while not run.done:
        run.advance()
    return run


def test_the_cost_is_that_of_training_and_not_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the storage and the steps of training move."""
    now = [0.0]
    monkeypatch.setattr("raycl.trial.costs.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("raycl.training.run.train_one_epoch", counted(now))

    class Slow(Desk):
        def take(self, phase: str, task: int) -> Any:
            now[0] += 1000
            return super().take(phase, task)

        def put(self, phase: str, task: int, content: dict[str, Any]) -> None:
            now[0] += 1000
            super().put(phase, task, content)

    desk = Slow()
    first, second = finished(desk), finished(desk, "none")
    assert desk.taken == 2
    assert first.costs.seconds == second.costs.seconds == finished(None).costs.seconds
    assert {content["seconds"] for content in desk.left.values()} == {2.0}
    assert second.costs.peak_memory_mb >= max(c["peak_memory_mb"] for c in desk.left.values()) > 0


def counted(now: list[float]) -> Any:
    from raycl.training.phase import train_one_epoch

    def epoch(*arguments: Any) -> Any:
        now[0] += 1
        return train_one_epoch(*arguments)

    return epoch


def test_what_follows_a_phase_that_was_taken_is_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in a run that was just restored, whose modules are as they were built."""
    desk = Desk()
    whole = finished(desk)
    before = build(distilled("coda_prompt", "kd"))
    before.shelf = desk
    while before.task_index == 0:
        before.advance()
    second = build(distilled("coda_prompt", "kd"))
    second.shelf = desk
    second.load_state_dict(before.state_dict())
    modes: list[bool] = []
    end: Any = type(second.method).end_teacher

    def watched(method: Any) -> None:
        modes.append(method.training)
        end(method)

    monkeypatch.setattr(type(second.method), "end_teacher", watched)
    while not second.done:
        second.advance()
    assert modes == [False]
    assert second.result()["matrices"] == whole.result()["matrices"]
