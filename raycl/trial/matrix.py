"""``R[t, i]``, the matrix of a trial, and what a metric of it is.

``R[t, i]`` is the performance on task i after training task t: percent accuracy for images, score
for games. It is float64 of shape (T, T), NaN where nothing was measured; T is the number of tasks
trained so far. Formulas count tasks from 1, as papers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


Mask = NDArray[np.bool_]
Rows = Literal["last", "all"]
Entries = Literal["last", "diagonal", "ends", "ahead", "all"]
"""Entries of R that a metric reads; see ``needed``."""


@dataclass(frozen=True)
class Metric:
    """An entry of ``METRICS``.

    Attributes:
        formula: Formula as a text, for people.
        higher_is_better: Direction of the metric.
        function: Computes it from R, and from what ``also`` names.
        also: Further arguments beside R; ``evaluation`` and ``training`` are curves of games, see
            ``raycl.rl.metrics``.
        min_tasks: Smallest T it is defined for.
        entries: Entries of R it reads, see ``needed``; games measure every entry, and do not say.
    """

    formula: str
    higher_is_better: bool
    function: Callable[..., float]
    also: Literal["", "sizes", "baseline", "selection", "evaluation", "training"] = ""
    min_tasks: int = 1
    entries: Entries = "all"


def needed(entries: Entries, tasks: int) -> Mask:
    """Entries of R of which a metric reads every one, bool (T, T).

    Args:
        entries: ``last`` row; ``diagonal``; ``ends``, which are both; ``ahead``: right above the
            diagonal; ``all`` on and below the diagonal.
        tasks: T.

    >>> needed("ends", 3).astype(int).tolist()
    [[1, 0, 0], [0, 1, 0], [1, 1, 1]]
    """
    row, column = np.indices((tasks, tasks))
    found: dict[Entries, Mask] = {
        "last": row == tasks - 1,
        "diagonal": row == column,
        "ends": (row == column) | (row == tasks - 1),
        "ahead": row + 1 == column,
        "all": row >= column,
    }
    return found[entries]


def backward_transfer(R: ArrayLike) -> float:
    """mean_{i<T} (R[T, i] - R[i, i]).

    Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv
    1706.08840. The divisor is T - 1; ``backward_transfer_all`` divides by T.
    """
    return float(gains(R)[:-1].mean())


def square(values: ArrayLike, tasks: int = 1) -> Matrix:
    """R as an array.

    Raises:
        ValueError: It is not square, or is of fewer tasks than a metric is defined for.
    """
    r = np.asarray(values, dtype=np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or len(r) < tasks:
        raise ValueError(f"R must be square with at least {tasks} tasks, not of shape {r.shape}")
    return r


def gains(values: ArrayLike) -> Matrix:
    """R[T, i] - R[i, i] of each task."""
    r = square(values, tasks=2)
    return known(r[-1]) - known(np.diag(r))


def known(values: Matrix) -> Matrix:
    """The same values, of which a metric needs every one.

    Raises:
        ValueError: One of them is NaN.
    """
    if np.isnan(values).any():
        raise ValueError("an entry of R, of the baseline or of a curve that is needed is NaN")
    return values


def plain(matrix: Matrix) -> list[Any]:
    """A matrix, or a row of one, as JSON has it: ``None`` where it is NaN."""
    return [
        plain(v) if isinstance(v, np.ndarray) else (None if math.isnan(v) else float(v))
        for v in matrix
    ]
