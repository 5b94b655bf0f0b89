"""Turns Tune's callbacks into plain calls (started, row, ended), and tells Tune when to end.

How a sweep stops, from the signal to the exit code, is told in ``signals``.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from ray import tune

from raycl.sweep.execution.rows import row_of
from raycl.sweep.plan.plan import TrialPlan, plan_of
from raycl.sweep.record.outcomes import Status
from raycl.trial.run import FAILED, PARKED, UNKEPT, Row, known

AFTERSHOCK_S = 10.0
"""Seconds after the loss of a trial's worker in which another one is part of the same accident."""
AFTERSHOCKS = 5
"""Largest number of losses of a trial that are not counted for that reason."""
TUNES_EVENT = "experiment_interrupted_event"
"""Name, in Tune's handler of signals, of what ends its loop."""


class Listener(Protocol):
    """Something that follows the trials; every call returns at once."""

    def started(self, plan: TrialPlan) -> None:
        """A trial starts, for the first time or again."""

    def row(self, plan: TrialPlan, row: Row) -> None:
        """A trial reports."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """A trial's worker died; the trial will be retried."""

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """A trial is over; ``row`` is its last one."""


class Hub:
    """Calls every listener, and remembers which trials are under way.

    Attributes:
        interrupted: Set when the driver is told to stop: a trial that ends unfinished from then on
            was killed, not stopped early.
        leaving: Whether Tune's loop is being ended.
        broken: Why nothing more can be kept (a full disk); the stage ends, as if interrupted.
        owners: Plan's key to the id of Tune's trial that runs it. A searcher may propose the same
            configuration twice; what the second trial says is not passed on.
    """

    def __init__(self, listeners: list[Listener]) -> None:
        self.listeners = listeners
        self.interrupted = False
        self.leaving = False
        self.broken = ""
        self.owners: dict[str, str] = {}
        self.running: dict[str, tuple[TrialPlan, Row]] = {}
        self.over: set[str] = set()
        self._lost_at: dict[str, list[float]] = {}

    @property
    def ending(self) -> bool:
        """Whether the trials that still run are to end unfinished."""
        return self.interrupted or bool(self.broken)

    @property
    def parked(self) -> bool:
        """Whether every trial that runs has saved its state and waits to be ended."""
        return all(row.get(PARKED) for _, row in self.running.values())

    def started(self, plan: TrialPlan) -> None:
        """Note that a trial is under way, and tell every listener."""
        self.running[plan.key] = (plan, self.running.get(plan.key, (plan, {}))[1])
        self._tell(lambda listener: listener.started(plan))

    def row(self, plan: TrialPlan, row: Row) -> None:
        """Keep a trial's row, and tell every listener, unless a parked trial repeats it."""
        self.running[plan.key] = (plan, row)
        if not row.get(PARKED):
            self._tell(lambda listener: listener.row(plan, row))

    def lost(self, plan: TrialPlan, error: str) -> bool:
        """Tell every listener that a trial's worker died; whether by the accident before this one.

        A node that dies takes with it what is started on it until Ray has noticed, and would spend
        all retries of a trial at once.
        """
        self._tell(lambda listener: listener.lost(plan, error))
        times = self._lost_at.setdefault(plan.key, [])
        times.append(time.monotonic())
        pairs = itertools.pairwise(times)
        aftershocks = sum(later - earlier < AFTERSHOCK_S for earlier, later in pairs)
        soon = len(times) > 1 and times[-1] - times[-2] < AFTERSHOCK_S
        return soon and aftershocks <= AFTERSHOCKS

    def _tell(self, call: Callable[[Listener], None]) -> None:
        """Call every listener; if one cannot write, no trial's end can be kept."""
        for listener in self.listeners:
            try:
                call(listener)
            except OSError as error:
                self.broken = self.broken or str(error)

    def ended(self, plan: TrialPlan, status: Status, error: str = "") -> None:
        """Tell every listener that a trial is over; a second end of the same trial is ignored."""
        if plan.key in self.over:
            return
        if plan.key not in self.running:  # its worker never came up
            self.started(plan)
        self.over.add(plan.key)
        _, row = self.running.pop(plan.key)
        self._tell(lambda listener: listener.ended(plan, status, row, error))

    def completed(self, plan: TrialPlan) -> None:
        """A trial's function returned, or was stopped; nothing is said of one that never began."""
        if plan.key not in self.running:
            return
        _, row = self.running[plan.key]
        if UNKEPT in row:  # the storage failed, not the trial
            self.broken = self.broken or row[UNKEPT]
            self.ended(plan, "killed")
        elif FAILED in row:
            self.ended(plan, "error", row[FAILED])
        elif known(row).get("finished"):
            self.ended(plan, "finished")
        else:
            self.ended(plan, "killed" if self.ending else "stopped-early")

    def end_all(self, status: Status) -> None:
        """Close what is still open once Tune has returned."""
        for plan, row in list(self.running.values()):
            if known(row).get("finished") or FAILED in row or UNKEPT in row:
                self.completed(plan)
            else:
                self.ended(plan, status)


