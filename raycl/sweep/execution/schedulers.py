"""Early stopping in units of tasks, judged within each benchmark and method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raycl.sweep.execution.rows import row_of
from raycl.sweep.plan.plan import plan_of
from raycl.trial.run import known


class PerMethodScheduler(FIFOScheduler):
    """Delegates to one scheduler per (benchmark, method).

    One ASHA over everything would compare methods, not configurations, and would stop a method for
    being worse than another. Only rows of task ends are judged. Its state does not survive the
    driver: after a resume judging starts anew, but no finished or stopped trial is judged again.

    Args:
        make: Makes the scheduler of one group.
    """

    def __init__(self, make: Callable[[], TrialScheduler]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._make = make
        self._groups: dict[tuple[str, str], TrialScheduler] = {}

    def _of(self, trial: Any) -> TrialScheduler:
        plan = plan_of(trial.config)
        return self._groups.setdefault((plan.benchmark, plan.method), self._make())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's hook; ``result`` is flattened."""
        row = known(row_of(result))
        if not row.get("at_task_end") or row.get("finished"):
            return str(TrialScheduler.CONTINUE)
        decision = str(self._of(trial).on_trial_result(tune_controller, trial, result))
        # median stopping pauses a trial to let others catch up: a restart for nothing
        return str(TrialScheduler.CONTINUE) if decision == TrialScheduler.PAUSE else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune's hook."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""
        self._of(trial).on_trial_remove(tune_controller, trial)


def make_scheduler(
    name: str, mode: str, tasks: int, grace_period: int, reduction_factor: float
) -> TrialScheduler:
    """The scheduler of a search stage.

    Args:
        name: ``fifo``, ``asha`` (Li et al., "A System for Massively Parallel Hyperparameter
            Tuning", MLSys 2020) or ``median`` (Golovin et al., "Google Vizier", KDD 2017).
        mode: ``max`` or ``min``, of the search metric.
        tasks: Tasks of a search trial.
        grace_period: Tasks before which nothing is stopped; at most ``tasks`` count.
        reduction_factor: ASHA: one in this many goes on at each rung.
    """
    grace_period = min(grace_period, tasks)
    judged: dict[str, Any] = {"time_attr": "tasks_done", "metric": "score", "mode": mode}
    if name == "asha":
        return PerMethodScheduler(
            lambda: ASHAScheduler(
                max_t=tasks,
                grace_period=grace_period,
                reduction_factor=reduction_factor,
                stop_last_trials=False,
                **judged,
            )
        )
    if name == "median":
        return PerMethodScheduler(lambda: MedianStoppingRule(grace_period=grace_period, **judged))
    return FIFOScheduler()  # type: ignore[no-untyped-call]
