"""Outcomes of trials on disk, by which a second ``raycl run`` knows what is done."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from raycl import atomic
from raycl.sweep.plan.plan import TrialPlan
from raycl.trial.run import Row

Status = Literal["finished", "stopped-early", "error", "killed"]


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
        config: The finished configuration.
        tags: Further ones of its run, what it is made of among them.
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
    row: Row = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: TrialPlan,
        status: Status,
        row: Row,
        error: str,
        tags: Mapping[str, str] | None = None,
    ) -> Outcome:
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
            config=plan.config,
            tags=dict(tags or {}),
        )

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """An outcome from its file.

        Raises:
            Damaged: It cannot be read, or is not such a file.
        """
        found = atomic.read_json(path, dict)
        if unknown := found.keys() - cls.__dataclass_fields__.keys():
            names = ", ".join(sorted(unknown))
            raise atomic.Damaged(path, f"it is of another raycl: unknown {names}")
        try:
            outcome = _reader().validate_python(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise atomic.Damaged(path, f"{where}: {first['msg'].lower()}") from error
        if outcome.key != path.stem:
            raise atomic.Damaged(path, f"it is of trial {outcome.key}")
        if outcome.status == "finished" and outcome.row and "result" not in outcome.row:
            raise atomic.Damaged(path, "it has no result")
        return outcome


@functools.cache
def _reader() -> TypeAdapter[Outcome]:
    """Made once: making it takes longer than reading an outcome."""
    return TypeAdapter(Outcome)


class Outcomes:
    """The outcomes of a sweep: one small file each, written once, when the trial ends.

    Attributes:
        damaged: Files that cannot be read, with what is wrong; their trials have no outcome.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[str, Outcome] = {}
        self.damaged: list[atomic.Damaged] = []
        for path in sorted(directory.glob("*.json")):
            try:
                outcome = Outcome.read(path)
            except atomic.Damaged as error:
                self.damaged.append(error)
            else:
                self._known[outcome.key] = outcome

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def all(self) -> list[Outcome]:
        """Every outcome there is."""
        return list(self._known.values())

    def add(self, outcome: Outcome) -> None:
        """Record a trial's end."""
        path = self.directory / f"{outcome.key}.json"
        atomic.write(path, json.dumps(asdict(outcome), default=float))
        self._known[outcome.key] = outcome

    def set_aside(self, final: Container[str] | None = None) -> list[str]:
        """Rename what is damaged, so that its trials go on; a line about each file.

        Args:
            final: Keys of the final trials once winners are chosen; ``None``: every trial goes on.
        """
        lines = []
        for error in self.damaged:
            error.path.replace(error.path.with_suffix(".damaged"))
            surely = final is None or error.path.stem in final
            line = f"{error.path} {error.what}: the trial goes on from its checkpoint"
            lines.append(line if surely else f"{line}, if its search is still open")
        self.damaged = []
        return lines

    def unfinished(
        self, kinds: Container[str], searches: Container[tuple[str, str]], cut: bool = False
    ) -> list[Outcome]:
        """Trials that are over, and that another attempt may finish.

        Args:
            kinds: Kinds of those that failed.
            searches: Benchmark and method of the searches that are over and have no winner.
            cut: Whether these had a time budget, so that those of their trials that were stopped
                early count as well.
        """
        again = ("error", "stopped-early") if cut else ("error",)
        return [
            one
            for one in self._known.values()
            if (one.status == "error" and one.kind in kinds)
            or (one.status in again and (one.benchmark, one.method) in searches)
        ]

    def forget(self, outcomes: Iterable[Outcome]) -> None:
        """Let these trials run again."""
        for outcome in outcomes:
            (self.directory / f"{outcome.key}.json").unlink()
            del self._known[outcome.key]


class Recorder:
    """The listener that writes outcomes; a killed trial has none, so that it is continued."""

    def __init__(
        self, outcomes: Outcomes, tags: Callable[[TrialPlan], dict[str, str]] = lambda plan: {}
    ) -> None:
        self.outcomes, self.tags = outcomes, tags

    def started(self, plan: TrialPlan) -> None:
        """Nothing is over yet."""

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """Nothing is over yet."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """Nothing is over yet."""

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """Write it down."""
        if status != "killed":
            self.outcomes.add(Outcome.of(plan, status, row, error, self.tags(plan)))
