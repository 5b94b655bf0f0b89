"""IDX files (MNIST's format), gzipped or not, read straight from where they lie.

Format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each dimension as
a big-endian 32-bit integer, then the values. Source: Y. LeCun, C. Cortes and C. Burges, the MNIST
database of handwritten digits.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycl.datasets.base import Arrays
from raycl.errors import UserError

WHERE = "benchmark.dataset"
NAME = re.compile(r"(.*?)(train|test|t10k)[-_.](images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?")


def load(directory: Path, *, transposed: bool = False) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training images, test images and class names of a directory with the usual four files.

    Args:
        directory: Holds ``train-images-idx3-ubyte`` and so on (``t10k`` or ``test``), each with or
            without ``.gz``. All may share a prefix, such as ``emnist-balanced-``.
        transposed: The images are stored column by column (EMNIST).

    Raises:
        UserError: A file is missing, there are several sets, or a file is not what it should be.
    """
    return read(find(directory), transposed=transposed)


def find(directory: Path, prefix: str | None = None) -> dict[tuple[str, str], Path]:
    """The four files, by (``"train"`` or ``"test"``, ``"images"`` or ``"labels"``).

    Args:
        directory: The folder with the files.
        prefix: Beginning of their names; ``None``: any, if the folder has one set only.
    """
    if not directory.is_dir():
        raise UserError(WHERE, f"no such directory '{directory}'")
    files: dict[tuple[str, str, str], Path] = {}
    for path in sorted(directory.iterdir(), reverse=True):  # an unpacked file wins over its .gz
        match = NAME.fullmatch(path.name)
        if match and prefix in (None, match[1]):
            files[match[1], "train" if match[2] == "train" else "test", match[3]] = path
    prefixes = sorted({key[0] for key in files})
    if len(prefixes) > 1:
        sets = ", ".join(f"'{p}'" for p in prefixes)
        raise UserError(
            WHERE, f"'{directory}' holds several sets ({sets})", "keep one per directory"
        )
    start = prefixes[0] if prefixes else prefix or ""
    for split, stem in (("train", "train"), ("test", "t10k (or test)")):
        for kind, dims in (("images", 3), ("labels", 1)):
            if (start, split, kind) not in files:
                name = f"{start}{stem}-{kind}-idx{dims}-ubyte[.gz]"
                raise UserError(WHERE, f"'{directory}' has no file {name}")
    return {(split, kind): path for (_, split, kind), path in files.items()}


def read(
    files: dict[tuple[str, str], Path], *, transposed: bool = False
) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Read the four files; labels become 0..K-1 in ascending order of the stored numbers."""
    parts = {}
    for split in ("train", "test"):
        images = read_array(files[split, "images"], 3)
        labels = read_array(files[split, "labels"], 1)
        if len(images) != len(labels):
            raise UserError(
                WHERE,
                f"'{files[split, 'images']}' has {len(images)} images, "
                f"'{files[split, 'labels'].name}' {len(labels)} labels",
            )
        images = np.ascontiguousarray(images.swapaxes(1, 2)) if transposed else images
        parts[split] = images[:, None], labels
    values = np.unique(parts["train"][1])
    if extra := set(np.unique(parts["test"][1]).tolist()) - set(values.tolist()):
        raise UserError(
            WHERE, f"test labels {sorted(extra)} never occur in '{files['train', 'labels']}'"
        )
    train, test = (
        Arrays(images, np.searchsorted(values, labels).astype(np.int64))
        for images, labels in parts.values()
    )
    return train, test, tuple(str(v) for v in values.tolist())


def read_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file.

    Raises:
        UserError: Unreadable, wrong magic number, or shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(WHERE, f"cannot read '{path}': {error}", "is it truncated?") from error
    magic = content[:4]
    if magic != bytes((0, 0, 8, dimensions)):
        raise UserError(
            WHERE,
            f"'{path}' is not an IDX file of {dimensions} dimension(s): its magic number is "
            f"0x{magic.hex()}, not 0x{bytes((0, 0, 8, dimensions)).hex()}",
        )
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4")
    if len(content) != header + int(shape.astype(np.int64).prod()):
        raise UserError(
            WHERE,
            f"'{path}' is truncated or has a wrong header: {len(content)} bytes, shape {shape}",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
