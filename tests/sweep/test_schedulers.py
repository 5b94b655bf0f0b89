"""Each method of each benchmark is judged by a scheduler of its own, at task ends only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from raycl.sweep.execution.rows import result_of
from raycl.sweep.execution.schedulers import PerMethodScheduler, make_scheduler
from raycl.sweep.plan.plan import TrialPlan, packed, plan_of


class Judge:
    """Says the same to everybody and remembers whom it was asked about."""

    def __init__(self, decision: str) -> None:
        self.decision = decision
        self.asked: list[str] = []

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """A trial that is added is of no interest."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.asked.append(plan_of(trial.config).name)
        return self.decision


def trial(method: str, name: str) -> Any:
    plan = TrialPlan("k" + name, "c", name, method, "b", 0, "search", {}, {"cpu": 1.0})
    return SimpleNamespace(config={"plan": packed(plan)}, trial_id=name)


def told(**row: Any) -> dict[str, Any]:
    """What Tune has of a row that a trial reports at the end of its first task."""
    return result_of({"at_task_end": True, "finished": False, **row}, tasks_done=1, score=1.0)


@pytest.mark.parametrize(
    "decision,expected",
    [
        (TrialScheduler.STOP, TrialScheduler.STOP),
        (TrialScheduler.CONTINUE, TrialScheduler.CONTINUE),
        (TrialScheduler.PAUSE, TrialScheduler.CONTINUE),
    ],
)
def test_one_judge_per_method(decision: str, expected: str) -> None:
    judges: list[Judge] = []

    def make() -> Any:
        judges.append(Judge(decision))
        return judges[-1]

    scheduler = PerMethodScheduler(make)
    for one in (a := trial("ewc", "a")), (b := trial("joint", "b")):
        scheduler.on_trial_add(None, one)
    assert scheduler.on_trial_result(None, a, told()) == expected
    assert scheduler.on_trial_result(None, b, told()) == expected
    for result in (told(at_task_end=False), told(finished=True)):
        assert scheduler.on_trial_result(None, a, result) == TrialScheduler.CONTINUE
    assert [judge.asked for judge in judges if judge.asked] == [["a"], ["b"]]


def test_asha_stops_the_worse_half_of_its_own_method_only() -> None:
    scheduler = make_scheduler("asha", "max", 8, 1, 2)
    good = [trial("joint", f"good{i}") for i in range(4)]
    poor = [trial("finetune", f"poor{i}") for i in range(4)]
    for one in good + poor:
        scheduler.on_trial_add(None, one)
    said = {}
    for level, group in ((90.0, good), (20.0, poor)):
        for i, one in enumerate(group):
            result = told() | {"score": level - i, "training_iteration": 1}
            said[one.trial_id] = scheduler.on_trial_result(None, one, result)
    assert said["poor0"] == TrialScheduler.CONTINUE, "the best of a poor method goes on"
    assert said["good3"] == TrialScheduler.STOP, "the worst of a good method does not"


class Hashed(SimpleNamespace):
    """A trial that can be a key, as Tune's can."""

    __hash__ = object.__hash__


def test_median_stops_whoever_is_worse_than_half_of_the_others_of_its_method() -> None:
    scheduler = make_scheduler("median", "max", 8, 2, 3)
    controller = SimpleNamespace(get_live_trials=list)
    trials = [Hashed(**vars(trial("joint", f"good{i}"))) for i in range(3)]
    poor, other = (Hashed(**vars(trial(method, method))) for method in ("joint", "finetune"))
    levels = {**dict.fromkeys(trials, 90.0), poor: 20.0, other: 20.0}
    for one in levels:
        scheduler.on_trial_add(controller, one)
    said = {}
    for task in (1, 2):
        for one, score in levels.items():
            result = told() | {"score": score, "tasks_done": task}
            said[one.trial_id, task] = scheduler.on_trial_result(controller, one, result)
    assert isinstance(scheduler, PerMethodScheduler)
    assert isinstance(scheduler._of(poor), MedianStoppingRule)
    stopped = [who for who, what in said.items() if what == TrialScheduler.STOP]
    assert stopped == [("joint", 2)], "after the grace, and compared with its own method only"
