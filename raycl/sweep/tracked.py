"""Trials as the tracker knows them: tags and parameters of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raycl.secrets import masked
from raycl.sweep.blocks import weights_in
from raycl.sweep.expand import TrialPlan
from raycl.sweep.model import Sweep
from raycl.sweep.outcomes import Status
from raycl.tracking.records import SweepRecord, TrialRecord
from raycl.tracking.tracker import Tracker
from raycl.training.weights import told


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
        weights = told(list(weights_in(plan.config).values()))
        self.tracker.trial_started(
            TrialRecord(
                key=plan.key,
                name=plan.name,
                tags={
                    "kind": plan.kind,
                    "method": plan.method,
                    "benchmark": plan.benchmark,
                    "seed": str(plan.seed),
                    "config_key": plan.config_key,
                }
                | ({"weights": weights} if weights else {})
                | self.tags(plan),
                params={"label": plan.method, **plan.config},  # two rows may share a method's name
                storage=f"{self.storage}/{plan.key}",
            )
        )

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """A trial reports."""
        self.tracker.trial_row(plan.key, row)

    def lost(self, plan: TrialPlan, error: str) -> None:
        """The retry starts the trial again, which the tracker counts as an attempt."""

    def ended(self, plan: TrialPlan, status: Status, row: dict[str, Any], error: str) -> None:
        """A trial is over; a row with ``failed`` and ``traceback`` speaks for itself."""
        self.tracker.trial_ended(plan.key, status, row, None if "failed" in row else error or None)


def sweep_record(sweep: Sweep, sweep_id: str, yaml_text: str) -> SweepRecord:
    """What the tracker has to know of a sweep.

    Args:
        sweep: What is run.
        sweep_id: Its identity over all continuations.
        yaml_text: The file after ``--set`` and ``--smoke``.
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
    )
