"""Checkpoints that are verified when read, on any file system fsspec knows.

A checkpoint is one file: the SHA-256 of the payload, then the payload (``torch.save``). It is
written under another name and moved into place; a file that does not match its digest is passed
over for the one before it, and both are named.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import uuid
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import fsspec
import torch

from raycl.datasets.disk import expanded

MAGIC = b"raycl-1\n"
DRAFT_S = 3600.0
"""Age in seconds from which a draft is taken for one that nobody writes any more."""
TRIALS = "trials"
"""Folder of the checkpoints in a sweep's folder, unless the sweep file says ``storage``."""

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


def runs_root(given: Path | None = None) -> Path:
    """Folder of all sweeps, absolute: ``--runs``, else ``RAYCL_RUNS``, else ``./runs``.

    Raises:
        UserError: It begins with the home directory of somebody who has none.
    """
    path = given or os.environ.get("RAYCL_RUNS") or "runs"
    return expanded(path, "--runs" if given else "RAYCL_RUNS").resolve()


def make_folder(fs: Any, path: str) -> None:
    """Make a folder and those above it on a file system of fsspec, unless it is an object store.

    An object store has no folders; the call would make the bucket, whose name may be a slip.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if not OBJECT_STORES.intersection(protocols):
        fs.makedirs(path, exist_ok=True)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as it was read.

    Attributes:
        state: The newest intact state.
        path: File it was read from.
        damaged: Newer files that were passed over, because they are damaged.
    """

    state: dict[str, Any]
    path: str
    damaged: tuple[str, ...]


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a path or a URL, and the path on it; a path may have any character."""
    if url.startswith("/"):
        return fsspec.filesystem("file"), os.path.normpath(url)
    return fsspec.url_to_fs(url)  # type: ignore[no-any-return]


class CheckpointStore:
    """The checkpoints of one trial.

    Args:
        url: Its folder: a path, or any URL fsspec knows.
        keep: Number of files to keep; at least 2, so that a torn newest one can be passed over.
    """

    def __init__(self, url: str, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, not {keep}")
        self.url = url
        self.fs, self.root = filesystem(url)
        self.keep = keep

    def save(self, state: dict[str, Any], step: int) -> str:
        """Write a checkpoint and drop the oldest ones; returns its path.

        Args:
            state: Tensors and plain values.
            step: Its place in the order, increasing.
        """
        path = self.put(f"step-{step:09d}", state)
        # those after it were passed over as damaged, or are of a lost worker: none to go on from
        known = [one for one in self.paths() if _order(one) <= _order(path)]
        for old in known[: -self.keep]:
            with contextlib.suppress(FileNotFoundError):  # a lost worker may still be alive
                self.fs.rm(old)
        self._remove_drafts()
        return path

    def _remove_drafts(self) -> None:
        """Delete what killed workers had begun to write; what stays is only in the way."""
        with contextlib.suppress(Exception):  # of any kind: not every file system knows times
            for draft in self.named(".*.tmp"):
                if time.time() - self.fs.modified(draft).timestamp() > DRAFT_S:
                    self.fs.rm(draft)

    def put(self, name: str, state: dict[str, Any]) -> str:
        """Write a state under a name of its own, to be kept; returns its path.

        Args:
            name: Name of the file, without its suffix.
            state: Tensors and plain values.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getbuffer()
        return self.put_bytes(f"{name}.pt", MAGIC + hashlib.sha256(payload).digest(), payload)

    def put_bytes(self, name: str, *parts: bytes | memoryview) -> str:
        """Write a file as it is, whole or not at all, in the place of an older one.

        Args:
            name: Name of the file; may have folders.
            parts: Content, piece by piece.

        Returns:
            Its path.
        """
        path = f"{self.root}/{name}"
        folder = path.rpartition("/")[0]
        make_folder(self.fs, folder)
        draft = f"{folder}/.{uuid.uuid4().hex}.tmp"
        try:
            with self.fs.open(draft, "wb") as file:
                for part in parts:
                    file.write(part)
            self.fs.mv(draft, path)
        except OSError:
            if self.fs.exists(draft):
                self.fs.rm(draft)
            raise
        return path

    def get(self, name: str) -> dict[str, Any] | None:
        """Read a state that ``put`` wrote, on the CPU; ``None`` if there is none of that name.

        Raises:
            ValueError: The file is damaged.
        """
        path = f"{self.root}/{name}.pt"
        if not self.has(name):
            return None
        payload = self._read(path)
        if payload is None:
            raise ValueError(f"{path} is damaged")
        return _state(payload)

    def has(self, name: str) -> bool:
        """Whether there is a file that ``put`` wrote under a name."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(f"{self.root}/{name}.pt"))

    def get_bytes(self, name: str) -> bytes:
        """Read a file that ``put_bytes`` wrote."""
        content: bytes = self.fs.cat_file(f"{self.root}/{name}")
        return content

    def paths(self) -> list[str]:
        """Paths of all checkpoints, oldest first."""
        self.fs.invalidate_cache()
        return sorted(self.named("step-*.pt"), key=_order)

    def named(self, pattern: str) -> list[str]:
        """Paths of the files whose names match, sorted; the folder's own name is no pattern."""
        try:
            inside = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path for path in inside if fnmatch(path.rpartition("/")[2], pattern))

    def load(self) -> Loaded | None:
        """Read the newest intact state; ``None`` if there is no checkpoint at all.

        Its tensors are on the CPU, where the states of random generators must be; modules and
        optimisers copy theirs to where their parameters are.

        Raises:
            ValueError: There are checkpoints, and every one is damaged.
        """
        found = self._intact()
        return found and Loaded(_state(found[1]), found[0], found[2])

    def newest(self) -> str | None:
        """The path of the newest intact checkpoint, or ``None`` if there is none at all.

        Raises:
            ValueError: There are checkpoints, and every one is damaged.
        """
        found = self._intact()
        return found and found[0]

    @staticmethod
    def parse(content: bytes) -> dict[str, Any]:
        """Read the state from the content of a checkpoint's file.

        Raises:
            ValueError: It is damaged, or no checkpoint.
        """
        payload = _payload(content)
        if payload is None:
            raise ValueError("it is damaged, or no checkpoint")
        return _state(payload)

    def _intact(self) -> tuple[str, bytes, tuple[str, ...]] | None:
        """Path and payload of the newest intact checkpoint, and the damaged ones after it."""
        damaged: list[str] = []
        for path in reversed(self.paths()):
            payload = self._read(path)
            if payload is not None:
                return path, payload, tuple(damaged)
            damaged.append(path)
        if damaged:
            raise ValueError(f"every checkpoint is damaged: {', '.join(damaged)}; remove them")
        return None

    def _read(self, path: str) -> bytes | None:
        return _payload(self.fs.cat_file(path))


def _order(path: str) -> tuple[int, str]:
    """Key by which checkpoints are sorted: numbers have leading zeros, large ones more digits."""
    name = path.rpartition("/")[2]
    return len(name), name


def _payload(content: bytes) -> bytes | None:
    """The payload behind the digest of a checkpoint's file; ``None`` if the digest is another."""
    head = len(MAGIC) + 32
    payload = content[head:]
    good = content[:head] == MAGIC + hashlib.sha256(payload).digest()
    return payload if good else None


def _state(payload: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
