"""How the progress of a trial is told: a contract between a kind of trial and ``progress``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What is shown of a running trial.

    Attributes:
        columns: Titles of the live table between the trial's name and its time.
        left: Those that are text.
        cells: Of a row (maybe empty: it is starting) and the number of tasks: those columns.
        where: The same in a few words.
        headline: Of the last row of a finished trial: what it came to.
    """

    columns: tuple[str, ...]
    left: frozenset[str]
    cells: Callable[[Row, int], list[str]]
    where: Callable[[Row, int], str]
    headline: Callable[[Row], str]
