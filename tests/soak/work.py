"""Steps that were taken, from what ``Counted`` wrote down, and which of them were taken in vain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Attempt = dict[int, float]
"""Steps that a process took one after the other, and when."""


@dataclass(frozen=True)
class Work:
    """What a sweep has cost.

    Attributes:
        needed: Steps that its trials have.
        again: Steps that were taken once more than needed.
        beyond: Those of them that a checkpoint should have saved.
        attempts: How often a trial was begun or gone on with.
    """

    needed: int
    again: int
    beyond: int
    attempts: int


def read(folder: Path) -> dict[str, list[Attempt]]:
    """Attempts at each trial, in the order in which they began."""
    found: dict[str, list[Attempt]] = defaultdict(list)
    for path in folder.iterdir():
        last: dict[str, int] = {}
        for line in path.read_text().splitlines():
            who, number, when = line.split()
            step = int(number)
            if last.get(who) != step - 1:
                found[who].append({})
            last[who] = step
            found[who][-1][step] = float(when)
    return {who: sorted(a, key=lambda one: min(one.values())) for who, a in found.items()}


def account(
    trials: Mapping[str, Sequence[Attempt]],
    epoch_ends: Collection[int],
    task_ends: Collection[int],
    every_s: float,
) -> Work:
    """Add up what was done twice.

    A trial that goes on at step s repeats what it did from s on. The checkpoint it goes on from was
    written before s was first begun. The next one was due at the first end of an epoch more than
    ``every_s`` later, and at the end of the task, before another step. Steps up to there that were
    followed by another one, and are repeated all the same, were lost beyond the interval.

    Args:
        trials: See ``read``.
        epoch_ends: Steps after which an epoch ends.
        task_ends: Steps after which a task ends.
        every_s: ``checkpoint.every_s``.
    """
    needed = again = beyond = 0
    for who, attempts in trials.items():
        count = Counter(step for attempt in attempts for step in attempt)
        needed += len(count)
        again += count.total() - len(count)
        taken: Attempt = {}
        for attempt in attempts:
            first = min(attempt)
            assert first == 1 or first - 1 in taken, f"{who} went on at {first}, after {taken}"
            lost = sorted((step, when) for step, when in taken.items() if step >= first)
            beyond += _saved(lost, epoch_ends, task_ends, every_s)
            taken = {step: when for step, when in taken.items() if step < first} | attempt
    return Work(needed, again, beyond, sum(map(len, trials.values())))


def _saved(
    lost: Sequence[tuple[int, float]],
    epoch_ends: Collection[int],
    task_ends: Collection[int],
    every_s: float,
) -> int:
    """How many of the steps that were lost had been followed by a checkpoint that was due."""
    due = 0
    since = lost[0][1] if lost else 0.0
    for i, (step, when) in enumerate(lost[:-1]):  # after the last one nothing may have followed
        if step in task_ends or (step in epoch_ends and when - since > every_s):
            due, since = i + 1, lost[i + 1][1]
    return due
