"""What a run of any kind is to whoever steps it, and what it reports.

``raycl.training.run.Run`` (images) and ``raycl.rl.sequence.SequenceRun`` (games) are such runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict, cast

if TYPE_CHECKING:
    from raycl.trial.costs import Costs

Row = dict[str, Any]
"""What a run reports after a step, and what is sent to the driver: numbers and short strings.

``Known`` describes the keys that all kinds share. All others have a prefix that says what they are
(``train/``, ``validation/``, ``eval/``, ``method/``, ``cost/``, ``time/``, ``curve/``).
"""

FAILED: Final = "failed"
TRACEBACK: Final = "traceback"
UNKEPT: Final = "unkept"
PARKED: Final = "parked"
NOTE: Final = "note"


class Known(TypedDict, total=False):
    """The keys of a row that do not depend on its kind; see ``known``.

    Attributes:
        task: Index of the current task, from 0; at a task's end of the task that has ended.
        phase: Name of the current phase of training, or of the game.
        epoch: Epochs or updates of the phase before this one, from 0.
        updates: Updates that a game takes; of games only.
        progress: How far the trial is; it only grows. Epochs of images, emulator frames of games.
        at_task_end: Whether the step has ended a task: its row of the matrix is filled.
        tasks_done: Tasks that are over.
        finished: Whether every task is over; the row is the last one.
        result: Everything the run says, as ``TrialRun.result`` gives it; in the last row.
        pictures: Names of the pictures so far, at a task's end; the method's own, of images.
        made: What the result was made with, in the last row: code, data, device, versions.
        failed: The error that ended the trial, in one line; no retry would help. The row holds
            nothing else but ``traceback``.
        traceback: The traceback of that error.
        unkept: Why the trial's state cannot be kept: the storage's problem, not the trial's. The
            row holds nothing else.
        parked: Whether the trial has saved its state and waits to be ended; the row is its
            last one again.
        note: Something to be told in a line of its own.
    """

    task: int
    phase: str
    epoch: int
    updates: int
    progress: int
    at_task_end: bool
    tasks_done: int
    finished: bool
    result: dict[str, Any]
    pictures: list[str]
    made: dict[str, str]
    failed: str
    traceback: str
    unkept: str
    parked: bool
    note: str


def known(row: Row) -> Known:
    """The same row, typed: a misspelt key is found by the type checker."""
    return cast(Known, row)


def failure(row: Mapping[str, Any]) -> str | None:
    """Why a trial has failed, its traceback below; ``None``: its last row tells of no failure."""
    if FAILED not in row:
        return None
    return f"{row[FAILED]}\n{row.get(TRACEBACK, '')}"


def add_histograms(
    histograms: dict[str, list[list[int]]], counts: Mapping[str, Sequence[int]], tasks: int
) -> None:
    """Append a task's distributions, in place, to those of the tasks before it.

    Args:
        histograms: By name, a row of counts for each task.
        counts: By name, those of the task that has just ended.
        tasks: Tasks that are over, this one too.

    Raises:
        ValueError: A distribution is missing after some task, or its bins have changed.
    """
    for name, row in counts.items():
        histograms.setdefault(name, []).append([int(count) for count in row])
    for name, rows in histograms.items():
        if len(rows) != tasks or len({0, *map(len, rows)}) != 2:
            raise ValueError(f"histogram {name} must have the same bins after every task")


class Shelf(Protocol):
    """A place for what phases have trained, by phase and task, from one trial for another."""

    def take(self, phase: str, task: int) -> dict[str, Any] | None:
        """What ``put`` got from a trial that is the same to this phase; ``None``: nothing yet."""

    def put(self, phase: str, task: int, content: dict[str, Any]) -> None:
        """Leave the result of a phase, tensors and plain values, for other trials."""


class TrialRun(Protocol):
    """One trial that can be stepped, in a plain process as in a worker of Ray.

    A run that was just built from the same configuration and has loaded another's state goes on as
    the other would have.

    Attributes:
        costs: What it costs, counted while it is stepped.
        trained: Called inside ``advance`` when a task has been trained, before its end: at the
            points ``raycl.trial.sharing.trained``.
        shelf: Where phases with a result of their own find it or leave it; ``None``: nowhere.
    """

    costs: Costs
    trained: Callable[[], None]
    shelf: Shelf | None

    @property
    def done(self) -> bool:
        """Whether every task is over."""

    @property
    def exact(self) -> bool:
        """Whether an undisturbed run would have the same bits so far."""

    @property
    def progress(self) -> int:
        """How far it is; see ``Known``."""

    @property
    def last_row(self) -> Row:
        """The row ``advance`` returned last; survives a restore."""

    def advance(self) -> Row:
        """Train a little (an epoch, some updates); at a task's end also evaluate."""

    def result(self) -> dict[str, Any]:
        """Everything the run says, as plain JSON: matrices, metrics, cost, seeds."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""

    def shared_state(self) -> dict[str, Any]:
        """The state for other trials that are the same up to now; see ``raycl.trial.sharing``.

        At a task's end, or inside ``trained``. Of the first task, in ``trained``, it is the part
        that the method has in common with the one in ``first_task_of``.
        """

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``shared_state`` of another trial gave, in a run that was just built."""

    def keepsake(self) -> dict[str, Any] | None:
        """What is kept for good of the task that has just ended, besides checkpoints."""

    def picture_files(self) -> dict[str, bytes]:
        """Pictures of the task that has just ended: files by path; their stems are in the row."""

    def close(self) -> None:
        """Let go what the run holds (processes); nothing may be called after it."""


class TrainingError(RuntimeError):
    """Training cannot go on, because a loss is not a number."""
