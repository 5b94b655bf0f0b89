"""How far a sweep's journal has been sent to MLflow, on disk."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raycl import atomic
from raycl.secrets import remember
from raycl.tracking import store

log = logging.getLogger(__name__)

STATE = "tracking.state.json"


@dataclass
class State:
    """How far the journal has been sent, and where to. It is replaced atomically.

    Attributes:
        uri, artifacts: The store; with another one everything is sent again, from the beginning.
        offset: Bytes of the journal that MLflow has.
        files: Offsets of lines whose artifacts MLflow does not have yet.
        experiment_id, parent_run_id: For links.
        tail: Hash of the last bytes that were sent, by which another journal is recognised.
        refused: Offset of a line to how many of its values MLflow refused; they are tried again
            when the journal is opened again.
    """

    uri: str
    artifacts: str | None
    offset: int = 0
    files: list[int] = field(default_factory=list)
    experiment_id: str | None = None
    parent_run_id: str | None = None
    tail: str = ""
    refused: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, uri: str, artifacts: str | None) -> State:
        """The saved state if it belongs to this store, else a new one."""
        saved = cls.saved(path)
        return saved if saved and saved.uri == uri else cls(uri, artifacts)

    @classmethod
    def saved(cls, path: Path) -> State | None:
        """The saved state; None if there is none or it cannot be read (then runs are found)."""
        if is_private(path):
            return None
        try:
            found = atomic.read_json(path, dict)
            if found.keys() <= cls.__dataclass_fields__.keys():
                return TypeAdapter(cls).validate_python(found)
            reason = "is of a newer raycl"
        except FileNotFoundError:
            return None
        except atomic.Damaged as error:
            reason = error.what
        except ValidationError:
            reason = "is damaged"
        log.warning("%s %s: sending the journal again", path, reason)
        return None

    def save(self, path: Path) -> None:
        """Replace the file; only its owner may read it, for a URI can hold a password."""
        atomic.write(path, json.dumps(asdict(self)), 0o600)


def is_private(path: Path) -> bool:
    """Whether a state is somebody else's, which only its owner may read."""
    return path.exists() and not os.access(path, os.R_OK)


def used(folder: Path) -> store.Store | None:
    """The store that a sweep was tracked in last; ``None`` if that is not known.

    Args:
        folder: The sweep's folder.
    """
    saved = State.saved(folder / STATE)
    return None if saved is None else store.Store(saved.uri, saved.artifacts)


def store_of(folder: Path, uri: str | None = None) -> store.Store:
    """The store to read a sweep from: as asked for, else the one it was in, else the usual one.

    ``MLFLOW_TRACKING_URI`` decides only where the sweep's own store is not known or no longer
    there, as in a copy of its folder (``store.is_there``).

    Args:
        folder: The sweep's folder, in the runs folder; it need not exist.
        uri: As it is asked for.

    Raises:
        UserError: See ``store.resolve``.
    """
    before = used(folder)
    if uri is None and before is not None and store.is_there(before, folder.parent.absolute()):
        remember(before.uri)
        return before
    return store.resolve(folder.parent, uri, used=before)
