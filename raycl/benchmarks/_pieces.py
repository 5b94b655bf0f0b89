"""Builds a stream from data sets: which images, which output ids, without copying an image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raycl.benchmarks.base import Stream, StreamInfo, TaskData, TaskInfo, Validation
from raycl.datasets.base import Arrays, Dataset, Files
from raycl.datasets.examples import Examples, ImageSet, Transform
from raycl.datasets.files import FileSet
from raycl.errors import UserError


class Source:
    """A data set on a device; its images are moved there once, and all tasks point into them."""

    def __init__(self, data: Dataset, device: torch.device | str) -> None:
        self.data, self.device = data, torch.device(device)
        self._stores = {
            id(part): on_device(part.images, self.device) if isinstance(part, Arrays) else part
            for part in (data.train, data.test, data.validation)
            if part is not None
        }
        self._size = data.train.size if isinstance(data.train, Arrays) else None

    def examples(
        self, part: Arrays | Files, rows: NDArray[np.int64], labels: NDArray[np.int64], piece: Piece
    ) -> Examples:
        """The images ``rows`` of ``data.train``, ``data.test`` or ``data.validation``."""
        store, picked = self._stores[id(part)], torch.from_numpy(rows)
        outputs = torch.from_numpy(labels).to(self.device)
        mean, std = piece.statistics
        rest = outputs, mean, std, piece.transform
        if isinstance(store, Files):
            return FileSet(store, picked, *rest)
        return ImageSet(store, picked.to(self.device), *rest, self._size)


@dataclass(frozen=True)
class Piece:
    """One task: classes of one source.

    Attributes:
        source: The data set.
        classes: Its class ids, in task order.
        outputs: Their output ids.
        about: The words about the task that go into its name.
        transform: Fixed change of the images.
        shape: Shape of the images after ``transform``, where it is not the data set's.
        normalisation: Mean and std after ``transform``, where they are not the data set's.
    """

    source: Source
    classes: tuple[int, ...]
    outputs: tuple[int, ...]
    about: str
    transform: Transform | None = None
    shape: tuple[int, int, int] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the transformed images."""
        return self.normalisation or (self.source.data.mean, self.source.data.std)


