"""The thin Tune adapter around a run of any kind; it is executed in Ray's workers.

Checkpoints are the trial's own, addressed by its key and not by Tune's trial id, so that a lost
worker, a lost driver and a second ``raycl run`` all continue from the same file. Tune schedules,
retries lost workers and moves the rows.
"""

from __future__ import annotations

import contextlib
import errno
import math
import resource
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError

from raycl.datasets.base import Dataset
from raycl.datasets.files import ReaderLost
from raycl.errors import NO_ROOM
from raycl.networks.base import LOADED, Tensors
from raycl.nn.precision import emulated
from raycl.secrets import adopt, redact
from raycl.sweep import kinds
from raycl.sweep.execution.cluster import GB
from raycl.sweep.execution.parking import Parking
from raycl.sweep.execution.prefixes import Prefixes
from raycl.sweep.execution.rows import result_of
from raycl.sweep.execution.storage import LEASE
from raycl.sweep.plan.plan import TrialPlan, plan_of
from raycl.sweep.record.made_of import CONTINUED, MADE, MadeOf, code, continued, process
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.run import (
    FAILED,
    NOTE,
    PARKED,
    TRACEBACK,
    UNKEPT,
    Row,
    TrialRun,
    known,
)
from raycl.trial.sharing import SHARED_SECONDS

SHARED = "shared"
"""Key, in a checkpoint, of what ``Prefixes`` has to remember."""
BEGUN = "begun"
"""Key, in a checkpoint, of what the trial has been made with so far."""
EVERY_S = 0.2
"""Seconds between two reports, so that short epochs are not all reported; task ends are."""
HOPELESS = (*NO_ROOM, errno.EACCES)


@dataclass(frozen=True)
class Settings:
    """The settings that a trial needs besides its plan.

    Attributes:
        storage: Folder or URL under which each trial has a folder of checkpoints.
        every_s: Seconds between checkpoints; a task's end always makes one.
        keep: Checkpoints kept.
        metric: The row's key a search looks at.
        mode: ``max`` or ``min``.
        execution: Id of this invocation of the sweep, see ``Parking``; empty: nobody will ask.
        variables: Set in the trial's process; see ``cluster.hidden``.
        made: What the driver knows of what results are made of; see ``raycl.sweep.record.made_of``.
        made_of: What the sweep is made of; ``None``: whatever it is now.
    """

    storage: str
    every_s: float
    keep: int
    metric: str
    mode: str
    execution: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    made: Mapping[str, str] = field(default_factory=dict)
    made_of: MadeOf | None = None


def trial(
    config: dict[str, Any],
    data: Mapping[str, Dataset],
    settings: Settings,
    weights: Mapping[str, Tensors] | None = None,
) -> None:
    """Run one trial from its last checkpoint to its end; the function that Tune calls."""
    adopt(settings.variables)
    plan = plan_of(config)
    memory = 0.0 if plan.resources.get("gpu") else plan.resources.get("memory", 0.0)
    try:
        with at_most(memory):
            _train(plan, data, settings, weights)
    except torch.AcceleratorError:
        raise  # the process's CUDA context is gone: Tune retries in a new one
    except Unkept as error:
        report({UNKEPT: str(error)}, settings)
    except Exception as error:
        if lost(error):
            raise  # env runners or their node are gone: Tune retries
        # anything else is deterministic: retrying would only fail again
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if memory and (isinstance(error, MemoryError) or "can't allocate memory" in text):
            text += f" (resources.memory is {memory:g} GB)"
        told = {FAILED: redact(text), TRACEBACK: redact(traceback.format_exc())}
        report(told, settings)


@contextlib.contextmanager
def at_most(memory: float) -> Iterator[None]:
    """Let allocations fail in this process before they fail in one beside it.

    Args:
        memory: GB that the process may use, its libraries included; 0: no limit.
    """
    if not memory:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = psutil.Process().memory_info()
    # most of the address space that libraries reserve is never touched, and does not count
    limit = used.data + max(0, int(memory * GB) - used.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)  # the next trial has its own


def lost(error: Exception) -> bool:
    """Whether an error means lost processes, objects or storage, and not a fault of the code."""
    if isinstance(error, Unreachable | ReaderLost):
        return True
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, RayError)
    return isinstance(error, RayError)


def _train(
    plan: TrialPlan,
    data: Mapping[str, Dataset],
    settings: Settings,
    weights: Mapping[str, Tensors] | None,
) -> None:
    kind = kinds.of(plan.config["benchmark"])
    device = "cuda" if plan.resources.get("gpu") else "cpu"
    with kept():
        store = CheckpointStore(f"{settings.storage}/{plan.key}", settings.keep)
        lease = f"{store.root.rpartition('/')[0]}/{LEASE}"
        if settings.execution and not store.fs.exists(lease):
            raise Unkept(f"{settings.storage} is not one folder for all nodes")
    LOADED.clear()  # of another trial
    run = kind.build(plan.config, data, device, plan.resources, weights)
    _check_made_of(settings, plan)
    try:
        _advance(run, store, settings, device, plan)
    finally:
        run.close()


