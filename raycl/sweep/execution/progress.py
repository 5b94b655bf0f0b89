"""Shows the progress of a sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from raycl.sweep.kinds.kind import Shown
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.outcomes import Status
from raycl.terminal import clock
from raycl.trial.run import NOTE, Row

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
        shown: What is told of a trial.
    """

    def __init__(
        self, console: Console, total: int, done: int, tasks: int, title: str, shown: Shown
    ) -> None:
        self.console, self.total, self.tasks, self.title = console, total, tasks, title
        self.shown = shown
        self.before = self.over = done
        self.failed = 0
        self.rows: dict[str, tuple[TrialPlan, Row, float]] = {}
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
            with contextlib.suppress(OSError):  # the terminal is gone
                self._live.stop()

    def started(self, plan: TrialPlan) -> None:
        """A trial starts."""
        self.rows[plan.key] = (plan, {}, time.monotonic())

    def row(self, plan: TrialPlan, row: Row) -> None:
        """A trial reports."""
        since = self.rows[plan.key][2] if plan.key in self.rows else time.monotonic()
        self.rows[plan.key] = (plan, row, since)
        if NOTE in row:
            self.say(f"{plan.name} {row[NOTE]}")
        if self._live is None and time.monotonic() - self.spoke_at > PLAIN_EVERY_S:
            where = ", ".join(
                f"{p.name} {self.shown.where(r, self.tasks)}" for p, r, _ in self.rows.values()
            )
            self.say(f"running: {where}{self._left(', ')}")

    def lost(self, plan: TrialPlan, error: str) -> None:
        """A worker died."""
        self.say(f"{plan.name} lost its worker and is retried: {error[:160]}")

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """A trial is over."""
        *_, since = self.rows.pop(plan.key, (plan, row, time.monotonic()))
        self.over += status != "killed"
        self.failed += status == "error"
        self._bar.update(self._bar_id, completed=self.over, left=self._left())
        seconds = time.monotonic() - since
        what = error if status == "error" else self.shown.headline(row)
        self.say(
            f"{self.over:>4}/{self.total}  {status:<13} {plan.name:<28} {what}  {seconds:.1f} s"
        )

    def say(self, text: str) -> None:
        """Print a line above the live table, or a plain one with the time of day."""
        self.spoke_at = time.monotonic()
        stamp = time.strftime("%H:%M:%S")
        with contextlib.suppress(OSError):  # the terminal is gone; the trials are not
            self.console.print(f"{stamp} {text}", highlight=False, markup=False, soft_wrap=True)

    def _left(self, before: str = "") -> str:
        new = self.over - self.before
        if not new or self.over >= self.total:
            return ""
        seconds = (time.monotonic() - self.started_at) / new * (self.total - self.over)
        return f"{before}about {clock(seconds)} left"

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        left = {"trial", *self.shown.left}
        for name in ("trial", *self.shown.columns, "time"):
            table.add_column(name, justify="left" if name in left else "right")
        for plan, row, since in list(self.rows.values())[:20]:
            cells = self.shown.cells(row, self.tasks)
            table.add_row(plan.name, *cells, clock(time.monotonic() - since))
        if len(self.rows) > 20:
            table.add_row(f"and {len(self.rows) - 20} more")
        return Group(self._bar, table)
