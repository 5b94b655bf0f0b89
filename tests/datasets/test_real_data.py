"""Real MNIST, where ``RAYCL_DATA`` has it."""

from __future__ import annotations

import numpy as np
import pytest

from raycl import datasets
from raycl.datasets import DatasetConfig

MNIST = DatasetConfig(name="mnist")


def test_mnist_is_mnist() -> None:
    if missing := datasets.present(MNIST, datasets.data_root()):
        pytest.skip(f"{missing}; set RAYCL_DATA to a folder that has it")
    data = datasets.load(MNIST, datasets.data_root())
    assert data.train.images.shape == (60000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train.labels).tolist() == counts
    assert len(data.test.labels) == 10000
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(data.train.images.mean() / 255 - data.mean[0]) < 1e-4
    assert abs(data.train.images.std() / 255 - data.std[0]) < 1e-4
