"""Means, deviations and bootstrap intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 95.0
BAND = f"{LEVEL:g} % interval over seeds"
_SEED = 20_210_505

Array = NDArray[np.float64]


@lru_cache(maxsize=32)
def _weights(n: int) -> Array:
    """Weights of bootstrap: how often each of n values is drawn, over n: (RESAMPLES, n)."""
    counts = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights: Array = counts / n
    return weights


def bootstrap(values: Array) -> tuple[Array, Array]:
    """Compute the percentile bootstrap interval of the mean over the first axis.

    The resamples depend on n alone, so that a report says the same each time it is made.

    Args:
        values: (n,) or (n, k), one row per seed; n >= 2.

    Returns:
        Lower and upper end of the 95 % interval, each of shape () or (k,).
    """
    if len(values) < 2:
        raise ValueError("one value has no interval")
    means = _weights(len(values)) @ values
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    # rounding in the product must not carry an end beyond the values themselves
    return np.clip(low, values.min(0), values.max(0)), np.clip(high, values.min(0), values.max(0))


def summary(by_seed: Mapping[int, float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (over n - 1) and interval; ``None`` where one seed has none.

    Args:
        by_seed: A value per seed, at least one.
    """
    values = np.array([by_seed[seed] for seed in sorted(by_seed)], dtype=np.float64)
    if len(values) < 2:
        return {"n": 1, "mean": float(values[0]), "std": None, "low": None, "high": None}
    low, high = bootstrap(values)
    std = float(values.std(ddof=1))
    return {
        "n": len(values),
        "mean": math.fsum(values) / len(values),
        "std": std,
        "low": float(low),
        "high": float(high),
    }


def paired(by_seed: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, float | None]:
    """Summary of the differences to a baseline on the seeds both have.

    Returns:
        As ``summary``, or an empty dict if they share no seed.
    """
    shared = by_seed.keys() & baseline.keys()
    return (
        dict(summary({seed: by_seed[seed] - baseline[seed] for seed in shared})) if shared else {}
    )
