"""Random images, and a fair race."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from raycl import datasets
from raycl.datasets.base import Arrays, Dataset, DatasetConfig


def random_data(shape: tuple[int, int, int], n: int) -> tuple[dict[str, Dataset], Arrays]:
    """n images of ten classes under the key of "digits", and their arrays."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(n, *shape), dtype=np.uint8)
    arrays = Arrays(images, generator.integers(0, 10, size=n))
    mean, std = (0.5,) * shape[0], (0.3,) * shape[0]
    dataset = Dataset("random", arrays, arrays, tuple("0123456789"), mean, std)
    return {datasets.key(DatasetConfig(name="digits")): dataset}, arrays


def fastest(
    epoch: Callable[[], None], other: Callable[[], None], rounds: int = 7
) -> tuple[float, float]:
    """Seconds of the fastest epoch of each, taken in turns so that both see the same machine."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, function in enumerate((epoch, other)):
            started = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - started)
    return best[0], best[1]


def least_cpu(
    first: Callable[[], None], second: Callable[[], None], rounds: int = 5
) -> tuple[float, float]:
    """CPU seconds of the cheapest round of each, in turns; others may use the machine."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, function in enumerate((first, second)):
            begun = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - begun)
    return best[0], best[1]


def void(_: object) -> None:
    """Forget what an epoch gives."""
