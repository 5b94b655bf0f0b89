"""Small files in the formats that raycl reads."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(
    folder: Path, *, prefix: str = "", test: str = "t10k", classes: int = 10, first: int = 0
) -> dict[str, np.ndarray]:
    """Four gzipped files of 6 training and 2 test images per class, 28 x 28."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for split, each in (("train", 6), (test, 2)):
        labels = rng.permutation(np.repeat(np.arange(classes) + first, each))
        images = rng.integers(0, 256, (len(labels), 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
            made[f"{split}-{kind[:6]}"] = array
    return made


def write_image(path: Path, side: int | tuple[int, int], mode: str = "RGB", seed: int = 0) -> None:
    width, height = (side, side) if isinstance(side, int) else side
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_tree(
    root: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    each: int = 5,
    side: int = 12,
    **more: str,
) -> Path:
    for k, name in enumerate(classes):
        for i in range(each):
            write_image(root / name / f"{i:02}.png", side, seed=100 * k + i, **more)
    return root
