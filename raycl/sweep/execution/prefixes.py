"""Shared prefixes: a trial goes on from a state that another has left, where both are the same.

A trial without a checkpoint of its own looks in the sweep's storage for the state at the last point
that it shares with others (``raycl.sweep.plan.sharing``), restores it, and reports the rows and
keeps the files that it would have made. If there is none, it trains, and leaves the state when it
passes the point. Nobody waits for anybody, and the result has the same bits either way. Likewise
with what a phase trains that several trials have, such as the teacher's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from raycl.sweep.plan.plan import TrialPlan, hashed
from raycl.sweep.plan.sharing import keys_of, phase_key, prefix_key
from raycl.sweep.record.outcomes import Status
from raycl.tracking.records import PICTURES
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.run import NOTE, Row, TrialRun, known
from raycl.trial.sharing import over, trained

log = logging.getLogger(__name__)

FOLDER = "prefix"
"""Folder of the states, beside those of the trials."""


class Prefixes:
    """The states that a trial takes from others, or leaves for them.

    Args:
        run: The trial, freshly built.
        plan: Its plan, with its points.
        store: Its own folder.
        world: What its results are made of: code, data, device, versions.

    Attributes:
        rows: Rows reported so far, as long as there is a point at which others need them.
        seconds: Seconds of the trial's cost that another one has spent.
        leaves: Whether it leaves states. A trial that goes on from a checkpoint of its own leaves
            none: the part before may be of another world, and its rows were reported by a process
            that is gone. Nor does a run that is not exact.
        notes: Remarks about damaged results of phases, not told yet.
    """

    def __init__(
        self, run: TrialRun, plan: TrialPlan, store: CheckpointStore, world: Mapping[str, str]
    ) -> None:
        self.run, self.plan, self.store = run, plan, store
        self.world = hashed(dict(world))[:8]
        self.folder = CheckpointStore(f"{store.url.rpartition('/')[0]}/{FOLDER}")
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.leaves = True
        self.notes: list[str] = []
        self._foreign = False
        self._damaged: set[int | str] = set()

    @property
    def _done(self) -> int:
        """Tasks that are over."""
        return known(self.run.last_row).get("tasks_done", 0)

    def _name(self, point: int) -> str:
        return f"{prefix_key(self.plan, point)}-{self.world}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty if there is nothing to remember."""
        found: dict[str, Any] = {"seconds": self.seconds} if self.seconds else {}
        # what was once of another world stays so
        world = "" if self._foreign else self.world
        return found | ({"world": world} if self.plan.phases else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; from now on no state is left for others."""
        self.seconds, self.leaves = state.get("seconds", 0.0), False
        self._foreign = state.get("world") != self.world

    # ------------------------------------------------------------------ what is taken

    def find(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The state of the last point of which there is one, and remarks about damaged ones."""
        notes = []
        for point in reversed(self.plan.points):
            try:
                found = self.folder.get(self._name(point))
            except ValueError as error:
                notes.append(f"trains what others share, for {error}")
                self._damaged.add(point)
                continue
            if found is not None:
                return found, notes
        return None, notes

    def take(self, found: Mapping[str, Any]) -> list[Row]:
        """Restore a state, and keep the files that the trial would have made.

        Args:
            found: See ``find``.

        Returns:
            The rows that the trial would have reported.
        """
        self.run.load_shared_state(found["state"])
        self.seconds = self.run.costs.seconds
        for name, state in found["states"].items():
            self.store.put(name, state | {"config": self.run.state_dict()["config"]})
        for name, content in found["files"].items():
            self.store.put_bytes(name, content.numpy().tobytes())
        rows: list[Row] = found["rows"]
        if self._left(over(self._done)):
            self.rows = list(rows)
        return rows

    # ------------------------------------------------------------------ phases

    def phase(self, phase: str, task: int) -> dict[str, Any] | None:
        """What another trial has trained in a phase; ``None``: nothing that may be taken."""
        if phase not in self.plan.phases or self._foreign:
            return None
        name = self._of_phase(phase, task)
        try:
            found = self.folder.get(name)
        except ValueError as error:
            self.notes.append(f"trains what others share, for {error}")
            self._damaged.add(name)
            return None
        self.seconds += found["seconds"] if found is not None else 0.0
        return found

    def leave_phase(self, phase: str, task: int, content: dict[str, Any]) -> None:
        """Leave what a phase has trained, if others need it."""
        if phase not in self.plan.phases or self._foreign:
            return
        name = self._of_phase(phase, task)
        if name in self._damaged or not self.folder.has(name):  # the first one stays
            self.folder.put(name, content)

    def _of_phase(self, phase: str, task: int) -> str:
        return f"{phase_key(self.plan, phase)}-{task:02d}-{self.world}"

    # ------------------------------------------------------------------ what is left

    def _left(self, point: int) -> bool:
        """Whether there are points after one."""
        return any(other > point for other in self.plan.points)

    def note(self, row: Row) -> None:
        """Remember a row that was reported, if others will need it."""
        if self.leaves and self._left(over(self._done) - known(row)["at_task_end"]):
            self.rows.append({k: v for k, v in row.items() if k != NOTE})

    def leave_trained(self) -> None:
        """Leave the state of a task that has been trained, if others need it."""
        self._leave(trained(self._done + 1))

    def leave_over(self) -> None:
        """Leave the state of a task that is over, if others need it."""
        self._leave(over(self._done))
        if not self._left(over(self._done)):
            self.rows = []

    def _leave(self, point: int) -> None:
        if not self.leaves or not self.run.exact or point not in self.plan.points:
            return
        if point not in self._damaged and self.folder.has(self._name(point)):
            return  # the first one stays
        names = [f"after-{task:02d}" for task in range(self._done)]
        states = {name: state for name in names if (state := self.store.get(name)) is not None}
        drawn = (known(row)["pictures"] for row in reversed(self.rows) if "pictures" in row)
        files = [f"{PICTURES}/{picture}.png" for picture in next(drawn, [])]
        content = {
            "state": self.run.shared_state(),
            "rows": self.rows,
            "states": states,
            "files": {name: _tensor(self.store.get_bytes(name)) for name in files},
        }
        self.folder.put(self._name(point), content)


def _tensor(content: bytes) -> Tensor:
    """The bytes as a tensor, which a checkpoint may hold."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class Spent:
    """The listener that deletes a state when no trial that may need it is left.

    Args:
        storage: Folder of the sweep in the storage.
        plans: Plans that are to run, with their points.
    """

    def __init__(self, storage: str, plans: Sequence[TrialPlan]) -> None:
        self.storage = storage
        self.needed: dict[str, set[str]] = {}
        for plan in plans:
            for key in keys_of(plan):
                self.needed.setdefault(key, set()).add(plan.key)
        self._thread = ThreadPoolExecutor(1, "prefixes")  # a listener's call returns at once

    def started(self, plan: TrialPlan) -> None:
        """Do nothing: the trial may need what it shares."""

    def row(self, plan: TrialPlan, row: Row) -> None:
        """Do nothing: its worker may be lost before it has saved."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """Do nothing: the trial may need what it shares."""

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """Delete what it was the last to need; one that was killed goes on later."""
        if status == "killed":
            return
        for key in keys_of(plan):
            waiting = self.needed.get(key, set())
            waiting.discard(plan.key)
            if not waiting:
                self._thread.submit(remove, self.storage, key)

    def close(self) -> None:
        """Wait until everything is deleted that is to be."""
        self._thread.shutdown()


def remove(storage: str, key: str = "") -> None:
    """Delete the states of a prefix, or of all; what cannot be deleted is only in the way.

    Args:
        storage: Folder of the sweep in the storage.
        key: See ``prefix_key``; empty: all.
    """
    try:
        folder = CheckpointStore(f"{storage}/{FOLDER}")
        for path in folder.named(f"{key}*.pt"):
            with contextlib.suppress(FileNotFoundError):
                folder.fs.rm(path)
        if not key and folder.fs.exists(folder.root):
            folder.fs.rm(folder.root, recursive=True)
    except Exception as error:  # noqa: BLE001  (file systems raise what they like)
        log.warning("%s/%s cannot be removed: %s", storage, FOLDER, error)