_HUBS: dict[str, Hub] = {}
_PARK: dict[str, Callable[[], None]] = {}


class Events(tune.Callback):
    """Tune's side of a hub.

    Tune pickles and copies its callbacks; this one holds only a name, so every copy in the driver
    reaches the same hub, with its threads and open files.

    Args:
        hub: To be called.
        park: Asks the trials to save and to wait; called once, when the driver is told to stop.
        grace_s: How long they have.
    """

    def __init__(self, hub: Hub, park: Callable[[], None], grace_s: float) -> None:
        self.name = f"hub-{id(hub)}"
        self.grace_s = grace_s
        self.deadline: float | None = None
        _HUBS[self.name] = hub
        _PARK[self.name] = park

    @property
    def _hub(self) -> Hub:
        return _HUBS[self.name]

    def _plan(self, trial: Any) -> TrialPlan | None:
        """The plan of a trial, unless another trial runs it."""
        plan = plan_of(trial.config)
        owner = self._hub.owners.setdefault(plan.key, trial.trial_id)
        return plan if owner == trial.trial_id else None

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Tune's hook, after it has set its handler of SIGUSR1 and before its loop.

        SIGUSR1 from outside, which batch systems send before the time of a job is over, means what
        the signals of ``signals.STOP`` mean; Tune would end its loop at once.
        """
        tunes, hub = signal.getsignal(signal.SIGUSR1), self._hub
        if not callable(tunes):  # Tune has set none
            return

        def heard(number: int, frame: FrameType | None) -> None:
            if hub.leaving:
                tunes(number, frame)
            else:
                hub.interrupted = True

        signal.signal(signal.SIGUSR1, heard)
        if _was_called(tunes):  # while Tune was being built: its loop ends before its first step
            hub.interrupted = True

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune's hook, several times a second: a stage that is to end does, once all is saved.

        Tune itself gives running trials ten seconds, which may be less than an epoch.
        """
        if not self._hub.ending:
            return
        if self.deadline is None:
            self.deadline = time.monotonic() + (0.0 if self._hub.broken else self.grace_s)
            _PARK[self.name]()
        if self._hub.parked or self._hub.broken or time.monotonic() > self.deadline:
            self._hub.leaving = True
            os.kill(os.getpid(), signal.SIGUSR1)  # the signal that ends Tune's loop

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.started(plan)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.row(plan, row_of(result))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook."""
        if plan := self._plan(trial):
            self._hub.completed(plan)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook: a worker or node was lost."""
        if (plan := self._plan(trial)) and self._hub.lost(plan, _one_line(trial)):
            trial.run_metadata.num_failures -= 1

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook: all retries are used up."""
        if plan := self._plan(trial):
            self._hub.ended(plan, "error", _one_line(trial))


def _was_called(handler: Callable[..., Any]) -> bool:
    """Whether a handler of Tune's has heard its signal.

    A mask of signals could not have held it back: any thread of the process may take it.
    """
    event = inspect.getclosurevars(handler).nonlocals.get(TUNES_EVENT)
    return event is not None and bool(event.is_set())


def _one_line(trial: Any) -> str:
    error = trial.get_error()
    if isinstance(error, str):  # what Tune wrote down, the last of possibly several
        text = re.split(r"Failure # \d+ \(occurred at [^)]*\)", error)[-1]
    else:
        text = f"{type(error).__name__}: {error}" if error else "worker lost"
    return " ".join(text.split())[:2000]
