"""Ids of images, by which two sweeps can tell whether they use the same ones."""

from __future__ import annotations

import hashlib

from raycl.datasets.base import Arrays, Files
from raycl.datasets.files import read_bytes

DIGITS = 16
"""Length of an id in hex digits; two of a million images share one with a probability of 3e-8."""


def image_ids(part: Arrays | Files) -> list[str]:
    """The id of each image: the beginning of the SHA-256 of its bytes.

    The bytes are those of the file where images are read when needed, else those of the pixels as
    they are in memory; see ``unit``. Neither the name nor the label of an image counts.
    """
    if isinstance(part, Files):
        return [_id(read_bytes(path)) for path in part.paths]
    return [_id(image.tobytes()) for image in part.images]


def unit(part: Arrays | Files, inverted: bool = False) -> str:
    """The unit of ids, file or pixels: only ids of one unit can be compared."""
    if isinstance(part, Files):
        return "files"
    what = "inverted pixels" if inverted else "pixels"
    return f"{what} of {'x'.join(map(str, part.images.shape[1:]))}"


def _id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
