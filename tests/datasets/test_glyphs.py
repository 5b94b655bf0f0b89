"""Drawn signs: the same every time, of 64 kinds that can be told apart."""

from __future__ import annotations

import numpy as np

from raycl.datasets import glyphs


def test_counts_and_repeats() -> None:
    train, test = glyphs.load()
    again, _ = glyphs.load()
    assert train.images.shape == (6400, 1, 16, 16)
    assert test.images.shape == (1280, 1, 16, 16)
    assert train.images.dtype == np.uint8
    assert np.array_equal(np.bincount(train.labels), np.full(64, 100))
    assert np.array_equal(np.bincount(test.labels), np.full(64, 20))
    assert np.array_equal(train.images, again.images)


def test_kinds_differ() -> None:
    """The nearest mean image of a kind is right for most test images, 1.6 % being chance."""
    train, test = glyphs.load()
    means = train.images.reshape(64, 100, -1).mean(1)
    flat = test.images.reshape(len(test.labels), -1).astype(float)
    nearest = ((flat[:, None] - means) ** 2).sum(2).argmin(1)
    assert 0.4 < (nearest == test.labels).mean() < 0.98
    assert len(np.unique(train.images.reshape(6400, -1), axis=0)) == 6400
