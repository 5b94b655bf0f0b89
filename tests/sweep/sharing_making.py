"""Sweeps whose trials run one after the other in this process, as workers of Ray would run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import raycl
from raycl.datasets.base import Dataset
from raycl.sweep.execution import trainable
from raycl.sweep.execution.prefixes import FOLDER
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.plan import expand, sharing
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import MadeOf
from raycl.sweep.record.outcomes import Outcome
from raycl.tracking.journal import JOURNAL, Journal, Ledger
from raycl.tracking.lines import measured as measured_lines
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.run import Row

Trials = dict[str, list[Row]]
"""The rows that each trial has reported, by its name."""


class Killed(BaseException):
    """Exception that stands for SIGKILL."""


@dataclass
class Lab:
    """A sweep and its storage.

    Attributes:
        sweep: What is run.
        data: Its data sets.
        storage: Folder or URL.
        rows: Rows that were reported, in order: the trial's name and the row.
        kill: Called with each row before it is reported; may raise ``Killed``.
        made_of: What the sweep is made of.
    """

    sweep: spec.Sweep
    data: Mapping[str, Dataset]
    storage: str
    rows: list[tuple[str, Row]] = field(default_factory=list)
    kill: Callable[[str, Row], None] = lambda name, row: None
    made_of: MadeOf | None = None

    @property
    def tasks(self) -> dict[str, int]:
        return {
            b["label"]: self.sweep.kind.tasks(b, self.data) for b in benchmark_configs(self.sweep)
        }

    def plans(self, share: bool = True) -> list[TrialPlan]:
        plans = expand.search_plans(self.sweep) or expand.final_plans(self.sweep, {})
        return sharing.in_order(sharing.with_shared(plans, self.tasks)) if share else plans

    def run(self, plans: Sequence[TrialPlan], at_once: bool = False) -> Trials:
        """Run every plan to its end; what is killed is run again, at once or behind all others."""
        waiting, done = list(plans), set()
        while waiting:
            plan = waiting.pop(0)
            try:
                self._train(plan)
            except Killed:
                waiting.insert(0 if at_once else len(waiting), plan)
            else:
                done.add(plan.key)
        found: Trials = {}
        for name, row in self.rows:
            found.setdefault(name, []).append(row)
        return found

    def _train(self, plan: TrialPlan) -> None:
        settings = trainable.Settings(
            self.storage, 1e9, 2, "validation/x", "max", made_of=self.made_of
        )

        def report(row: Row, settings: trainable.Settings) -> None:
            self.kill(plan.name, row)
            self.rows.append((plan.name, dict(row)))

        before, trainable.report = trainable.report, report
        try:
            trainable._train(plan, self.data, settings, None)
        finally:
            trainable.report = before

    def left(self) -> list[str]:
        """Names of the states that are there."""
        return [path.rpartition("/")[2] for path in self.store.named("*.pt")]

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(f"{self.storage}/{FOLDER}")


def lab(folder: Path, text: str, *overrides: str, smoke: bool = False, storage: str = "") -> Lab:
    """Read a sweep file's text, or the file of a path."""
    folder.mkdir(exist_ok=True)
    path = Path(text) if text.endswith(".yaml") else folder / "s.yaml"
    if path.parent == folder:
        path.write_text(text)
    sweep = spec.load(path, overrides, smoke)
    return Lab(sweep, check_data(sweep, folder), storage or str(folder / "trials"))


def measured(rows: Sequence[Row]) -> dict[tuple[bool, int], dict[str, Any]]:
    """What rows say that does not depend on the clock, by where they are; the last one counts."""
    found = {}
    for row in rows:
        if "task" in row:
            kept = {k: _plain(v) for k, v in row.items() if not _varies(k)}
            found[bool(row["at_task_end"]), row["progress"]] = kept
    return found


def _varies(key: str) -> bool:
    clocks = ("time/", "cost/seconds", "cost/peak_memory_mb", "shared_seconds", "note", "made")
    return key.startswith(clocks)


def _plain(value: Any) -> Any:
    """The same, without what depends on the clock; numbers by their bits, for NaN is not NaN."""
    if isinstance(value, Mapping):
        clocks = {"seconds", "peak_memory_mb", "shared_seconds"}
        return {k: _plain(v) for k, v in value.items() if k not in clocks}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.hex() if isinstance(value, float) else value


def finished_in(runs: Path, name: str, one: Lab, plans: Sequence[TrialPlan]) -> SweepFolder:
    """A sweep's folder as it is when trials that a lab has run are over.

    Args:
        runs: The runs folder.
        name: The sweep's.
        one: The lab; its storage is the folder's.
        plans: What it has run.
    """
    folder = SweepFolder(runs, name)
    folder.claim("0123456789abcdef", one.sweep.resolved())
    folder.record_made_of(MadeOf(raycl.__version__), [])
    ledger, tracking = Ledger(), Journal(folder.path / JOURNAL)
    for plan in plans:
        rows = [row for who, row in one.rows if who == plan.name]
        events = [event for row in rows for event in measured_lines(plan.key, row, ledger)]
        tracking.append(events)
        folder.outcomes.add(Outcome.of(plan, "finished", rows[-1], ""))
    tracking.close()
    return folder


def seconds(rows: Sequence[Row]) -> float:
    """Seconds of a trial's cost that another one has spent."""
    return float(rows[-1]["result"].get("shared_seconds", 0.0))


def without(plans: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The same plans, which share nothing."""
    return [replace(plan, points=[], phases=[]) for plan in plans]


def text(**keys: Any) -> str:
    """A small sweep file on digits."""
    spec: dict[str, Any] = {
        "name": "shared",
        "benchmark": {"name": "split", "dataset": {"name": "digits", "limit": 40}, "tasks": 4},
        "methods": ["finetune"],
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.05},
    }
    return yaml.safe_dump(spec | keys)