def _check_made_of(settings: Settings, plan: TrialPlan) -> None:
    """Refuse to mix results with those of other code, or of other weights from a hub."""
    changed = settings.made_of.changed(plan.config) if settings.made_of else []
    if settings.made.get("code", code()) != code():
        changed.append("files of raycl")
    if changed:
        raise Unkept(f"{', '.join(changed)} changed since the sweep was started")


def _slow(plan: TrialPlan, device: str) -> str:
    """What is to be said of a trial whose precision the device has no units for, else nothing."""
    asked = plan.config["train"].get("precision")
    if asked != "bfloat16" or not emulated(torch.device(device)):
        return ""
    return "computes bfloat16 on a device without units for it: float32 would be faster"


def _advance(
    run: TrialRun, store: CheckpointStore, settings: Settings, device: str, plan: TrialPlan
) -> None:
    """Step a run from its last checkpoint to its end, and report and save what it gives."""
    shares = bool(plan.points or plan.phases)
    prefixes = Prefixes(run, plan, store, _world(settings, device) if shares else {})
    begun = made_with(settings, device, plan) | _world(settings, device)
    begun["threads"] = str(plan.config.get("threads"))
    keeper = Keeper(run, store, prefixes, begun)
    if note := keeper.load():
        made = {MADE: keeper.made} if keeper.made else {}
        report(run.last_row | made | {NOTE: note}, settings)  # nothing may follow a last report
    elif plan.points:
        _take(prefixes, keeper, settings)
    run.trained = keeper.leave_trained
    run.shelf = keeper if plan.phases else None
    parking = Parking(settings.execution)
    drained, said = False, _slow(plan, device)
    reported_at = time.monotonic()
    try:
        while not run.done:
            row = run.advance()
            if known(row)["at_task_end"]:  # a task may have built a network
                _check_made_of(settings, plan)
            if known(row).get("finished"):
                row[MADE] = keeper.made = made_with(settings, device, plan) | keeper.disturbed
                if prefixes.seconds:
                    known(row)["result"][SHARED_SECONDS] = prefixes.seconds
            word = parking.look()
            if known(row)["at_task_end"]:
                keeper.keep(known(row)["task"])  # before what says it is there
            if known(row)["at_task_end"] or word or keeper.age > settings.every_s:
                keeper.save()
            if said or prefixes.notes:
                row |= {NOTE: "; ".join([*filter(None, [said]), *prefixes.notes])}
                said, prefixes.notes = "", []
            if word == "drain" and not drained:
                drained = True
                row |= {NOTE: "has saved, for its node is being drained"}
            if known(row)["at_task_end"] or NOTE in row or time.monotonic() - reported_at > EVERY_S:
                reported_at = time.monotonic()
                report(row, settings)
                prefixes.note(row)
            if known(row)["at_task_end"]:
                keeper.leave_over()
            while word == "park" and not run.done:  # until Tune stops it, inside report
                report(run.last_row | {PARKED: True}, settings)
                time.sleep(EVERY_S)
    except SystemExit:  # Tune's way to stop a trial, raised inside report; see ``signals``
        keeper.save()
        raise


def made_with(settings: Settings, device: str, plan: TrialPlan) -> dict[str, str]:
    """What a trial would be made with, here and now; see ``raycl.sweep.record.made_of``."""
    runners = plan.resources.get("env_runners", 0)
    return {**settings.made, **process(device), "env_runners": f"{runners:g}"}


def _world(settings: Settings, device: str) -> dict[str, str]:
    """What a state is made of besides the configuration, here and now."""
    made_of = {"made_of": settings.made_of.key} if settings.made_of else {}
    return {**settings.made, **made_of, **process(device)}


def _of_sweep(begun: Mapping[str, str]) -> dict[str, str]:
    """Code, data and made_of of what a trial began with: what does not depend on its machine."""
    return {word: begun[word] for word in ("code", "data", "made_of") if word in begun}


def _take(prefixes: Prefixes, keeper: Keeper, settings: Settings) -> None:
    """Go on from a state that another trial has left, if there is one, and report its rows."""
    with kept():
        found, notes = prefixes.find()
        rows = prefixes.take(found) if found is not None else []
    for note in notes:
        report({NOTE: note}, settings)
    for row in rows:
        report(row, settings)
    if rows and known(rows[-1])["at_task_end"]:
        keeper.save()  # from now on it needs nobody


class Unkept(Exception):
    """A trial's state cannot be kept, and trying again will not help."""


