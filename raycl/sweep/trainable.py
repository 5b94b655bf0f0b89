"""The thin Tune adapter around a run of any kind; what of the sweep is executed in Ray's workers.

Checkpoints are the trial's own, addressed by its key and not by Tune's trial id, so that a lost
worker, a lost driver and a second ``raycl run`` all continue from the same file. Tune schedules,
retries lost workers and moves the rows.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError

from raycl.datasets.base import Dataset
from raycl.sweep import kinds
from raycl.sweep.expand import TrialPlan, plan_of
from raycl.sweep.shown import Row
from raycl.training.checkpoint import CheckpointStore

REPORT_EVERY_S = 0.2
"""Epochs shorter than this are not all reported; a task's end always is."""


@dataclass(frozen=True)
class Settings:
    """What a trial needs besides its plan.

    Attributes:
        storage: Folder or URL under which each trial has a folder of checkpoints.
        every_s: Seconds between checkpoints; a task's end always makes one.
        keep: Checkpoints kept.
        metric: The row's key a search looks at.
        mode: ``max`` or ``min``.
    """

    storage: str
    every_s: float
    keep: int
    metric: str
    mode: str


def trial(config: dict[str, Any], data: Mapping[str, Dataset], settings: Settings) -> None:
    """One trial from where it stands to its end."""
    plan = plan_of(config)
    try:
        _train(plan, data, settings)
    except torch.AcceleratorError:
        raise  # the process's CUDA context is gone: Tune retries in a new one
    except Exception as error:
        if lost(error):
            raise  # env runners or their node are gone: Tune retries
        # anything else is deterministic: retrying would only fail again
        text = " ".join(f"{type(error).__name__}: {error}".split())
        report({"failed": text, "traceback": traceback.format_exc()}, settings)


def lost(error: Exception) -> bool:
    """Whether processes or objects of Ray are gone, and not code that one of them ran."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, RayError)
    return isinstance(error, RayError)


def _train(plan: TrialPlan, data: Mapping[str, Dataset], settings: Settings) -> None:
    kind = kinds.of(plan.config["benchmark"])
    device = "cuda" if plan.resources.get("gpu") else "cpu"
    run = kind.build(plan.config, data, device, plan.resources)
    try:
        _advance(
            run, kind, CheckpointStore(f"{settings.storage}/{plan.key}", settings.keep), settings
        )
    finally:
        if kind.close is not None:
            kind.close(run)


def _advance(run: Any, kind: kinds.Kind, store: CheckpointStore, settings: Settings) -> None:
    """From the last checkpoint to the end."""
    loaded = store.load()
    saved_at = reported_at = time.monotonic()
    saved = -1
    if loaded is not None:
        run.load_state_dict(loaded.state)
        saved = run.progress
        note = f"continues from {loaded.path}"
        if loaded.damaged:
            note += f"; passed over as damaged: {', '.join(loaded.damaged)}"
        report(run.last_row | {"note": note}, settings)  # nothing may follow a last report
    try:
        while not run.done:
            row = run.advance()
            now = time.monotonic()
            if row["at_task_end"]:
                _keep(run, kind, store, row["task"])  # before what says it is there
            if row["at_task_end"] or now - saved_at > settings.every_s:
                store.save(run.state_dict(), run.progress)
                saved, saved_at = run.progress, now
            if row["at_task_end"] or now - reported_at > REPORT_EVERY_S:
                reported_at = now
                report(row, settings)
    except SystemExit:  # Tune's way to stop a trial, raised inside report
        if saved != run.progress:
            store.save(run.state_dict(), run.progress)
        raise


def _keep(run: Any, kind: kinds.Kind, store: CheckpointStore, task: int) -> None:
    """What a task leaves for good."""
    if kind.keepsake is not None:
        store.put(f"after-{task:02d}", kind.keepsake(run))
    if kind.pictures is not None:
        for name, file in kind.pictures(run).items():
            store.put_bytes(name, file)


def report(row: Row, settings: Settings) -> None:
    """Send a row to the driver, with the two values schedulers and searchers look at.

    Until the metric exists, and for a failed trial, the score is the worst there is. A metric that
    names no readout is that of the primary one, which comes first in a row.
    """
    worst = -math.inf if settings.mode == "max" else math.inf
    prefix, _, name = settings.metric.rpartition("/")
    found = (v for k, v in row.items() if k.startswith(f"{prefix}/") and k.endswith(f"/{name}"))
    score = next(found, worst)
    tune.report({"row": row, "tasks_done": row.get("tasks_done", 0), "score": score})
