"""What Tune says becomes plain calls, each end once."""

from __future__ import annotations

import inspect
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.tune import _setup_signal_catching

from raycl.sweep.execution import events as module
from raycl.sweep.execution.events import Events, Hub
from raycl.sweep.execution.rows import result_of
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
    return SimpleNamespace(
        config={"plan": packed(plan)},
        trial_id=trial_id,
        get_error=lambda: None,
        run_metadata=SimpleNamespace(num_failures=0),
    )


def test_a_configuration_that_is_proposed_twice_counts_once() -> None:
    log = Log()
    events = Events(Hub([log]), lambda: None, 0)
    one, same = trial("k", "t1"), trial("k", "t2")
    for found in (one, same):
        events.on_trial_start(0, [], found)
        events.on_trial_result(0, [], found, result_of({"finished": True}))
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
    events.on_trial_result(0, [], one, result_of({"failed": "ValueError: x"}))
    events.on_trial_complete(0, [], one)
    assert [call[0] for call in log.calls] == ["started", "lost", "started", "row", "ended"]
    assert log.calls[-1] == ("ended", "k", "error")


@pytest.mark.parametrize(
    "gaps, counted",
    [
        ([], 1),
        ([60, 60], 3),
        ([9, 9, 9], 1),  # a node that dies slowly
        ([9, 60, 9], 2),
        ([1] * 8, 1 + 3),  # a worker that dies whenever it starts has used up its retries, too
    ],
)
def test_the_losses_of_one_accident_count_once(
    monkeypatch: pytest.MonkeyPatch, gaps: list[float], counted: int
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    events, one = Events(Hub([Log()]), lambda: None, 0), trial("k", "t1")
    for gap in [0.0, *gaps]:
        clock[0] += gap
        one.run_metadata.num_failures += 1
        events.on_trial_recover(0, [], one)
    assert one.run_metadata.num_failures == counted


def test_tune_counts_failures_where_they_are_taken_back() -> None:
    one = Trial("x", stub=True)
    one.run_metadata.num_failures += 1
    assert one.num_failures == 1


def test_a_batch_systems_sigusr1_lets_trials_save() -> None:
    """Tune would end its loop at once, and what runs would count as stopped early."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    hub = Hub([Log()])
    try:
        Events(hub, lambda: None, 0).setup(stop=None, num_samples=1, total_num_samples=1)
        signal.raise_signal(signal.SIGUSR1)
        assert hub.interrupted
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [], "nor does a second one cut the grace short"
        hub.leaving = True
        signal.raise_signal(signal.SIGUSR1)  # the one by which ``Events`` ends Tune's loop
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_sigusr1_while_tune_is_built_is_no_end_of_the_stage() -> None:
    """Tune has set its own handler by then, and its loop will end before its first step."""
    numbers = (signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for sent in (False, True):
            ended = _setup_signal_catching()
            if sent:
                signal.raise_signal(signal.SIGUSR1)
            hub = Hub([Log()])
            Events(hub, lambda: None, 0).setup(stop=None, num_samples=1, total_num_samples=1)
            assert hub.interrupted == sent == ended.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_tune_sets_its_handler_before_it_calls_our_hook() -> None:
    run = inspect.getsource(tune.run)
    assert 0 < run.index("_setup_signal_catching()") < run.index("runner.setup_experiments(")
    assert "_callbacks.setup(" in inspect.getsource(TuneController.setup_experiments)
