"""What Tune says becomes plain calls, each end once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raycl.sweep.execution.events import Events, Hub
from raycl.sweep.plan.plan import TrialPlan, packed


class Log:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def started(self, plan: TrialPlan) -> None:
        self.calls.append(("started", plan.key))

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        self.calls.append(("row", plan.key, row))

    def lost(self, plan: TrialPlan, error: str) -> None:
        self.calls.append(("lost", plan.key, error))

    def ended(self, plan: TrialPlan, status: str, row: dict[str, Any], error: str) -> None:
        self.calls.append(("ended", plan.key, status))


def trial(key: str, trial_id: str) -> Any:
    plan = TrialPlan(key, key, key, "m", "b", 0, "search", {}, {"cpu": 1.0})
    return SimpleNamespace(config={"plan": packed(plan)}, trial_id=trial_id, get_error=lambda: None)


def test_a_configuration_that_is_proposed_twice_counts_once() -> None:
    log = Log()
    events = Events(Hub([log]), lambda: None, 0)
    one, same = trial("k", "t1"), trial("k", "t2")
    for found in (one, same):
        events.on_trial_start(0, [], found)
        events.on_trial_result(0, [], found, {"row": {"finished": True}})
    events.on_trial_complete(0, [], one)
    events.on_trial_error(0, [], same)  # it lost a race for the files of the other
    assert [call[0] for call in log.calls] == ["started", "row", "ended"]
    assert log.calls[-1] == ("ended", "k", "finished")


def test_a_retried_trial_goes_on_under_its_name() -> None:
    log = Log()
    events = Events(Hub([log]), lambda: None, 0)
    one = trial("k", "t1")
    events.on_trial_start(0, [], one)
    events.on_trial_recover(0, [], one)
    events.on_trial_start(0, [], one)
    events.on_trial_result(0, [], one, {"row": {"failed": "ValueError: x"}})
    events.on_trial_complete(0, [], one)
    assert [call[0] for call in log.calls] == ["started", "lost", "started", "row", "ended"]
    assert log.calls[-1] == ("ended", "k", "error")
