"""Metrics as pure functions of R, the matrix of a run.

``R[t, i]`` is the performance on task i after training task t: percent accuracy for images, score
for games. It is float64 of shape (T, T), NaN where nothing was measured; T is the number of tasks
trained so far. Formulas below count tasks from 1, as papers do. Names follow formulas, because
several things in this field share the name "forgetting".

Every function raises ``ValueError`` when an entry that it needs is NaN: nothing is left out of a
mean in silence. Entries above the diagonal are read by ``forward_transfer`` only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from raycl.trial.matrix import (
    Mask,
    Matrix,
    Metric,
    backward_transfer,
    gains,
    known,
    needed,
    square,
)


def average_accuracy(R: ArrayLike) -> float:
    """mean_i R[T, i]: every task weighs the same."""
    return float(known(square(R)[-1]).mean())


def average_accuracy_by_item(R: ArrayLike, sizes: Sequence[int]) -> float:
    """sum_i n_i R[T, i] / sum_i n_i: every test item weighs the same.

    Args:
        R: The matrix.
        sizes: n_i, test items of each task.
    """
    last = known(square(R)[-1])
    weights = np.asarray(sizes, dtype=np.float64)
    if weights.shape != last.shape or not (weights > 0).all():
        raise ValueError(f"sizes must be {len(last)} positive numbers, not {list(sizes)}")
    return float(weights @ last / weights.sum())


def average_incremental_accuracy(R: ArrayLike) -> float:
    """mean_t mean_{i<=t} R[t, i]."""
    return float(_averages(R).mean())


def forgetting(R: ArrayLike) -> float:
    """mean_{i<T} (max_{i<=k<T} R[k, i] - R[T, i]); may be negative.

    Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, arXiv 1801.10112, whose
    maximum also covers k < i, before task i was trained; here those entries are not needed.
    """
    r = _lower(R, tasks=2)
    best = [r[i:-1, i].max() for i in range(len(r) - 1)]
    return float(np.mean(best - r[-1, :-1]))


def forgetting_nonnegative(R: ArrayLike) -> float:
    """mean_{i<T} (max_{i<=k<=T} R[k, i] - R[T, i]); each term is at least 0."""
    r = _lower(R, tasks=2)
    best = [r[i:, i].max() for i in range(len(r) - 1)]
    return float(np.mean(best - r[-1, :-1]))


def backward_transfer_all(R: ArrayLike) -> float:
    """mean_{i<=T} (R[T, i] - R[i, i]): ``backward_transfer`` times (T - 1) / T.

    The last term is 0 and counts. The form of the code of Shi et al., "Continual Learning via
    Bit-Level Information Preserving", CVPR 2021, arXiv 2105.04444.
    """
    return float(gains(R).mean())


def forward_transfer(R: ArrayLike, baseline: ArrayLike) -> float:
    """mean_{i>=2} (R[i-1, i] - b_i); same source as ``backward_transfer``.

    Args:
        R: The matrix, measured right above its diagonal.
        baseline: b_i, performance on task i before any training; the first is not used.
    """
    r = square(R, tasks=2)
    b = np.asarray(baseline, dtype=np.float64)
    if b.shape != (len(r),):
        raise ValueError(f"baseline must have shape ({len(r)},), not {b.shape}")
    return float((known(np.diag(r, 1)) - known(b[1:])).mean())


def learning_accuracy(R: ArrayLike) -> float:
    """mean_i R[i, i]."""
    return float(known(np.diag(square(R))).mean())


def selection_accuracy(R: ArrayLike, selection: ArrayLike) -> float:
    """mean_i V[i, i], an optimistic number: V is measured on the data that chose each task's epoch.

    The code of Ge et al., "CLR", ICCV 2023, arXiv 2307.11386, reports it.

    Args:
        R: The matrix on test data; not looked at.
        selection: V, the matrix on validation data.
    """
    return learning_accuracy(selection)


def one_step_forgetting(R: ArrayLike) -> float:
    """mean_{t>=2} mean_{i<t} (R[t-1, i] - R[t, i]); may be negative."""
    r = _lower(R, tasks=2)
    return float(np.mean([(r[t - 1, :t] - r[t, :t]).mean() for t in range(1, len(r))]))


def omega(R: ArrayLike, upper: ArrayLike) -> float:
    """100 mean_t A_t / A_UB,t, where A_t = mean_{i<=t} R[t, i] and A_UB,t is the same of ``upper``.

    The column next to A_N in table 2 of Smith et al., "Always Be Dreaming: A New Approach for
    Data-Free Class-Incremental Learning", ICCV 2021, arXiv 2106.09701. Its code does not compute
    it; the formula fits figure 5 of the paper, where the last point of ABD gives its accuracy.

    Args:
        R: The matrix.
        upper: The matrix of an upper bound that is trained anew at every prefix of the same stream.
    """
    own, bound = (_averages(values) for values in (R, upper))
    if own.shape != bound.shape:
        raise ValueError(f"the upper bound has {len(bound)} tasks, and not {len(own)}")
    if not (bound > 0).all():
        raise ValueError("the upper bound is 0 after a task")
    return float(100 * (own / bound).mean())


METRICS: dict[str, Metric] = {
    "average_accuracy": Metric("mean_i R[T,i]", True, average_accuracy, entries="last"),
    "average_accuracy_by_item": Metric(
        "sum_i n_i R[T,i] / sum_i n_i",
        True,
        average_accuracy_by_item,
        also="sizes",
        entries="last",
    ),
    "selection_accuracy": Metric(
        "mean_i V[i,i], V on the data that chose the epoch",
        True,
        selection_accuracy,
        also="selection",
        entries="diagonal",
    ),
    "average_incremental_accuracy": Metric(
        "mean_t mean_{i<=t} R[t,i]", True, average_incremental_accuracy
    ),
    "forgetting": Metric(
        "mean_{i<T} (max_{i<=k<T} R[k,i] - R[T,i])", False, forgetting, min_tasks=2
    ),
    "forgetting_nonnegative": Metric(
        "mean_{i<T} (max_{i<=k<=T} R[k,i] - R[T,i])", False, forgetting_nonnegative, min_tasks=2
    ),
    "backward_transfer": Metric(
        "mean_{i<T} (R[T,i] - R[i,i])", True, backward_transfer, min_tasks=2, entries="ends"
    ),
    "backward_transfer_all": Metric(
        "mean_{i<=T} (R[T,i] - R[i,i])",
        True,
        backward_transfer_all,
        min_tasks=2,
        entries="ends",
    ),
    "forward_transfer": Metric(
        "mean_{i>=2} (R[i-1,i] - b_i)",
        True,
        forward_transfer,
        also="baseline",
        min_tasks=2,
        entries="ahead",
    ),
    "learning_accuracy": Metric("mean_i R[i,i]", True, learning_accuracy, entries="diagonal"),
    "one_step_forgetting": Metric(
        "mean_{t>=2} mean_{i<t} (R[t-1,i] - R[t,i])", False, one_step_forgetting, min_tasks=2
    ),
}


AGAINST_BOUND: dict[str, Metric] = {
    "omega": Metric("100 mean_t A_t / A_UB,t, A_t = mean_{i<=t} R[t,i]", True, omega),
}
"""Metrics that also need the R of an upper bound; only a report has both."""


def compute(
    R: ArrayLike,
    sizes: Sequence[int] | None = None,
    baseline: ArrayLike | None = None,
    measured: Mask | None = None,
    selection: ArrayLike | None = None,
) -> dict[str, float]:
    """Compute every metric that is defined for this many tasks and for what was measured.

    Args:
        R: The matrix.
        sizes: Test items of each task; without it nothing is weighted by item.
        baseline: Performance before any training; without it there is no forward transfer.
        measured: Entries of R that were measured, (T, T), so that metrics that read others are left
            out; ``None``: all.
        selection: The matrix on validation data, where accuracy on it chose the epochs.

    Raises:
        ValueError: R is not square, or an entry that one of these metrics needs is NaN.
    """
    tasks = len(square(R))
    given = {"": (), "sizes": sizes, "baseline": baseline, "selection": selection}
    return {
        name: metric.function(R, *([given[metric.also]] if metric.also else []))
        for name, metric in METRICS.items()
        if tasks >= metric.min_tasks
        and given[metric.also] is not None
        and (measured is None or name in readable(measured))
    }


def readable(measured: Mask) -> list[str]:
    """Names of the metrics of which every entry that they read was measured.

    Args:
        measured: Entries of R that were measured, (T, T).
    """
    tasks = len(measured)
    return [n for n, m in METRICS.items() if not (needed(m.entries, tasks) & ~measured).any()]


def _lower(values: ArrayLike, tasks: int = 1) -> Matrix:
    r = square(values, tasks)
    known(r[np.tril_indices(len(r))])
    return r


def _averages(values: ArrayLike) -> Matrix:
    """Mean over the tasks seen so far, after each task: mean_{i<=t} R[t, i] for each t."""
    r = _lower(values)
    return np.array([r[t, : t + 1].mean() for t in range(len(r))])
