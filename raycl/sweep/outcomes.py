"""How each trial ended, on disk; what a second ``raycl run`` goes by."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from raycl.sweep.expand import TrialPlan

Status = Literal["finished", "stopped-early", "error", "killed"]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(text)
    draft.replace(path)


@dataclass(frozen=True)
class Outcome:
    """A trial's end.

    Attributes:
        key: The trial's key.
        name: Its name.
        method: Its method's label.
        benchmark: Its benchmark's label.
        kind: ``trial``, ``search`` or ``winner``.
        seed: Its seed.
        config_key: Its configuration's key, without the seed.
        status: ``finished``, ``stopped-early`` (by the scheduler or the time budget) or ``error``.
            A trial that was killed has no outcome: it is continued.
        error: One line, for ``error``.
        varied: What varies in the sweep, with its values.
        row: The last row.
    """

    key: str
    name: str
    method: str
    benchmark: str
    kind: str
    seed: int
    config_key: str
    status: Status
    error: str = ""
    varied: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: TrialPlan, status: Status, row: dict[str, Any], error: str) -> Outcome:
        """The outcome of a plan."""
        return cls(
            key=plan.key,
            name=plan.name,
            method=plan.method,
            benchmark=plan.benchmark,
            kind=plan.kind,
            seed=plan.seed,
            config_key=plan.config_key,
            status=status,
            error=error,
            varied=dict(plan.varied),
            row=row,
        )


class Outcomes:
    """The outcomes of a sweep: one small file each, written once, when the trial ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[str, Outcome] = {}
        for path in sorted(directory.glob("*.json")):
            outcome = Outcome(**json.loads(path.read_text()))
            self._known[outcome.key] = outcome

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def all(self) -> list[Outcome]:
        """Every outcome there is."""
        return list(self._known.values())

    def add(self, outcome: Outcome) -> None:
        """Record a trial's end."""
        write_atomically(
            self.directory / f"{outcome.key}.json", json.dumps(asdict(outcome), default=float)
        )
        self._known[outcome.key] = outcome

    def forget_errors(self, kinds: Container[str]) -> int:
        """Let failed trials of these kinds run again; returns how many."""
        failed = [o for o in self._known.values() if o.status == "error" and o.kind in kinds]
        for outcome in failed:
            (self.directory / f"{outcome.key}.json").unlink()
            del self._known[outcome.key]
        return len(failed)
