"""Tiny-ImageNet, read from the folders of its official zip, ``tiny-imagenet-200``.

``wnids.txt`` names the classes; ``train/WNID/images/*.JPEG`` are 500 training images of each. The
official validation images (``val/images``, their classes in ``val/val_annotations.txt``) are the
test images here, as everywhere: the official test images have no public labels. Classes are
numbered in the order of their sorted WordNet ids. Source: the course CS231n of Stanford, a subset
of ILSVRC 2014.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycl.datasets.base import Arrays
from raycl.datasets.files import decode_all
from raycl.errors import UserError

WHERE = "benchmark.dataset"
SHAPE = (3, 64, 64)
CHUNK = 4096
TRAIN, VAL = 500, 50
"""Images of each class in the two splits."""


def load(directory: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training images, test images and class names (WordNet ids).

    Args:
        directory: Holds ``wnids.txt``, ``train`` and ``val``.

    Raises:
        UserError: A class with too few or too many images, an annotation of an unknown class or
            without one, a damaged image.
    """
    classes = tuple(sorted((directory / "wnids.txt").read_text().split()))
    train = [sorted((directory / "train" / name / "images").glob("*.JPEG")) for name in classes]
    marked = _annotations(directory / "val" / "val_annotations.txt")
    unknown = sorted(set(marked.values()) - set(classes))
    if unknown:
        raise UserError(WHERE, f"'{directory}/val' has the class {unknown[0]}, not in wnids.txt")
    held = Counter(marked.values())
    for name, images in zip(classes, train, strict=True):
        for split, count, right in (("train", len(images), TRAIN), ("val", held[name], VAL)):
            if count != right:
                what = f"class {name} has {count} images in '{directory / split}', not {right}"
                raise UserError(WHERE, what, "unpack the zip again; for fewer images see limit")
    number = {name: i for i, name in enumerate(classes)}
    test_labels = np.array([number[name] for name in marked.values()], np.int64)
    counts = [len(images) for images in train]
    train_labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return (
        Arrays(_read([path for images in train for path in images]), train_labels),
        Arrays(_read([directory / "val" / "images" / file for file in marked]), test_labels),
        classes,
    )


def _annotations(path: Path) -> dict[str, str]:
    """Class of each file; a line has file name and class, then a bounding box."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if short := [words for words in lines if len(words) < 2]:
        raise UserError(WHERE, f"'{path}' has no class for {short[0][0]}; is it cut off?")
    return {words[0]: words[1] for words in lines}


def _read(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """All images, (N, 3, 64, 64); grey ones have three equal channels."""
    images = np.empty((len(paths), *SHAPE), np.uint8)
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        decoded = decode_all([str(path) for path in chunk], None, colour=True)
        for i, (path, image) in enumerate(zip(chunk, decoded, strict=True)):
            if image.shape != SHAPE:
                sides = "x".join(map(str, image.shape[:0:-1]))
                raise UserError(WHERE, f"'{path}' has {sides} pixels, not 64x64")
            images[start + i] = image
    return images
