"""What a store lacks of what was sent to it: it may have been emptied, replaced or restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raycl.tracking import names
from raycl.tracking.journal import Ledger
from raycl.tracking.records import RUN_STATUS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SENT = "raycl.sent"
"""Tag of a sweep's own run: bytes of the journal that this store has."""


def find_runs(client: MlflowClient, experiment_id: str, sweep_id: str) -> dict[str, Run]:
    """Runs of one execution by trial key; the parent's key is the empty string.

    Runs that were deleted by hand are among them, where there is no other of the same key.
    """
    from mlflow.entities import ViewType

    runs: dict[str, Run] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            names.trials_filter(sweep_id),
            run_view_type=ViewType.ALL,
            max_results=1000,
            page_token=token,
        )
        for run in page:
            key = run.data.tags.get("raycl.trial_key", "")
            if key not in runs or not deleted(run):
                runs[key] = run
        token = page.token
        if not token:
            return runs


def deleted(run: Run) -> bool:
    """Whether somebody has deleted a run, which MLflow keeps for a while."""
    return bool(run.info.lifecycle_stage == "deleted")


def lacking(ledger: Ledger, offset: int, runs: Mapping[str, Run]) -> str:
    """Why a store cannot be what the journal was sent to, in a few words; empty: it can.

    Args:
        ledger: What was sent.
        offset: How many bytes that were.
        runs: Of the store.
    """
    wanted = {*ledger.attempts, *([""] if ledger.sweeps else [])}
    if missing := wanted - runs.keys():
        return f"lacks {len(missing)} of {len(wanted)} runs"
    parent = runs.get("")
    sent = parent.data.tags.get(SENT, "") if parent is not None else ""
    if (
        parent is not None
        and not deleted(parent)
        and (int(sent) if sent.isdigit() else -1) < offset
    ):
        return "has less than was sent to it"
    for key, status in ledger.statuses.items():
        run, ought = runs.get(key), RUN_STATUS.get(status or "", "RUNNING")
        if run is not None and not deleted(run) and run.info.status != ought:
            return f"says of trial {key} that it is {run.info.status}, not {ought}"
    return ""