class Keeper:
    """Keeps the state and the files of a trial in its storage.

    Args:
        run: The trial.
        store: Its folder.
        prefixes: What it shares with others.
        begun: What the trial is made with here and now.

    Attributes:
        made: What the result was made with, once there is one.
        continued: What it goes on with that is not what it began with; empty: nothing.
    """

    def __init__(
        self,
        run: TrialRun,
        store: CheckpointStore,
        prefixes: Prefixes,
        begun: Mapping[str, str],
    ) -> None:
        self.run, self.store, self.prefixes, self.begun = run, store, prefixes, begun
        self.made: dict[str, str] = {}
        self.continued = ""
        self.saved = (-1, 0)
        self.saved_at = time.monotonic()

    @property
    def position(self) -> tuple[int, int]:
        """Progress of the run, and number of tasks over: the end of one may add no progress."""
        return self.run.progress, known(self.run.last_row).get("tasks_done", 0)

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved_at

    @property
    def disturbed(self) -> dict[str, str]:
        """What a reader of the result must know, because no undisturbed run would give it."""
        why = self.continued or ("" if self.run.exact else "inside a game, which began anew")
        return {CONTINUED: why} if why else {}

    def load(self) -> str:
        """Continue from the newest checkpoint; returns the remark about it, if there is one."""
        with kept():
            loaded = self.store.load()
        if loaded is None:
            return ""
        self.made = loaded.state.pop(MADE, {})
        begun = loaded.state.pop(BEGUN, {})
        self.continued = begun.pop(CONTINUED, "") or continued(begun, self.begun)
        self.prefixes.load_state_dict(loaded.state.pop(SHARED, {}))
        self.run.load_state_dict(loaded.state)
        self.saved = self.position
        if self.made and (other := continued(*map(_of_sweep, (begun, self.begun)))):
            self.made[CONTINUED] = other  # it was over when this sweep found it
        note = f"continues from {loaded.path}"
        if self.continued:
            note += f", {self.continued}"
        if loaded.damaged:
            note += f"; passed over as damaged: {', '.join(loaded.damaged)}"
        return note

    def save(self) -> None:
        """Write a checkpoint, unless this state has one."""
        if self.saved != self.position:
            with kept():
                more: dict[str, Any] = {BEGUN: {**self.begun, CONTINUED: self.continued}}
                more |= {MADE: self.made} if self.made else {}
                more |= {SHARED: shared} if (shared := self.prefixes.state_dict()) else {}
                self.store.save(self.run.state_dict() | more, self.run.progress)
            self.saved, self.saved_at = self.position, time.monotonic()

    def keep(self, task: int) -> None:
        """Keep the files that a task leaves for good."""
        with kept():
            if (keepsake := self.run.keepsake()) is not None:
                self.store.put(f"after-{task:02d}", keepsake)
            for name, file in self.run.picture_files().items():
                self.store.put_bytes(name, file)

    def leave_trained(self) -> None:
        """Leave the state of a task that has been trained, if others need it."""
        with kept():
            self.prefixes.leave_trained()

    def leave_over(self) -> None:
        """Leave the state of a task that is over, if others need it."""
        with kept():
            self.prefixes.leave_over()

    def take(self, phase: str, task: int) -> dict[str, Any] | None:
        """See ``raycl.trial.run.Shelf``."""
        with kept():
            return self.prefixes.phase(phase, task)

    def put(self, phase: str, task: int, content: dict[str, Any]) -> None:
        """See ``raycl.trial.run.Shelf``."""
        with kept():
            self.prefixes.leave_phase(phase, task, content)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Turn errors of the storage into the sweep's problem, which no trial is blamed for.

    Raises:
        Unkept: The disk is full or may not be written to.
        Unreachable: Anything else the storage says; Tune retries.
    """
    try:
        yield
    except (ValueError, Unkept):
        raise  # damaged checkpoints
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in HOPELESS:
            raise Unkept(str(error)) from error
        if isinstance(error, PermissionError):  # of a bucket, without a number
            raise Unkept(text) from error
        raise Unreachable(text) from error


class Unreachable(Exception):
    """The storage did not answer; another attempt may find it there."""


def report(row: Row, settings: Settings) -> None:
    """Send a row to the driver, with the two values schedulers and searchers look at.

    Until the metric exists, and for a failed trial, the score is the worst there is. A metric that
    names no readout is that of the primary one, which comes first in a row.
    """
    worst = -math.inf if settings.mode == "max" else math.inf
    prefix, _, name = settings.metric.rpartition("/")
    found = (v for k, v in row.items() if k.startswith(f"{prefix}/") and k.endswith(f"/{name}"))
    score = next(found, worst)
    tasks_done = known(row).get("tasks_done", 0)
    tune.report(result_of(row, tasks_done=tasks_done, score=score))
