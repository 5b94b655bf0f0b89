"""Finished trials of other sweeps in the runs folder, taken over instead of run again.

A trial is the same if its key is, and what it was made with: code, data, weights, device, versions.
Its rows come from the other sweep's journal, its checkpoints and pictures from the other's storage,
so that it has everything that a trial of this sweep has.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl.atomic import Damaged
from raycl.sweep.execution.events import Hub
from raycl.sweep.plan.expand import own_code
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import MADE, MadeOf, same
from raycl.sweep.record.outcomes import Outcome
from raycl.tracking import journal
from raycl.tracking.journal import JOURNAL
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.run import Row
from raycl.trial.sharing import TAKEN_FROM

log = logging.getLogger(__name__)

Made = Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """A finished trial of another sweep.

    Attributes:
        outcome: How it ended.
        store: Its files.
        folder: The other sweep's folder.
    """

    outcome: Outcome
    store: CheckpointStore
    folder: SweepFolder


def finished_elsewhere(
    folder: SweepFolder,
    plans: Sequence[TrialPlan],
    made: Callable[[TrialPlan], Made | None],
    made_of: MadeOf,
) -> dict[str, Finished]:
    """Find the trials that other sweeps of a runs folder have finished, by their keys.

    Args:
        folder: The sweep that looks for them.
        plans: What it has to run.
        made: From a plan to what it would be made with; ``None``: that cannot be told here.
        made_of: What the sweep is made of, for classes from files of one's own.

    Returns:
        Without those of sweeps that cannot be read, each of which is warned of once.
    """
    wanted = {plan.key: plan for plan in plans}
    found: dict[str, Finished] = {}
    unread: set[str] = set()
    for path in sorted(folder.root.glob("*/outcomes/*.json")):
        plan = wanted.get(path.stem)
        other = path.parent.parent.name
        passed_over = other == folder.name or other.startswith(".") or other in unread
        if plan is None or plan.key in found or passed_over:
            continue
        try:
            one = _finished(SweepFolder(folder.root, other), path)
            if one is not None and _the_same(one, plan, made(plan), made_of):
                found[plan.key] = one
        except Damaged:
            continue  # this one trial is not taken over
        except Exception as error:  # noqa: BLE001  (file systems raise what they like)
            unread.add(other)
            log.warning("nothing more of %s is taken over: %s", path.parent.parent, _told(error))
    return found


class Unread(Exception):
    """Something of another sweep cannot be read."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever a file system raises into ``Unread``."""
    try:
        yield
    except Exception as error:
        raise Unread(_told(error)) from error


def _told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _the_same(one: Finished, plan: TrialPlan, now: Made | None, made_of: MadeOf) -> bool:
    """Whether a trial would come to the same bits here."""
    if now is None or not same(one.outcome.row.get(MADE, {}), now):
        return False
    if one.outcome.config.get("threads") != plan.config.get("threads"):
        return False  # more of them may round otherwise
    theirs = one.folder.made_of()
    if theirs is None or one.outcome.tags.get("made_of", theirs.key) != theirs.key:
        return False  # made before a change that the other sweep has accepted
    files = theirs.data.keys() & made_of.data.keys()
    own = set(own_code(plan.config))
    return all(theirs.data[name] == made_of.data[name] for name in files) and all(
        theirs.code.get(name) == made_of.code.get(name) for name in own
    )


def _finished(folder: SweepFolder, path: Path) -> Finished | None:
    """The trial of an outcome, if it has finished and its checkpoints are there."""
    outcome = Outcome.read(path)
    if outcome.status != "finished":
        return None
    storage = folder.storage(folder.identity()["resolved"].get("storage"))
    store = CheckpointStore(f"{storage}/{outcome.key}")
    return Finished(outcome, store, folder) if store.paths() else None


def take_over(plan: TrialPlan, other: Finished, storage: str, hub: Hub) -> bool:
    """Make a trial of another sweep one of this sweep.

    Args:
        plan: Its plan here.
        other: The trial there.
        storage: Folder of this sweep in the storage.
        hub: Is told of the trial as if it had run.

    Returns:
        Whether it could be read to its end; if not, that is warned of, and the hub knows nothing.
    """
    try:
        with _reading():
            rows = list(_rows(other.folder.path / JOURNAL, plan.key))
        _copy(other.store, CheckpointStore(f"{storage}/{plan.key}"))
    except Unread as error:
        log.warning("%s of %s is not taken over: %s", plan.name, other.folder.path, error)
        return False
    hub.started(plan)
    for row in rows:
        hub.row(plan, row)
    result: dict[str, Any] = other.outcome.row["result"]
    last = other.outcome.row | {"result": result | {TAKEN_FROM: other.folder.name}}
    hub.row(plan, last)
    hub.ended(plan, "finished")
    return True


def _copy(source: CheckpointStore, store: CheckpointStore) -> None:
    """Copy a trial's files, and its newest checkpoint last: half a copy is none to go on from.

    Raises:
        Unread: Something of it is gone, or cannot be read.
    """
    with _reading():
        steps = source.paths()
        newest = steps[-1]
        others = [path for path in source.fs.find(source.root) if path not in steps]
    for path in [*others, newest]:
        name = path[len(source.root) :].lstrip("/")
        if not name.rpartition("/")[2].startswith("."):
            with _reading():
                content = source.fs.cat_file(path)
            store.put_bytes(name, content)


def _rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of a trial as a journal has them: the values of each step of each axis."""
    for _, _, event in journal.read(path):
        if event["event"] == "metrics" and event["key"] == key:
            ends = {"at_task_end": True} if event["axis"] == "tasks_done" else {}
            yield {event["axis"]: event["step"], **ends, **event["values"]}
