"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from raycl.sweep.expand import TrialPlan
from raycl.sweep.outcomes import Status

PLAIN_EVERY_S = 15.0
"""Between two plain lines about running trials."""


class Progress:
    """Follows one stage of a sweep.

    Args:
        console: Where to print (the real stderr; stdout is for the table at the end).
        total: Trials of this stage, finished ones included.
        done: Trials that were over before it began.
        tasks: Tasks per trial.
        title: Name of the stage.
    """

    def __init__(self, console: Console, total: int, done: int, tasks: int, title: str) -> None:
        self.console, self.total, self.tasks, self.title = console, total, tasks, title
        self.before = self.over = done
        self.failed = 0
        self.rows: dict[str, tuple[TrialPlan, dict[str, Any], float]] = {}
        self.started_at = self.spoke_at = time.monotonic()
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._bar_id = self._bar.add_task(title, total=total, completed=done, left="")
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, plan: TrialPlan) -> None:
        """A trial starts."""
        self.rows[plan.key] = (plan, {}, time.monotonic())

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """A trial reports."""
        since = self.rows[plan.key][2] if plan.key in self.rows else time.monotonic()
        self.rows[plan.key] = (plan, row, since)
        if "note" in row:
            self.say(f"{plan.name} {row['note']}")
        if self._live is None and time.monotonic() - self.spoke_at > PLAIN_EVERY_S:
            running = ", ".join(f"{p.name} {self._where(r)}" for p, r, _ in self.rows.values())
            self.say(f"running: {running}{self._left(', ')}")

    def lost(self, plan: TrialPlan, error: str) -> None:
        """A worker died."""
        self.say(f"{plan.name} lost its worker and is retried: {error[:160]}")

    def ended(self, plan: TrialPlan, status: Status, row: dict[str, Any], error: str) -> None:
        """A trial is over."""
        *_, since = self.rows.pop(plan.key, (plan, row, time.monotonic()))
        self.over += status != "killed"
        self.failed += status == "error"
        self._bar.update(self._bar_id, completed=self.over, left=self._left())
        seconds = time.monotonic() - since
        what = error if status == "error" else _headline(row)
        self.say(
            f"{self.over:>4}/{self.total}  {status:<13} {plan.name:<28} {what}  {seconds:.1f} s"
        )

    def say(self, text: str) -> None:
        """Print a line above the live table, or a plain one with the time of day."""
        self.spoke_at = time.monotonic()
        stamp = time.strftime("%H:%M:%S")
        self.console.print(f"{stamp} {text}", highlight=False, markup=False, soft_wrap=True)

    def _where(self, row: dict[str, Any]) -> str:
        if "task" not in row:
            return "starting"
        accuracy = row.get("validation/average_accuracy", 0.0)
        task = min(row["task"] + 1, self.tasks)
        return f"task {task}/{self.tasks} epoch {row.get('epoch', 0) + 1} ({accuracy:.1f} %)"

    def _left(self, before: str = "") -> str:
        new = self.over - self.before
        if not new or self.over >= self.total:
            return ""
        seconds = (time.monotonic() - self.started_at) / new * (self.total - self.over)
        return f"{before}about {_duration(seconds)} left"

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("trial", "task", "phase", "epoch", "validation %", "time"):
            table.add_column(name, justify="left" if name in ("trial", "phase") else "right")
        for plan, row, since in list(self.rows.values())[:20]:
            task = f"{min(row['task'] + 1, self.tasks)}/{self.tasks}" if "task" in row else ""
            accuracy = row.get("validation/average_accuracy")
            table.add_row(
                plan.name,
                task,
                str(row.get("phase", "starting")),
                str(row["epoch"] + 1) if "epoch" in row else "",
                "" if accuracy is None else f"{accuracy:.1f}",
                _duration(time.monotonic() - since),
            )
        if len(self.rows) > 20:
            table.add_row(f"and {len(self.rows) - 20} more", "", "", "", "", "")
        return Group(self._bar, table)


def _headline(row: dict[str, Any]) -> str:
    result = row.get("result")
    if not result:
        return f"after {row.get('tasks_done', 0)} tasks"
    readout, metrics = next(iter(result["metrics"].items()))
    return f"average accuracy ({readout}) {metrics['average_accuracy']:.1f} %"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
