"""Animated GIFs from indexed frames: one palette for all, and only changed pixels are stored.

Pillow compresses; the container is written here, because Pillow's own writer keeps every frame in
memory and gives frames palettes of their own, which makes flat areas flicker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import getdata

Indices = NDArray[np.uint8]
Timed = tuple[Indices, float]

COLOURS = 255
"""Number of colours of a palette; the last of a GIF's 256 stands for "as before"."""

_AS_BEFORE = 255
_LOOP_FOR_EVER = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_LONGEST = 65_535


@dataclass(frozen=True)
class Gif:
    """An animation.

    Attributes:
        data: Content of the file.
        stride: Steps of the original from one frame to the next.
    """

    data: bytes
    stride: int


def encode(frames: Iterable[Timed], palette: NDArray[np.uint8]) -> bytes:
    """Write an animation that loops for ever.

    Args:
        frames: (indices into the palette [H, W], seconds it is shown). The array may be changed
            and handed over again.
        palette: RGB [n, 3], n at most ``COLOURS``.

    Raises:
        ValueError: Too many colours, or no frames.
    """
    if len(palette) > COLOURS:
        raise ValueError(f"{len(palette)} colours, more than {COLOURS}")
    out = bytearray()
    for patch, offset, hundredths in _patches(frames):
        if not out:
            out += _header(patch, palette)
        image = Image.fromarray(patch)
        out += b"".join(
            getdata(image, offset, duration=10 * hundredths, transparency=_AS_BEFORE, disposal=1)
        )
    if not out:
        raise ValueError("an animation needs a frame")
    return bytes(out) + b";"


def fitted(
    frames: Callable[[int], Iterable[Timed]],
    palette: NDArray[np.uint8],
    steps: int,
    limit: int,
    most: int = 450,
    fewest: int = 40,
) -> Gif:
    """Encode every step, or every second, third, ... until the file is small enough.

    Args:
        frames: Stride to frames as ``encode`` takes them.
        palette: See ``encode``.
        steps: Number of steps.
        limit: Bytes the file should not exceed.
        most: Frames to begin with at most.
        fewest: Frames below which no more are dropped, whatever the size.
    """
    stride, widest = max(1, -(-steps // most)), max(1, steps // fewest)
    while True:
        data = encode(frames(stride), palette)
        if len(data) <= limit or stride >= widest:
            return Gif(data, stride)
        stride = min(max(stride + 1, int(stride * len(data) / limit)), widest)


def _header(frame: Indices, palette: NDArray[np.uint8]) -> bytes:
    height, width = frame.shape
    table = palette.astype(np.uint8).tobytes().ljust(3 * 256, b"\0")
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + table + _LOOP_FOR_EVER


def _patches(frames: Iterable[Timed]) -> Iterator[tuple[Indices, tuple[int, int], int]]:
    """The changed part of each frame: (pixels, place (x, y), duration in 1/100 s).

    Ends are rounded, not durations, so that a long animation keeps its pace.
    """
    shown: Indices | None = None
    patch: Indices | None = None
    offset = (0, 0)
    begun = ended = 0.0
    for frame, seconds in frames:
        if shown is None:
            new, at = frame.copy(), (0, 0)
            shown = frame.copy()
        else:
            changed = frame != shown
            if not changed.any():
                ended += seconds
                continue
            new, at = _changes(frame, changed)
            np.copyto(shown, frame)
        if patch is not None:
            yield patch, offset, _hundredths(begun, ended)
        patch, offset, begun, ended = new, at, ended, ended + seconds
    if patch is not None:
        yield patch, offset, _hundredths(begun, ended)


def _changes(frame: Indices, changed: NDArray[np.bool_]) -> tuple[Indices, tuple[int, int]]:
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.where(changed[box], frame[box], np.uint8(_AS_BEFORE)), (int(columns[0]), int(rows[0]))


def _hundredths(begun: float, ended: float) -> int:
    """Duration in 1/100 s, at least 2: browsers show shorter frames for a tenth of a second."""
    return min(max(round(100 * ended) - round(100 * begun), 2), _LONGEST)
