"""What a data set is before it is on a device: arrays (or file names), labels and statistics."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator


class DatasetConfig(BaseModel):
    """Which images. In a sweep file a bare name stands for ``{name: NAME}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="digits, mnist, ..., folder, idx: see `raycl data list`")
    path: str | None = Field(
        None,
        description="for folder (also a.zip or a.zip!inner) and idx; from the data root",
    )
    size: int | None = Field(None, ge=4, le=1024, description="resize images to this side, pixels")
    limit: int | None = Field(
        None, ge=1, description="at most this many training images per class (the first ones)"
    )
    hold_out: int | None = Field(
        None,
        ge=1,
        description="folder without a test folder: images per class kept for testing, drawn by "
        "numpy's RandomState(1234); default: every fifth",
    )
    mean: tuple[float, ...] | None = Field(None, description="per channel, in units of 0..1")
    std: tuple[float, ...] | None = Field(None, description="per channel, in units of 0..1")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """Name for tables: the data set's, or the stem of its path."""
        if self.path is None:
            return self.name
        last = re.split(r"[/!]", self.path.rstrip("/"))[-1].removesuffix(".zip")
        return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-") or self.name


def key(config: DatasetConfig) -> str:
    """A short string that is the same for, and only for, the same data.

    >>> key(DatasetConfig(name="mnist"))
    'mnist'
    """
    given = config.model_dump_json(exclude_defaults=True)
    if given == DatasetConfig(name=config.name).model_dump_json(exclude_defaults=True):
        return config.name
    return f"{config.name}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Arrays:
    """Small images, all in memory.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0-255. Read-only when shared through Ray.
        labels: int64, shape (N,), class ids 0..K-1.
        size: Side in pixels every batch is resized to, on the device; ``None``: as they are.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    size: int | None = None


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
        size = self.train.size
        return (channels, size or height, size or width)
