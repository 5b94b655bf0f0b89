"""Image folders: ``root/class/*.png`` or ``root/train|test/class/*.png``, loose or inside a zip.

``val`` is taken as the test split where there is no ``test``. Without either, of each class every
fifth image in the order of the file names is a test image, or as many as ``hold_out`` says are
drawn. Classes are numbered in the order of their names. A lone folder around the tree (usual in
zips) is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from raycl.datasets import transform
from raycl.datasets.base import Arrays, Files
from raycl.datasets.files import WHERE, decode_all, open_image, open_zip, split_archive
from raycl.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SMALL = 64
"""Pixels: up to this side images are held in memory."""
SAMPLE = 1000
"""Images of a set of files that its statistics are computed from."""
DRAW = 1234
"""Seed of ``hold_out``."""

Tree = dict[str, list[str]]
"""Class name to file names, both sorted; after ``hold_out`` the names are in the order drawn."""


def load(
    path: Path, size: int | None, hold_out: int | None = None
) -> tuple[Arrays, Arrays, tuple[str, ...]] | tuple[Files, Files, tuple[str, ...]]:
    """Training images, test images and class names.

    Args:
        path: A folder, a zip, or a folder inside a zip: ``archive.zip!inner/dir``.
        size: Side to resize to; may be left out where all images have one size.
        hold_out: Test images drawn from each class, where there is no test folder.

    Returns:
        ``Arrays`` for images of at most 64 x 64 pixels (after resizing), else ``Files``.

    Raises:
        UserError: No such path, not a zip, not such a tree, a damaged image, mixed sizes, nothing
            to draw test images from.
    """
    train, test = _splits(path)
    if hold_out is not None:
        if test is not None:
            what = f"'{path}' has test images of its own"
            raise UserError("benchmark.dataset.hold_out", what, "leave out hold_out")
        train, test = _drawn(train, hold_out, path)
    classes = tuple(train)
    names, labels = _flat(train, classes)
    if test is None:
        held = transform.hold_out(labels)
        rare = [c for i, c in enumerate(classes) if not held[labels == i].any()]
        if rare:
            raise UserError(
                WHERE,
                f"class '{rare[0]}' of '{path}' has {len(train[rare[0]])} image(s)",
                "without a test folder each class needs at least 5",
            )
        chosen = np.argsort(held, kind="stable")
        names, labels, count = [names[i] for i in chosen], labels[chosen], int((~held).sum())
    else:
        more, more_labels = _flat(test, classes)
        names, labels, count = names + more, np.append(labels, more_labels), len(names)
    side = size or _common_side(names)
    if side > SMALL:
        train_files = Files(tuple(names[:count]), labels[:count], side)
        return train_files, Files(tuple(names[count:]), labels[count:], side), classes
    images = _stack(decode_all(names, size), names)
    return Arrays(images[:count], labels[:count]), Arrays(images[count:], labels[count:]), classes


def sample(part: Arrays | Files) -> NDArray[np.uint8]:
    """Images to compute statistics from: all, or at most 1,000 files at even distances."""
    if isinstance(part, Arrays):
        return part.images
    chosen = np.linspace(0, len(part.paths) - 1, min(SAMPLE, len(part.paths))).round().astype(int)
    return np.stack(decode_all([part.paths[i] for i in chosen], part.size, colour=True))


def subfolders(path: Path) -> list[str]:
    """Names of the folders below ``path`` that hold images, sorted."""
    tree, _ = _listing(path)
    return sorted({name.parts[0] for name in tree if len(name.parts) > 1})


def _listing(path: Path) -> tuple[list[PurePosixPath], str]:
    """Image files below ``path``, relative to it and sorted, and what to put before them."""
    archive, inner = split_archive(path)
    if not archive.exists():
        raise UserError(WHERE, f"there is no '{archive}'", "relative paths start at the data root")
    if archive.is_dir():
        found = [
            os.path.relpath(Path(folder) / file, archive)
            for folder, _, files in os.walk(archive, followlinks=True)
            for file in files
        ]
        start = f"{archive.resolve()}/"
    else:
        prefix = f"{inner}/" if inner else ""
        members = open_zip(archive.resolve()).namelist()
        found = [name.removeprefix(prefix) for name in members if name.startswith(prefix)]
        start = f"{archive.resolve()}!{prefix}"
    names = [PurePosixPath(name) for name in found if name.lower().endswith(SUFFIXES)]
    names = [n for n in names if not any(p[0] == "." or p == "__MACOSX" for p in n.parts)]
    if not names:
        raise UserError(WHERE, f"'{path}' holds no images", f"known: {', '.join(SUFFIXES)}")
    return sorted(names), start


def _splits(path: Path) -> tuple[Tree, Tree | None]:
    names, start = _listing(path)
    parts = [name.parts for name in names]
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 2:
        start, parts = f"{start}{parts[0][0]}/", [p[1:] for p in parts]
    top = {p[0] for p in parts}
    split = "test" if "test" in top else "val"
    if not {"train", split} <= top:
        return _tree(parts, start, path), None
    train, test = (
        _tree([p[1:] for p in parts if p[0] == s], f"{start}{s}/", path) for s in ("train", split)
    )
    if set(train) != set(test):
        odd = sorted(set(train) ^ set(test))[0]
        there, missing = ("train", split) if odd in train else (split, "train")
        raise UserError(WHERE, f"class '{odd}' of '{path}' is in {there} but not in {missing}")
    return train, test


def _drawn(tree: Tree, count: int, path: Path) -> tuple[Tree, Tree]:
    """Class by class the names are shuffled by one generator; the last ``count`` are for testing.

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
    for p in parts:
        if len(p) != 2:
            raise UserError(
                WHERE,
                f"'{start}{'/'.join(p)}' is not in a class folder of '{path}'",
                "expected class/image or train|test/class/image",
            )
        tree.setdefault(p[0], []).append(f"{start}{p[0]}/{p[1]}")
    return dict(sorted(tree.items()))


def _flat(tree: Tree, classes: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    names = [name for c in classes for name in tree[c]]
    counts = [len(tree[c]) for c in classes]
    return names, np.repeat(np.arange(len(classes), dtype=np.int64), counts)


def _common_side(names: Sequence[str]) -> int:
    """The larger side of the first image; if that is not small, all images must be as large."""
    with open_image(names[0]) as image:
        first = image.size
    if max(first) <= SMALL:
        return max(first)
    for name in names:
        with open_image(name) as image:
            if image.size != first:
                raise _mixed(names[0], first, name, image.size)
    if first[0] != first[1]:
        raise UserError(WHERE, f"images of {first[0]} x {first[1]} pixels", "set size")
    return first[0]


def _stack(images: list[NDArray[np.uint8]], names: Sequence[str]) -> NDArray[np.uint8]:
    first = images[0].shape[1:]
    for image, name in zip(images, names, strict=True):
        if image.shape[1:] != first:
            raise _mixed(names[0], first[::-1], name, image.shape[:0:-1])
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *first), np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[:] = image
    return stacked


def _mixed(a: str, a_size: tuple[int, ...], b: str, b_size: tuple[int, ...]) -> UserError:
    sizes = f"{a_size[0]} x {a_size[1]} ('{a}') and {b_size[0]} x {b_size[1]} ('{b}')"
    return UserError(WHERE, f"images of several sizes: {sizes}", "set size")
