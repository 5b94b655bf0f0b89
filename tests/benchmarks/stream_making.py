"""Data sets without a file, for streams."""

from __future__ import annotations

import numpy as np

from raycl.datasets import Arrays, Dataset


def make(
    name: str = "toy",
    *,
    classes: int = 10,
    each: int = 20,
    shape: tuple[int, int, int] = (1, 6, 6),
    seed: int = 0,
) -> Dataset:
    """``each`` training and 3 test images per class, in shuffled order of classes."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (each, 3):
        labels = rng.permutation(np.repeat(np.arange(classes), count))
        images = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
        parts.append(Arrays(images, labels))
    names = tuple(f"{name}{i}" for i in range(classes))
    channels = shape[0]
    return Dataset(name, parts[0], parts[1], names, (0.4,) * channels, (0.3,) * channels)
