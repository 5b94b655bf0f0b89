"""Data sets before they are on a device: arrays or file names, labels, and statistics."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from raycl.datasets.left_out import LeftOut


class Budget(BaseModel):
    """A number of images for a whole task, which its classes share evenly.

    The sampling rule of CLR, arXiv 2307.11386, whose numbers are the defaults. Of each class
    ``round(budget / classes)`` images are taken, half rounded to even, or all if there are fewer;
    validation and test images get a tenth of the budget each. For each of the three sets
    ``random.Random(seed)`` starts anew and shuffles the images of one class after the other, and
    the first ones are taken. CLR's order of classes and images is that of the rows of its data
    base, ours that of their names, so the images are not the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    small: int = Field(2560, ge=1, description="training images of a task with few classes")
    large: int = Field(5120, ge=1, description="training images of a task with many classes")
    classes: int = Field(60, ge=1, description="number of classes from which on they are many")
    max_classes: int = Field(
        300, ge=2, description="largest number of classes, the first in the order of their names"
    )
    seed: int = Field(27, ge=0, lt=2**32, description="seed of the choice")

    def per_class(self, classes: int, *, held: bool = False) -> int:
        """Number of images that one class gets.

        Args:
            classes: Classes of the task, after ``max_classes``.
            held: For validation or test images, which get a tenth.
        """
        budget = self.large if classes >= self.classes else self.small
        return round(Fraction(budget, (10 if held else 1) * classes))


class Resize(BaseModel):
    """A way to make squares of one size from images of any shape, keeping their proportions.

    The shorter side is resized to ``shorter`` pixels (bilinear, antialiased), and the middle of
    that is cut out. It is done to all images when they are read, those for training included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shorter: int = Field(ge=4, le=1024, description="the shorter side becomes so many pixels long")
    crop: int = Field(ge=4, le=1024, description="side of the square cut out of the middle, pixels")

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.crop > self.shorter:
            raise ValueError(f"crop is {self.crop}, more than shorter, {self.shorter}")
        return self


class SplitFiles(BaseModel):
    """Two lists that say which images of a folder are for training and which for testing.

    Each is a YAML file with the keys ``data``, paths of images that end in ``class/file``, and
    ``targets``, their class ids 0..K-1 in the same order. A folder is one class, and classes are
    numbered as the lists say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(description="YAML file of the training images; from the data root")
    test: str = Field(description="YAML file of the test images; from the data root")


class Part(BaseModel):
    """One of several parts of the training images that have no image in common.

    Image i of each class, counted from 0 in the order of the data set, is in part ``i mod of``. So
    one sweep can pre-train on ``{of: 2, take: 0}`` and another learn ``{of: 2, take: 1}``. Where
    ``budget`` or ``hold_out`` choose the images, only the same choice has the same parts. Test
    images stay as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: int = Field(ge=2, le=1000, description="number of parts")
    take: int = Field(ge=0, description="which of them, from 0")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.take >= self.of:
            raise ValueError(f"take is {self.take}, but {self.of} parts end with {self.of - 1}")
        return self


class DatasetConfig(BaseModel):
    """The images of a data set; in a sweep file a bare name stands for ``{name: NAME}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="digits, mnist, ..., folder, idx: see `raycl data list`")
    path: str | None = Field(
        None,
        description="folder: a folder, a.zip or a.zip!inner; idx: a folder; from the data root",
    )
    size: int | None = Field(None, ge=4, le=1024, description="resize images to this side, pixels")
    limit: int | None = Field(
        None, ge=1, description="largest number of training images per class (the first ones)"
    )
    hold_out: int | None = Field(
        None,
        ge=1,
        description="folder without a test folder: images per class kept for testing, drawn by "
        "numpy's RandomState(1234); default: every fifth",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="mean per channel, in units of 0..1; with three values a folder's grey images "
        "get three equal channels",
    )
    std: tuple[float, ...] | None = Field(
        None, description="standard deviation per channel, in units of 0..1"
    )
    budget: Budget | None = Field(
        None, description="folder: images of the whole data set, shared evenly by its classes"
    )
    validation: bool = Field(
        False,
        description="folder with train, val and test: read val, too; a benchmark's "
        "`validation: folder` sets it",
    )

    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="names of the classes to take, in this order; default: all"
    )
    test_limit: int | None = Field(
        None, ge=1, description="largest number of test images per class (the first ones)"
    )
    invert: bool = Field(False, description="black becomes white; images in memory only")
    resize: Resize | None = Field(
        None,
        description="folder: keep the proportions of images, unlike size: resize the shorter side "
        "and cut out the middle",
    )
    split_file: SplitFiles | None = Field(
        None, description="folder: lists of the images for training and for testing"
    )
    part: Part | None = Field(
        None, description="only a part of the training images, e.g. {of: 2, take: 0}; before limit"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [unicodedata.normalize("NFC", str(one)) for one in value]

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        check_budget(self.budget, self.limit)
        if self.resize is not None and self.size is not None:
            raise ValueError("size and resize both say how large images become: leave one out")
        if self.split_file is not None:
            for name in ("hold_out", "budget", "validation"):
                if getattr(self, name):
                    raise ValueError(f"split_file says which images are taken: leave out {name}")
        return self

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), LATER)

    @property
    def label(self) -> str:
        """Name for tables: the name of the data set, or the stem of its path."""
        if self.path is None:
            return self.name
        last = re.split(r"[/!]", self.path.rstrip("/"))[-1]
        last = re.sub(r"(?i)\.zip$", "", last)
        return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-") or self.name


LATER = ("budget", "validation", "classes", "test_limit", "invert", "resize", "split_file", "part")
"""Options that came after data sets had keys; see ``without_defaults``."""


def check_budget(budget: Budget | None, limit: int | None) -> None:
    """Raise ``ValueError`` where two options say how many images are taken."""
    if budget is not None and limit is not None:
        raise ValueError("budget and limit both say how many images are taken: leave one out")


def without_defaults(
    model: BaseModel, dumped: dict[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """The dump of a model without those of the named options that have their default.

    Keys of data sets and trials are hashes of what is dumped. An option that came later is left
    out where nobody uses it, so that the keys of earlier sweeps stay as they are.
    """
    fields = type(model).model_fields
    unused = {name for name in names if getattr(model, name) == fields[name].default}
    return {name: value for name, value in dumped.items() if name not in unused}


def key(config: DatasetConfig) -> str:
    """A short string that is equal for equal data, and only for that.

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
        shorter: Pixels that the shorter side is resized to, before a square of ``size`` is cut out
            of the middle; ``None``: images are made square, whatever their proportions.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    size: int
    shorter: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set as it was loaded: arrays, which all trials of a node share, or names of files.

    Images in files are read by each trial, batch by batch.

    Attributes:
        name: The name in the sweep file.
        train: Training images.
        test: Test images, never seen by a method.
        classes: Class names; the position is the class id.
        mean: Mean per channel, in units of 0..1.
        std: Standard deviation per channel, in units of 0..1.
        validation: Validation images, where the files have a set of them and it was asked for.
        left_out: Files and folders that were passed over.
    """

    name: str
    train: Arrays | Files
    test: Arrays | Files
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Arrays | Files | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        if isinstance(self.train, Files):
            return (3, self.train.size, self.train.size)
        _, channels, height, width = self.train.images.shape
        size = self.train.size
        return (channels, size or height, size or width)
