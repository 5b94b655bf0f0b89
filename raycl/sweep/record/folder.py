"""The folder of one sweep: its identity, its lock, and the place of every file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

import raycl
from raycl import atomic, yaml12
from raycl.errors import UserError, nearest
from raycl.sweep.record.made_of import MadeOf
from raycl.sweep.record.outcomes import Outcomes
from raycl.tracking import journal
from raycl.tracking.journal import JOURNAL
from raycl.trial.checkpoint import TRIALS as TRIALS
from raycl.trial.checkpoint import runs_root as runs_root

NOT_RESULTS = (
    "description",
    "tracking",
    "storage",
    "resources",
    "failures",
    "checkpoint",
    "share",
    "reuse",
    "report",
    "published",
    "smoke",
)
"""Keys of a sweep file that may change without making it another sweep."""
HASH = "spec_hash"
"""Tag of a sweep's record that repeats the hash of its specification."""


class SweepFolder:
    """The folder ``<runs>/<name>`` of a sweep.

    Args:
        root: The runs folder.
        name: The sweep's name.

    Raises:
        UserError: A name that would lead out of the runs folder.
    """

    def __init__(self, root: Path, name: str) -> None:
        if re.search(r"[/\\\0]", name) or name.startswith(".") or not name:
            raise UserError("name", f"'{name}' is no name of a sweep", "see raycl list runs")
        self.root, self.name = root, name
        self.path = root / name
        self._new_id = uuid.uuid4().hex[:16]

    @classmethod
    def existing(cls, root: Path, name: str) -> SweepFolder:
        """The folder of a sweep that was started before.

        Raises:
            UserError: There is none of that name.
        """
        folder = cls(root, name)
        if not folder.spec_file.is_file() and folder._in_journal() is None:
            known = sorted(p.parent.name for p in root.glob("*/spec.json"))
            hint = nearest(name, known) if known else "nothing was run here yet"
            raise UserError(str(root), f"no sweep named '{name}'", hint)
        return folder

    @property
    def spec_file(self) -> Path:
        """Name, hash, sweep id and resolved specification."""
        return self.path / "spec.json"

    @property
    def resolved_file(self) -> Path:
        """The sweep file after ``--set`` and ``--smoke``; can be run again as it is."""
        return self.path / "sweep.yaml"

    @property
    def outcomes(self) -> Outcomes:
        """Outcomes of the trials that have ended."""
        return Outcomes(self.path / "outcomes")

    def storage(self, base: str | None) -> str:
        """Folder of all trials' checkpoints: a path or a URL.

        Args:
            base: The sweep file's ``storage``; ``None``: in this folder.
        """
        return f"{base}/{self.name}" if base else str(self.path / TRIALS)

    def identity(self) -> dict[str, Any]:
        """Read the identity that ``claim`` recorded.

        Raises:
            Damaged: The file cannot be read; ``mend`` may help.
        """
        identity: dict[str, Any] = atomic.read_json(self.spec_file, dict, self._restore)
        if not identity.keys() >= {"hash", "sweep_id", "resolved"}:
            raise atomic.Damaged(self.spec_file, "it is not whole", self._restore)
        return identity

    @property
    def _restore(self) -> str:
        return f"restore it from a copy, or choose another name, or remove {self.path}"

    def mend(self) -> list[str]:
        """Write damaged files again that can be derived; a line about each of them.

        Raises:
            Damaged: One cannot be.
        """
        lines = []
        try:
            identity = self.identity()
        except (FileNotFoundError, atomic.Damaged) as error:
            last = self._in_journal()
            if last is None and isinstance(error, atomic.Damaged):
                raise
            if last is None:
                return []
            identity = last
            self._write(identity)
            what = error.what if isinstance(error, atomic.Damaged) else "is gone"
            lines.append(f"{self.spec_file} {what}: written again from {JOURNAL}")
        try:
            whole = isinstance(yaml.safe_load(self.resolved_file.read_bytes()), dict)
        except (OSError, ValueError, yaml.YAMLError):
            whole = False
        if not whole:
            self._write(identity)
            lines.append(f"{self.resolved_file} is damaged: written again from {self.spec_file}")
        return lines

    def _in_journal(self) -> dict[str, Any] | None:
        """The identity as the journal's last start of this sweep has it, if it has."""
        found = None
        for _, _, event in journal.read(self.path / JOURNAL):
            if event["event"] == "sweep" and HASH in event["tags"]:
                found = {
                    "name": event["name"],
                    "hash": event["tags"][HASH],
                    "sweep_id": event["sweep_id"],
                    "version": raycl.__version__,
                    "resolved": event["resolved"],
                }
        return found

    @property
    def sweep_id(self) -> str:
        """The sweep's id, the same in every continuation; before ``claim`` what it will be."""
        return str(self.identity()["sweep_id"]) if self.spec_file.is_file() else self._new_id

    def check(self, spec_hash: str, resolved: dict[str, Any]) -> None:
        """Make sure that the name is free, or belongs to this specification.

        Raises:
            UserError: It belongs to another one.
        """
        if not self.spec_file.is_file():
            return
        identity = self.identity()
        if identity["hash"] != spec_hash:
            old, new = (
                {k: v for k, v in spec.items() if k not in NOT_RESULTS}
                for spec in (identity["resolved"], resolved)
            )
            changed = ", ".join(_differences(old, new))
            raise UserError(
                "name",
                f"'{self.name}' is already in use by another specification in {self.root}"
                f" (differs in {changed or 'the code or the defaults of a method'})",
                f"choose another name, or remove {self.path}",
            )

    def claim(self, spec_hash: str, resolved: dict[str, Any]) -> str:
        """Take the name for a specification, or find that it has it already.

        Returns:
            ``sweep_id``.

        Raises:
            UserError: The name belongs to another specification.
        """
        self.check(spec_hash, resolved)
        if self.spec_file.is_file():
            identity = self.identity()
            if identity["resolved"] != resolved:  # resources, storage, published, ...
                self._write(identity | {"resolved": resolved})
            return self.sweep_id
        self._write(
            {
                "name": self.name,
                "hash": spec_hash,
                "sweep_id": self._new_id,
                "version": raycl.__version__,
                "resolved": resolved,
            }
        )
        return self._new_id

    @property
    def begun(self) -> bool:
        """Whether trials may have begun."""
        return (self.path / JOURNAL).is_file()

    def made_of(self) -> MadeOf | None:
        """What the sweep is made of; ``None``: it has not begun, or an older raycl began it."""
        return MadeOf.recorded(self.identity()) if self.spec_file.is_file() else None

    def record_made_of(self, made_of: MadeOf, accepted: Sequence[str]) -> None:
        """Write down what the sweep is made of from now on.

        Args:
            made_of: Version of raycl, code, data and weights.
            accepted: Changes since the sweep was begun, in words, which the user has accepted.
        """
        identity = self.identity()
        before = identity.get("changes", [])
        added = [f"{what} on {date.today().isoformat()}" for what in accepted]
        new = identity | {"made_of": made_of.plain(), "changes": [*before, *added]}
        if new != identity:
            self._write(new)

    def changes(self) -> list[str]:
        """What of the code and the data was changed on the way, and accepted."""
        return list(self.identity().get("changes", []))

    def _write(self, identity: dict[str, Any]) -> None:
        text = yaml12.dump(identity["resolved"])
        atomic.write(self.resolved_file, text)
        atomic.write(self.spec_file, json.dumps(identity, indent=1))

    @property
    def _winners_file(self) -> Path:
        return self.path / "winners.json"

    def record_winners(self, winners: Mapping[tuple[str, str], dict[str, Any]]) -> None:
        """Close the search: from now on these configurations are the final ones."""
        rows = [
            {"benchmark": benchmark, "method": method, "values": values}
            for (benchmark, method), values in winners.items()
        ]
        atomic.write(self._winners_file, json.dumps(rows, indent=1))

    def winners(self) -> dict[tuple[str, str], dict[str, Any]] | None:
        """What ``record_winners`` recorded; ``None`` while the search is open.

        Raises:
            Damaged: The file cannot be read.
        """
        if not self._winners_file.is_file():
            return None
        rows = atomic.read_json(self._winners_file, list, "run the sweep again: it is made anew")
        try:
            return {(row["benchmark"], row["method"]): dict(row["values"]) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise atomic.Damaged(self._winners_file, f"no {error}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, however that ends.

        Raises:
            UserError: Another process holds it, or the folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            what = f"{self.path} is a file, and no folder of a sweep"
            raise UserError("name", what, "choose another name")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise UserError("--runs", f"{self.path} cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise UserError(
                    "name", f"'{self.name}' is being run by process {file.read() or '?'}"
                ) from error
            except OSError as error:
                what = f"{self.path}: its file system has no locks: {error.strerror}"
                raise UserError("--runs", what, "give a folder on another file system") from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted paths at which two specifications differ, at most five."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
        return found[:5]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}[{i}]")][:5]
    return [] if old == new else [path]
