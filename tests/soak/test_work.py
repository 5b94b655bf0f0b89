"""What counts as work done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.work import Attempt, Work, account, read

EPOCHS, TASKS = range(2, 13, 2), (6, 12)


def attempt(first: int, last: int, at: float) -> Attempt:
    """A step each second."""
    return {step: at + step - first for step in range(first, last + 1)}


@pytest.mark.parametrize(
    "attempts, again, beyond",
    [
        ([attempt(1, 12, 0)], 0, 0),
        ([attempt(1, 5, 0), attempt(5, 12, 20)], 1, 0),
        # begun anew after five steps: with 3 s between checkpoints, four had to be kept
        ([attempt(1, 5, 0), attempt(1, 12, 20)], 5, 4),
        # the end of a task is kept before the next one begins
        ([attempt(1, 4, 0), attempt(5, 7, 10), attempt(5, 12, 20)], 3, 2),
        ([attempt(1, 4, 0), attempt(5, 6, 10), attempt(5, 12, 20)], 2, 0),
        # a process that outlived its driver for a while
        ([attempt(1, 8, 0), attempt(7, 12, 7.5)], 2, 0),
    ],
)
def test_account(attempts: list[Attempt], again: int, beyond: int) -> None:
    every_s = 2.5
    expected = Work(12, again, beyond, len(attempts))
    assert account({"one": attempts}, EPOCHS, TASKS, every_s) == expected


def test_steps_that_nobody_took() -> None:
    with pytest.raises(AssertionError, match="one went on at 6"):
        account({"one": [attempt(1, 4, 0), attempt(6, 12, 10)]}, EPOCHS, TASKS, 3)


def test_read(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a 1 10.0\nb 1 10.5\na 2 11.0\nb 2 11.5\nb 2 12.5\n")
    (tmp_path / "2").write_text("a 1 9.0\n")
    assert read(tmp_path) == {
        "a": [{1: 9.0}, {1: 10.0, 2: 11.0}],
        "b": [{1: 10.5, 2: 11.5}, {2: 12.5}],
    }
