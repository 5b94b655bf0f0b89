"""What a data set is before it is on a device: arrays (or file names), labels and statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Arrays:
    """Small images, all in memory.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0-255. Read-only when shared through Ray.
        labels: int64, shape (N,), class ids 0..K-1.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Files:
    """Large images, read when needed.

    Attributes:
        paths: N file names; a member of a zip is ``"/abs/archive.zip!inner/name.jpg"``.
        labels: int64, shape (N,), class ids 0..K-1.
        size: Side in pixels every image is resized to.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    size: int


@dataclass(frozen=True)
class Dataset:
    """A data set as loaded once per node and shared by all trials.

    Attributes:
        name: The name it was asked for.
        train: Training images.
        test: Test images, never seen by a method.
        classes: Class names; the position is the class id.
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
    """

    name: str
    train: Arrays | Files
    test: Arrays | Files
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        if isinstance(self.train, Files):
            return (3, self.train.size, self.train.size)
        _, channels, height, width = self.train.images.shape
        return (channels, height, width)
