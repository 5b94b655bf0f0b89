"""Image folders: ``root/class/*.png`` or ``root/train|test/class/*.png``, loose or inside a zip.

``val`` is taken as the test split where there is no ``test``. Where there are ``train``, ``val``
and ``test``, ``val`` is read as the validation set if that is asked for, else not at all. Without
any of them, of each class every fifth image in the order of the file names is a test image, or as
many as ``hold_out`` says are drawn. Classes are numbered in the order of their names. A lone folder
around the tree (usual in zips) is skipped. Lists of the images for training and testing
(``split_file``) take the place of all that, see ``raycl.datasets.split_lists``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycl.datasets import listing, memory, split_lists
from raycl.datasets.base import Arrays, Budget, Files
from raycl.datasets.files import WHERE, decode_all, measure_all
from raycl.datasets.left_out import LeftOut
from raycl.datasets.listing import Listing
from raycl.errors import UserError, printable

SMALL = 64
"""Largest side, in pixels, of images that are held in memory."""
SAMPLE = 1000
"""Number of images that the statistics of a set of files are computed from."""
DRAW = 1234
"""Seed of ``hold_out``."""
UNREAD = "images outside the folders of the splits"
SPLITS = ("train", "val", "test")

Tree = dict[str, list[str]]
"""Class name to file names, both sorted; after a draw the file names are in the order drawn."""


class Parts(NamedTuple):
    """The sets that a tree holds: either all three are ``Arrays``, or all are ``Files``."""

    train: Arrays | Files
    test: Arrays | Files
    classes: tuple[str, ...]
    validation: Arrays | Files | None = None
    left_out: LeftOut = LeftOut()


def load(
    path: Path,
    size: int | None,
    hold_out: int | None = None,
    *,
    budget: Budget | None = None,
    validation: bool = False,
    colour: bool = False,
    shorter: int | None = None,
    lists: tuple[Path, Path] | None = None,
) -> Parts:
    """Training images, test images, class names, and validation images if they are asked for.

    Args:
        path: A folder, a zip, or a folder inside a zip: ``archive.zip!inner/dir``.
        size: Side to resize to; may be left out where all images have one size.
        hold_out: Test images drawn from each class, where there is no test folder.
        budget: Fewer images and classes; applied after training and test images were told apart.
        validation: The tree has ``train``, ``val`` and ``test``; a class with training images may
            lack images of the other two.
        colour: Grey images get three equal channels.
        shorter: Pixels that the shorter side is resized to, before a square of ``size`` is cut out
            of the middle.
        lists: Files that name the training and the test images.

    Returns:
        ``Arrays`` for images of at most 64 x 64 pixels (after resizing), else ``Files``.

    Raises:
        UserError: No such path, not a zip, not such a tree, a damaged image, mixed sizes, nothing
            to draw test images from, a budget of less than an image per class, more images than
            memory holds.
    """
    found = listing.images(path)
    if lists is not None:
        names = [found.start + str(name) for name in found.names]
        listed = split_lists.trees(lists, names, path)
        classes = list(listed[0])
        parts = _parts(listed, classes, size, colour, shorter)
        return Parts(parts[0], parts[1], tuple(classes), left_out=found.left_out)
    train, val, test, unread = _splits(found, path, validation)
    left_out = LeftOut.merged([found.left_out, LeftOut.of({UNREAD: unread})])
    if hold_out is not None:
        if test is not None:
            what = f"'{path}' has test images of its own"
            raise UserError("benchmark.dataset.hold_out", what, "leave out hold_out")
        train, test = _drawn(train, hold_out, path)
    elif test is None:
        train, test = _fifths(train, path)
    if budget is not None:
        classes = list(train)[: budget.max_classes]
        train = _within(budget, train, classes, False, path)
        test = _within(budget, test, classes, True, path)
        val = None if val is None else _within(budget, val, classes, True, path)
    trees = [train, test] if val is None else [train, test, val]
    parts = _parts(trees, tuple(train), size, colour, shorter)
    held = parts[2] if val is not None else None
    return Parts(parts[0], parts[1], tuple(train), held, left_out)


def _parts(
    trees: Sequence[Tree],
    classes: Sequence[str],
    size: int | None,
    colour: bool,
    shorter: int | None,
) -> list[Arrays] | list[Files]:
    """Make a set of images of each tree: all decoded now if they are small, else all files."""
    flat = [_flat(tree, classes) for tree in trees]
    names = [name for some, _ in flat for name in some]
    headers = measure_all(names)
    side = size or _common_side(names, [header.size for header in headers])
    if side > SMALL:
        return [Files(tuple(some), labels, side, shorter) for some, labels in flat]
    channels = 3 if colour else max(header.channels for header in headers)
    memory.check(len(names), channels, (side, side) if size else headers[0].size, WHERE)
    images = _stack(decode_all(names, size, colour=colour, shorter=shorter))
    ends = np.cumsum([len(labels) for _, labels in flat]).tolist()
    return [
        Arrays(images[end - len(labels) : end], labels)
        for end, (_, labels) in zip(ends, flat, strict=True)
    ]


def sample(part: Arrays | Files) -> NDArray[np.uint8]:
    """Images to compute statistics from: all, or at most 1,000 files at even distances."""
    if isinstance(part, Arrays):
        return part.images
    chosen = np.linspace(0, len(part.paths) - 1, min(SAMPLE, len(part.paths))).round().astype(int)
    names = [part.paths[i] for i in chosen]
    return np.stack(decode_all(names, part.size, colour=True, shorter=part.shorter))


def _splits(
    listed: Listing, path: Path, validation: bool
) -> tuple[Tree, Tree | None, Tree | None, list[str]]:
    """Training, validation and test images, and the names of images that are in none of them.

    For what the tree has no folder of there is ``None``.
    """
    start, parts = listed.start, [name.parts for name in listed.names]
    while _is_lone(parts, validation):
        start, parts = f"{start}{parts[0][0]}/", [p[1:] for p in parts]
    top = {p[0] for p in parts}
    split = "test" if "test" in top else "val"
    if not (validation or {"train", split} <= top):
        return _tree(parts, start, path), None, None, []
    read = SPLITS if validation else ("train", split)
    trees = {s: _tree([p[1:] for p in parts if p[0] == s], f"{start}{s}/", path) for s in read}
    unread = [start + "/".join(p) for p in parts if p[0] not in read]
    train, test = trees["train"], trees[split]
    if validation:
        _check_splits(trees, path)
        return train, trees["val"], test, unread
    if set(train) != set(test):
        odd = sorted(set(train) ^ set(test))[0]
        there, missing = ("train", split) if odd in train else (split, "train")
        raise UserError(WHERE, f"class '{odd}' of '{path}' is in {there} but not in {missing}")
    return train, None, test, unread


def _is_lone(parts: Sequence[tuple[str, ...]], validation: bool) -> bool:
    """Whether all images are in one folder that is neither a class nor a split."""
    if len({p[0] for p in parts}) != 1 or min(map(len, parts)) <= 2:
        return False
    return not (validation and parts[0][0] in SPLITS)


def _check_splits(trees: Mapping[str, Tree], path: Path) -> None:
    """Refuse a tree with an empty split, or with a class that has no training images."""
    for split in SPLITS:
        if not trees[split]:
            what = f"'{path}' has no images in a folder '{split}'"
            hint = "validation: folder takes train, val and test as they are"
            raise UserError("benchmark.validation", what, hint)
        if odd := sorted(set(trees[split]) - set(trees["train"])):
            what = f"class '{odd[0]}' of '{path}' is in {split} but not in train"
            raise UserError(WHERE, what)


def _fifths(tree: Tree, path: Path) -> tuple[Tree, Tree]:
    """Split training images: every fifth one of each class is for testing."""
    for name, images in tree.items():
        if len(images) < 5:
            raise UserError(
                WHERE,
                f"class '{name}' of '{path}' has {len(images)} image(s)",
                "without a test folder each class needs at least 5",
            )
    train = {c: [n for i, n in enumerate(names) if i % 5 != 4] for c, names in tree.items()}
    return train, {c: names[4::5] for c, names in tree.items()}


def _within(budget: Budget, tree: Tree, classes: Sequence[str], held: bool, path: Path) -> Tree:
    """The images of these classes that a budget leaves, in the order drawn."""
    count = budget.per_class(len(classes), held=held)
    if not count:
        part = "a tenth of the budget" if held else "the budget"
        what = f"{part}, shared by the {len(classes)} classes of '{path}', is no image for each"
        raise UserError("benchmark.budget", what, "set a larger one")
    rng = random.Random(budget.seed)
    kept: Tree = {}
    for name in classes:
        drawn = list(tree.get(name, ()))
        rng.shuffle(drawn)
        kept[name] = drawn[:count]
    return kept


def _drawn(tree: Tree, count: int, path: Path) -> tuple[Tree, Tree]:
    """Draw test images: names are shuffled class by class, the last ``count`` are for testing.

    The rule for miniImageNet of BLIP, arXiv 2105.04444, there in the order in which the file
    system lists classes and images, here in that of their names.
    """
    rng = np.random.RandomState(DRAW)
    train: Tree = {}
    test: Tree = {}
    for name, images in tree.items():
        if len(images) <= count:
            raise UserError(
                "benchmark.dataset.hold_out",
                f"class '{name}' of '{path}' has {len(images)} image(s)",
                f"to keep {count} for testing each class needs at least {count + 1}",
            )
        drawn = list(images)
        rng.shuffle(drawn)
        train[name], test[name] = drawn[:-count], drawn[-count:]
    return train, test


def _tree(parts: Sequence[tuple[str, ...]], start: str, path: Path) -> Tree:
    tree: Tree = {}
    folders: dict[str, str] = {}
    for p in parts:
        if len(p) != 2:
            raise UserError(
                WHERE,
                f"'{printable(start + '/'.join(p))}' is not in a class folder of '{path}'",
                "expected class/image or train|test/class/image",
            )
        name = folders.get(p[0])
        if name is None:
            name = folders[p[0]] = listing.readable(p[0], path)
            if name in tree:
                what = (
                    f"'{path}' has two folders for class '{name}', written in two ways (NFC, NFD)"
                )
                raise UserError(WHERE, what, "rename one")
        tree.setdefault(name, []).append(f"{start}{p[0]}/{p[1]}")
    return dict(sorted(tree.items()))


def _flat(tree: Tree, classes: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """File names and labels, class after class; a class may be missing from the tree."""
    names = [name for c in classes for name in tree.get(c, ())]
    counts = [len(tree.get(c, ())) for c in classes]
    return names, np.repeat(np.arange(len(classes), dtype=np.int64), counts)


def _common_side(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> int:
    """The larger side of the images, all of which must have one size."""
    first = sizes[0]
    for name, size in zip(names, sizes, strict=True):
        if size != first:
            pairs = ((names[0], first), (name, size))
            text = " and ".join(f"{w} x {h} ('{printable(n)}')" for n, (w, h) in pairs)
            raise UserError(WHERE, f"images of several sizes: {text}", "set size")
    if max(first) > SMALL and first[0] != first[1]:
        raise UserError(WHERE, f"images of {first[0]} x {first[1]} pixels", "set size")
    return max(first)


def _stack(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[:] = image
    return stacked
