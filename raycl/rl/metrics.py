"""Metrics of a sequence of games as pure functions of R and of curves, all in percent.

``R[t, i]`` is the normalised score on game i after game t: 0 % and 100 % are the scores of a
reference, such as random and human play. It is float64 of shape (T, T), NaN where nothing was
measured. A curve is the list of points (emulator frames since the start of the sequence, percent)
of one game, in order; every game is trained on for the same number of frames, D. Formulas count
games from 1.

Every function raises ``ValueError`` when an entry that it needs is NaN: nothing is left out of a
mean in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raycl.trial.matrix import Metric, backward_transfer, known, square

Curve = Sequence[Sequence[float]]
"""Points (frames, percent), frames not falling."""


class UndefinedError(ValueError):
    """The metric has no value here, because a game was not learnt, or never ended."""


def average_performance(R: ArrayLike) -> float:
    """mean_i R[T, i]: Wolczyk et al., "Continual World", NeurIPS 2021, arXiv 2105.10919."""
    return float(known(square(R)[-1]).mean())


def forgetting(R: ArrayLike) -> float:
    """mean_{i<=T} (R[i, i] - R[T, i]); the last term is 0 and counts.

    The form of Continual World, arXiv 2105.10919, whose code takes means of the last five
    evaluations in place of single ones.
    """
    r = square(R, 2)
    return float((known(np.diag(r)) - known(r[-1])).mean())


def max_forgetting(R: ArrayLike) -> float:
    """mean_{i<T} (max_{i<=k<T} R[k, i] - R[T, i]): what classification calls forgetting."""
    r = square(R, 2)
    best = [known(r[i:-1, i]).max() for i in range(len(r) - 1)]
    return float((np.array(best) - known(r[-1, :-1])).mean())


def isolated_forgetting(R: ArrayLike) -> float:
    """mean_{t>=2, i<t} (R[t-1, i] - R[t, i]): the damage that single games do.

    Powers et al., "CORA: Benchmarks, Baselines, and Metrics as a Platform for Continual
    Reinforcement Learning Agents", CoLLAs 2022, arXiv 2110.10067.
    """
    r = square(R, 2)
    return float(-known(np.diff(r, axis=0)[np.tril_indices(len(r) - 1)]).mean())


def zero_shot_transfer(R: ArrayLike, baseline: ArrayLike) -> float:
    """mean_{t<i} (R[t, i] - R[t-1, i]): what a game does for games still to come; from CORA.

    Args:
        R: The matrix, measured above its diagonal.
        baseline: R[0, i], scores of the untrained network; the first is not used.
    """
    r = square(R, 2)
    b = np.asarray(baseline, dtype=np.float64)
    if b.shape != (len(r),):
        raise ValueError(f"baseline must have shape ({len(r)},), not {b.shape}")
    gains = np.diff(np.vstack([b, r]), axis=0)
    return float(known(gains[np.triu_indices(len(r), 1)]).mean())


def learning_performance(R: ArrayLike) -> float:
    """mean_i R[i, i]."""
    return float(known(np.diag(square(R))).mean())


def retention(
    R: ArrayLike, evaluation: Sequence[Curve], frames: int, baseline: ArrayLike | None = None
) -> float:
    """100 mean_{i<T} of the mean of (p_i(s) - b_i) / (R[i, i] - b_i) over s in [i D, T D].

    The mean over s is the area under linear interpolation, divided by its length: 100 is perfect
    retention. Between the ends of games, p_i is known where the game was evaluated.

    Args:
        R: The matrix: the points at the ends of games.
        evaluation: The curve of each game's evaluations; ends of games need not be in it.
        frames: D.
        baseline: b_i, scores of the untrained network; ``None``: 0, the lower reference.

    Raises:
        UndefinedError: A game's score after its own training is no better than b_i.
    """
    r = square(R, 2)
    tasks = len(r)
    low = np.zeros(tasks) if baseline is None else known(np.asarray(baseline, dtype=np.float64))
    own = known(np.diag(r))
    if len(evaluation) != tasks or low.shape != own.shape:
        raise ValueError(f"{tasks} games need {tasks} curves and baselines")
    areas = []
    for i in range(tasks - 1):
        start, end = (i + 1) * frames, tasks * frames
        if own[i] <= low[i]:
            raise UndefinedError(f"game {i + 1} was not learnt")
        points = [tuple(point) for point in evaluation[i] if start < point[0] < end]
        points += [((k + 1) * frames, r[k, i]) for k in range(i, tasks)]
        s, p = np.array(sorted(points, key=itemgetter(0)), dtype=np.float64).T
        areas.append(np.trapezoid(known(p) - low[i], s) / (end - start) / (own[i] - low[i]))
    return 100 * float(np.mean(areas))


def learning_areas(training: Sequence[Curve], frames: int) -> list[float]:
    """AUC_i: mean of p_i(s), clipped to 0..100, over the game's own window, [(i-1) D, i D].

    The area under linear interpolation, divided by D; before its first point the curve is as high
    as there, and after its last as high as there.

    Args:
        training: The curve of each game's returns in training.
        frames: D.

    Raises:
        UndefinedError: No game ended in a window.
    """
    areas = []
    for i, curve in enumerate(training):
        start, end = i * frames, (i + 1) * frames
        inside = [point for point in curve if start <= point[0] <= end]
        if not inside:
            raise UndefinedError(f"no game ended while game {i + 1} was learnt")
        s, p = np.array(inside, dtype=np.float64).T
        s, p = np.array([start, *s, end]), known(np.array([p[0], *p, p[-1]])).clip(0, 100)
        areas.append(float(np.trapezoid(p, s)) / frames)
    return areas


def auc(R: ArrayLike, training: Sequence[Curve], frames: int) -> float:
    """mean_i AUC_i, see ``learning_areas``: how fast games are learnt.

    Args:
        R: The matrix; only its size is used.
        training: The curve of each game's returns in training.
        frames: D.

    Raises:
        UndefinedError: No game ended in a window.
    """
    if len(training) != len(square(R)):
        raise ValueError(f"{len(square(R))} games need as many curves, not {len(training)}")
    return float(np.mean(learning_areas(training, frames)))


def forward_transfer(areas: Sequence[float], reference: Sequence[float]) -> float:
    """100 mean_i (AUC_i - AUC_i^ref) / (100 - AUC_i^ref): Continual World, arXiv 2105.10919.

    Args:
        areas: AUC_i, in percent.
        reference: AUC_i^ref, of the games learnt one by one, each from fresh weights.

    Raises:
        UndefinedError: A reference is at 100 %: nothing is left to gain.
    """
    own, ref = (np.asarray(values, dtype=np.float64) for values in (areas, reference))
    if own.shape != ref.shape or own.ndim != 1 or not len(own):
        raise ValueError(f"{own.shape} areas and {ref.shape} references do not go together")
    if (known(ref) >= 100).any():
        raise UndefinedError("a game's reference is at 100 % all the time")
    return 100 * float(((known(own) - ref) / (100 - ref)).mean())


METRICS: dict[str, Metric] = {
    "average_performance": Metric("mean_i R[T,i]", True, average_performance),
    "forgetting": Metric("mean_{i<=T} (R[i,i] - R[T,i])", False, forgetting, min_tasks=2),
    "max_forgetting": Metric(
        "mean_{i<T} (max_{i<=k<T} R[k,i] - R[T,i])", False, max_forgetting, min_tasks=2
    ),
    "backward_transfer": Metric(
        "mean_{i<T} (R[T,i] - R[i,i])", True, backward_transfer, min_tasks=2
    ),
    "isolated_forgetting": Metric(
        "mean_{t>=2,i<t} (R[t-1,i] - R[t,i])", False, isolated_forgetting, min_tasks=2
    ),
    "zero_shot_transfer": Metric(
        "mean_{t<i} (R[t,i] - R[t-1,i])", True, zero_shot_transfer, also="baseline", min_tasks=2
    ),
    "learning_performance": Metric("mean_i R[i,i]", True, learning_performance),
    "retention": Metric(
        "100 mean_{i<T} mean_{s in [iD,TD]} (p_i(s) - b_i) / (R[i,i] - b_i), b_i untrained, or 0 "
        "without zero_shot",
        True,
        retention,
        also="evaluation",
        min_tasks=2,
    ),
    "auc": Metric(
        "mean_i mean_{s in [(i-1)D,iD]} min(100, max(0, p_i(s))), of returns in training",
        True,
        auc,
        also="training",
    ),
}


def compute(
    R: ArrayLike,
    *,
    baseline: ArrayLike | None = None,
    evaluation: Sequence[Curve] | None = None,
    training: Sequence[Curve] | None = None,
    frames: int | None = None,
) -> dict[str, float]:
    """Compute every metric that is defined for this many games and for the arguments given.

    A metric that raises ``UndefinedError`` is left out.

    Args:
        R: The matrix, in percent.
        baseline: Scores of the untrained network; R is then measured above its diagonal, too.
        evaluation: The curve of each game's evaluations; needs ``frames``.
        training: The curve of each game's returns in training; needs ``frames``.
        frames: Emulator frames that each game was trained on.

    Raises:
        ValueError: R is not square, or an entry that one of these metrics needs is NaN.
    """
    tasks = len(square(R))
    if frames is None and (evaluation is not None or training is not None):
        raise ValueError("curves need the frames of a game")
    given: dict[str, tuple[Any, ...] | None] = {
        "": (),
        "baseline": None if baseline is None else (baseline,),
        "evaluation": None if evaluation is None else (evaluation, frames, baseline),
        "training": None if training is None else (training, frames),
    }
    found = {}
    for name, metric in METRICS.items():
        beside = given[metric.also]
        if tasks < metric.min_tasks or beside is None:
            continue
        try:
            found[name] = metric.function(R, *beside)
        except UndefinedError:
            continue
    return found
