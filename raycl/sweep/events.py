"""From Tune's callbacks to plain calls: started, row, ended."""

from __future__ import annotations

import os
import signal
from typing import Any, Protocol

from ray import tune

from raycl.sweep.expand import TrialPlan, plan_of
from raycl.sweep.outcomes import Status


class Listener(Protocol):
    """Something that follows the trials; every call returns at once."""

    def started(self, plan: TrialPlan) -> None:
        """A trial starts, for the first time or again."""

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """A trial reports."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """A trial's worker died; the trial will be retried."""

    def ended(self, plan: TrialPlan, status: Status, row: dict[str, Any], error: str) -> None:
        """A trial is over; ``row`` is its last one."""


class Hub:
    """Calls every listener, and remembers which trials are under way.

    Attributes:
        interrupted: Set when the driver is told to stop: a trial that ends unfinished from then on
            was killed, not stopped early.
        owners: Plan's key to the id of Tune's trial that runs it. A searcher may propose the same
            configuration twice; what the second trial says is not passed on.
    """

    def __init__(self, listeners: list[Listener]) -> None:
        self.listeners = listeners
        self.interrupted = False
        self.owners: dict[str, str] = {}
        self.running: dict[str, tuple[TrialPlan, dict[str, Any]]] = {}

    def started(self, plan: TrialPlan) -> None:
        """See ``Listener``."""
        self.running[plan.key] = (plan, self.running.get(plan.key, (plan, {}))[1])
        for listener in self.listeners:
            listener.started(plan)

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """See ``Listener``."""
        self.running[plan.key] = (plan, row)
        for listener in self.listeners:
            listener.row(plan, row)

    def lost(self, plan: TrialPlan, error: str) -> None:
        """See ``Listener``."""
        for listener in self.listeners:
            listener.lost(plan, error)

    def ended(self, plan: TrialPlan, status: Status, error: str = "") -> None:
        """See ``Listener``; a trial ends only once."""
        if plan.key not in self.running:
            return
        _, row = self.running.pop(plan.key)
        for listener in self.listeners:
            listener.ended(plan, status, row, error)

    def completed(self, plan: TrialPlan) -> None:
        """A trial's function returned, or was stopped."""
        _, row = self.running.get(plan.key, (plan, {}))
        if "failed" in row:
            self.ended(plan, "error", row["failed"])
        elif row.get("finished"):
            self.ended(plan, "finished")
        else:
            self.ended(plan, "killed" if self.interrupted else "stopped-early")

    def end_all(self, status: Status) -> None:
        """Close what is still open once Tune has returned."""
        for plan, row in list(self.running.values()):
            if row.get("finished") or "failed" in row:
                self.completed(plan)
            else:
                self.ended(plan, status)


_HUBS: dict[str, Hub] = {}


class Events(tune.Callback):
    """Tune's side of a hub.

    Tune pickles and copies its callbacks; this one holds only a name, so every copy in the driver
    reaches the same hub, with its threads and open files.
    """

    def __init__(self, hub: Hub) -> None:
        self.name = f"hub-{id(hub)}"
        _HUBS[self.name] = hub

    @property
    def _hub(self) -> Hub:
        return _HUBS[self.name]

    def _plan(self, trial: Any) -> TrialPlan | None:
        """The plan of a trial, unless another trial runs it."""
        plan = plan_of(trial.config)
        owner = self._hub.owners.setdefault(plan.key, trial.trial_id)
        return plan if owner == trial.trial_id else None

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune's hook: a signal that came before Tune listened is sent again."""
        if self._hub.interrupted:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.started(plan)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.row(plan, result["row"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.completed(plan)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook: a worker or node was lost."""
        if plan := self._plan(trial):
            self._hub.lost(plan, _one_line(trial))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook: all retries are used up."""
        if plan := self._plan(trial):
            self._hub.ended(plan, "error", _one_line(trial))


def _one_line(trial: Any) -> str:
    error = trial.get_error()
    text = f"{type(error).__name__}: {error}" if error else "worker lost"
    return " ".join(text.split())[:2000]
