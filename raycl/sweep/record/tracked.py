"""Trials as the tracker knows them: tags and parameters of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raycl.secrets import masked
from raycl.sweep.file.blocks import weights_in
from raycl.sweep.file.model import Sweep
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.outcomes import Outcome, Status
from raycl.tracking.records import SweepRecord, TrialEnd, TrialRecord
from raycl.tracking.tracker import Tracker
from raycl.trial.run import FAILED, Row, failure
from raycl.trial.weights import told


class Tracked:
    """The listener that passes everything on to the tracker.

    Args:
        tracker: To be told.
        storage: Where each trial has a folder; relative: to the sweep's.
        tags: Further tags of a plan.
    """

    def __init__(
        self,
        tracker: Tracker,
        storage: str,
        tags: Callable[[TrialPlan], dict[str, str]] = lambda plan: {},
    ) -> None:
        self.tracker, self.storage, self.tags = tracker, storage, tags

    def started(self, plan: TrialPlan) -> None:
        """A trial starts, or starts again after its worker was lost."""
        self.tracker.trial_started(_record(plan, self.storage, self.tags(plan)))

    def row(self, plan: TrialPlan, row: Row) -> None:
        """A trial reports."""
        self.tracker.trial_row(plan.key, row)

    def lost(self, plan: TrialPlan, error: str) -> None:
        """The retry starts the trial again, which the tracker counts as an attempt."""

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """A trial is over; a row with ``failed`` and ``traceback`` speaks for itself."""
        self.tracker.trial_ended(plan.key, status, row, None if FAILED in row else error or None)


def end_of(outcome: Outcome, storage: str) -> TrialEnd:
    """How a trial has ended, for a tracker that may not know it.

    Args:
        outcome: The trial's outcome.
        storage: See ``Tracked``.
    """
    error = failure(outcome.row) or outcome.error
    record = _record(outcome, storage, outcome.tags)
    return TrialEnd(record, outcome.status, outcome.row, error or None)


def _record(of: TrialPlan | Outcome, storage: str, further: Mapping[str, str]) -> TrialRecord:
    weights = told(list(weights_in(of.config).values())) if of.config else ""
    return TrialRecord(
        key=of.key,
        name=of.name,
        tags={
            "kind": of.kind,
            "method": of.method,
            "benchmark": of.benchmark,
            "seed": str(of.seed),
            "config_key": of.config_key,
        }
        | ({"weights": weights} if weights else {})
        | dict(further),
        params={"label": of.method, **of.config},  # two rows may share a method's name
        storage=f"{storage}/{of.key}",
    )


def sweep_record(
    sweep: Sweep, sweep_id: str, yaml_text: str, tags: Mapping[str, str] | None = None
) -> SweepRecord:
    """What the tracker has to know of a sweep.

    Args:
        sweep: What is run.
        sweep_id: Its identity over all continuations.
        yaml_text: The file after ``--set`` and ``--smoke``.
        tags: Tags of the sweep's run, which every trial's run repeats.
    """
    note = [
        sweep.description or f"Continual-learning sweep {sweep.name}.",
        f"Run it with `raycl run FILE`, go on with `raycl resume {sweep.name}`, "
        f"table: `raycl report {sweep.name}`.",
    ]
    if sweep.published:
        note.append(f"Compared with: {sweep.published.source}")
    return SweepRecord(
        name=sweep.name,
        sweep_id=sweep_id,
        note=masked("\n\n".join(note)),
        yaml_text=yaml_text,
        resolved=sweep.resolved(),
        kind=sweep.kind.name,
        tags=dict(tags or {}),
        pictures=sweep.tracking.pictures,
    )