def on_device(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """The images as a tensor; on the CPU the same memory, which may be shared and read-only.

    Nothing may write to it in place: torch does not know that the pages are protected.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(images).to(device)


def assemble(
    pieces: Sequence[Piece], readouts: tuple[str, ...], validation: Validation, seed: int
) -> Stream:
    """Assemble the stream of these tasks.

    The validation set of a task are the first ``int(validation * n)`` entries of
    ``RandomState(seed).permutation(n)`` over its own n training images in the data set's order;
    with ``train`` it is the training set, and with ``folder`` the data set's own.

    Raises:
        UserError: Images of different shapes; too few images for a validation set; a task without
            test images, or without validation images of its own where they are asked for.
    """
    shapes = {piece.shape or piece.source.data.shape for piece in pieces}
    if len(shapes) > 1:
        text = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UserError("benchmark.datasets", f"images of different shapes: {text}", "set size")
    class_names: dict[int, str] = {}
    for piece in pieces:
        for output, c in zip(piece.outputs, piece.classes, strict=True):
            class_names.setdefault(output, piece.source.data.classes[c])
    info = StreamInfo(
        tasks=tuple(
            TaskInfo(i, f"{i + 1}/{len(pieces)} ({piece.about})", piece.outputs)
            for i, piece in enumerate(pieces)
        ),
        input_shape=shapes.pop(),
        num_outputs=len(class_names),
        class_names=tuple(class_names[output] for output in range(len(class_names))),
        mean=tuple(piece.statistics[0] for piece in pieces),
        std=tuple(piece.statistics[1] for piece in pieces),
        readouts=readouts,
    )
    return Stream(info, tuple(_cut(piece, validation, seed) for piece in pieces))


def _cut(piece: Piece, validation: Validation, seed: int) -> TaskData:
    data = piece.source.data
    output_of = np.full(len(data.classes), -1, np.int64)
    output_of[list(piece.classes)] = piece.outputs
    held: Examples | None = None
    outputs = output_of[data.train.labels]
    rows = np.flatnonzero(outputs >= 0)
    if isinstance(validation, float) and validation:
        count = int(validation * len(rows))
        if count == 0:
            raise UserError(
                "benchmark.validation",
                f"{validation} of {len(rows)} images ({piece.about}) is none",
                "a larger share, or 0 for no validation set",
            )
        order = np.random.RandomState(seed).permutation(len(rows))
        held_rows, rows = rows[order[:count]], rows[order[count:]]
        held = piece.source.examples(data.train, held_rows, outputs[held_rows], piece)
    train = piece.source.examples(data.train, rows, outputs[rows], piece)
    if validation == "train":
        held = train
    elif validation == "folder":
        held = _all(piece, data.validation, output_of, "validation")
    return TaskData(train, held, _all(piece, data.test, output_of, "test"))


def _all(
    piece: Piece, part: Arrays | Files | None, output_of: NDArray[np.int64], which: str
) -> Examples:
    """All images of the piece's classes in one part of its data set."""
    name = piece.source.data.name
    if part is not None:
        outputs = output_of[part.labels]
        rows = np.flatnonzero(outputs >= 0)
        if len(rows):
            return piece.source.examples(part, rows, outputs[rows], piece)
    raise UserError("benchmark.dataset", f"{name} has no {which} images of {piece.about}")


def groups(classes: Sequence[int], tasks: int, where: str, name: str) -> list[tuple[int, ...]]:
    """Cut classes into T tasks in order; of K classes the first K mod T tasks get one more.

    Raises:
        UserError: More tasks than classes.
    """
    if tasks > len(classes):
        raise UserError(where, f"{tasks} tasks, but {name} has {len(classes)} classes")
    return [tuple(part.tolist()) for part in np.array_split(np.asarray(classes), tasks)]


def own_outputs(parts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """A range of output ids for each task, one after the other."""
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [tuple(range(end - len(part), end)) for end, part in zip(ends, parts, strict=True)]


def own_readouts(parts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Readouts if each task has outputs of its own: domain only if all have equally many."""
    even = len({len(part) for part in parts}) == 1
    return ("class", "task", "domain") if even else ("class", "task")


def domains(
    outputs: str, classes: int, tasks: int
) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
    """Output ids and readouts where all tasks have the same classes: ``shared`` or ``separate``."""
    parts = [tuple(range(classes))] * tasks
    if outputs == "shared":
        return parts, ("domain", "task")
    return own_outputs(parts), own_readouts(parts)


def task_order(count: int, seed: int) -> list[int]:
    """``RandomState(seed).permutation(count)``."""
    return [int(i) for i in np.random.RandomState(seed).permutation(count)]


def check_permutation(order: Sequence[int], count: int, where: str) -> list[int]:
    """Check that an order is a permutation, and return it.

    Raises:
        UserError: It does not hold each of 0..count-1 once.
    """
    if sorted(order) != list(range(count)):
        wrong = sorted(set(order) - set(range(count))) or sorted(set(range(count)) - set(order))
        detail = f"has {len(order)} entries; see {wrong[:5]}" if wrong else "has repetitions"
        raise UserError(where, f"must hold each of 0..{count - 1} once: it {detail}")
    return list(order)


def describe(names: Sequence[str]) -> str:
    """Class names for a task's name, at most five of them."""
    return ", ".join(names) if len(names) <= 5 else f"{len(names)} classes"


def fitted(sources: Sequence[Source], about: Sequence[str], size: int | None) -> list[Piece]:
    """One task for each data set, with outputs of its own and all images of one shape.

    Args:
        sources: The data sets.
        about: For the tasks' names.
        size: Smaller images get a border of zeros up to this side; ``None``: sizes stay.

    Raises:
        UserError: Images are larger than ``size``.
    """
    channels = max(source.data.shape[0] for source in sources)
    classes = [tuple(range(len(source.data.classes))) for source in sources]
    pieces = []
    for i, (source, outputs) in enumerate(zip(sources, own_outputs(classes), strict=True)):
        own_channels, height, width = source.data.shape
        shape = (channels, size or height, size or width)
        if height > shape[1] or width > shape[2]:
            raise UserError(
                "benchmark.size",
                f"images of {source.data.name} have {width} x {height} pixels, more than {size}",
                "set a larger size here, or a smaller one for the data set",
            )
        border = (shape[2] - width, shape[1] - height)
        fit = partial(_fit, shape=shape) if (own_channels, *border) != (channels, 0, 0) else None
        mean, std = np.asarray(source.data.mean), np.asarray(source.data.std)
        # E[x] and E[x^2] shrink by the share of the pixels that are not border
        share = height * width / (shape[1] * shape[2])
        std = np.sqrt((std**2 + mean**2) * share - (mean * share) ** 2)
        mean = np.broadcast_to(mean * share, channels)
        normalisation = tuple(mean.tolist()), tuple(np.broadcast_to(std, channels).tolist())
        pieces.append(Piece(source, classes[i], outputs, about[i], fit, shape, normalisation))
    return pieces


def _fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    below, right = shape[1] - images.shape[2], shape[2] - images.shape[3]
    border = (right // 2, right - right // 2, below // 2, below - below // 2)
    return F.pad(images, border).expand(-1, shape[0], -1, -1)
