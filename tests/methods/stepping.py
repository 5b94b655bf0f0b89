"""Runs that stop at a chosen place."""

from __future__ import annotations

from raycl.benchmarks.base import Task
from raycl.training.run import Run


def until(run: Run, task: int, phase: int = 0) -> Task:
    """Step until a phase of a task comes next; the task, entered."""
    while run.task_index < task:
        run.advance()
    entered = run._enter_task()
    while run.phase_index < phase:
        run.advance()
    return entered
