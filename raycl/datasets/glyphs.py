"""Drawn signs of 64 kinds, 16 x 16 grey pixels, made on the spot: something to pre-train on.

A kind is one to three strokes, each a quadratic Bézier curve through random points. An image is
its kind under a random affine map, with a pen and an intensity of its own and noise. Nothing in it
comes from a data set, so networks that have learnt it have seen no image of any stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycl.datasets.base import Arrays

KINDS, SIDE = 64, 16
TRAIN, TEST = 100, 20
"""Number of training and test images of each kind."""
POINTS = 12
"""Number of points of a stroke at which the pen is put down."""


def load() -> tuple[Arrays, Arrays]:
    """Training and test images, (N, 1, 16, 16): 100 and 20 of each kind, the same every time."""
    generator = np.random.default_rng(64)
    images = np.stack([_images(_strokes(generator), generator) for _ in range(KINDS)])
    labels = np.arange(KINDS).repeat(TRAIN + TEST).reshape(KINDS, -1)
    train, test = (
        Arrays(images[:, part].reshape(-1, 1, SIDE, SIDE), labels[:, part].reshape(-1))
        for part in (slice(TRAIN), slice(TRAIN, None))
    )
    return train, test


def _strokes(generator: np.random.Generator) -> NDArray[np.float64]:
    """The points of a kind, (strokes * POINTS, 2), in a square from -1 to 1."""
    corners = generator.uniform(-0.8, 0.8, (generator.integers(1, 4), 3, 1, 2))
    at = np.linspace(0, 1, POINTS)[:, None]
    weights = np.stack([(1 - at) ** 2, 2 * at * (1 - at), at**2])
    return np.asarray((weights * corners).sum(1).reshape(-1, 2))


def _images(points: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Images of one kind, uint8 (N, SIDE * SIDE)."""
    count = TRAIN + TEST
    maps = np.eye(2) + generator.normal(0, 0.18, (count, 2, 2))
    moved = points @ maps + generator.normal(0, 0.12, (count, 1, 2))
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    pixels = np.stack([columns, rows], 1) * 2 / (SIDE - 1) - 1
    distance = ((moved[:, :, None] - pixels) ** 2).sum(3).min(1)
    pen = generator.uniform(0.08, 0.13, (count, 1))
    ink = np.exp(-distance / (2 * pen**2)) * generator.uniform(0.7, 1, (count, 1))
    ink += generator.normal(0, 0.05, ink.shape)
    return np.asarray((ink.clip(0, 1) * 255).round().astype(np.uint8))
