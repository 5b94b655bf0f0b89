"""Sheets of games played side by side: the content of each tile, and how a sheet is drawn.

A sheet is drawn in indices into one palette from the start: 16 greys for text and paper, then the
games' own colours, which are few, so that nothing is dithered and nothing flickers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raycl.gif.clip import Clip
from raycl.gif.encode import COLOURS, Gif, Indices, Timed, fitted

LEVELS = 16
PAPER, TILE, FAINT, PLAIN, BRIGHT = 1, 3, 8, 11, 15
"""Grey levels: of the background, behind the text of a tile, and three for text."""
GAP, LEFT, TOP, HEADER, STRIP = 8, 100, 26, 18, 32
SCREEN = (210, 160)
HOLD_S = 2.0
_GREYS = np.repeat(np.arange(LEVELS, dtype=np.uint8)[:, None] * 17, 3, 1)


@dataclass(frozen=True)
class Tile:
    """A game on a sheet.

    Attributes:
        clip: The recorded game; ``None``: it could not be drawn.
        caption: Text below the game, shown all the time.
        problem: The reason why there is no clip.
        faded: Whether to use pale colours, because the game was not learnt yet.
    """

    clip: Clip | None
    caption: str = ""
    problem: str = ""
    faded: bool = False


@dataclass(frozen=True)
class Sheet:
    """Tiles in rows and columns.

    Attributes:
        title: Text above everything.
        rows: Label of each row; if all are empty, no room is left for them.
        columns: Label of each column.
        tiles: Tiles by (row, column); other places stay empty.
        fps: Agent steps shown per second.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    tiles: Mapping[tuple[int, int], Tile]
    fps: float

    def gif(self, limit: int) -> Gif:
        """Encode the animation: all games from their start, each stopping at its own end.

        Args:
            limit: Bytes; steps are left out evenly to stay below.
        """
        return fitted(self.frames, self.palette, self.steps, limit)

    @property
    def steps(self) -> int:
        """Number of steps of the longest clip."""
        return max((clip.steps for clip in self._clips), default=0)

    def frames(self, stride: int) -> Iterator[Timed]:
        """Yield every ``stride``-th frame and the last one, in one array, changed in place."""
        canvas = self._blank.copy()
        players = [
            _Painter(canvas, *self._corner(at), tile, *self._tables[at])
            for at, tile in self.tiles.items()
        ]
        for step in range(self.steps + 1):
            last = step == self.steps
            wanted = last or step % stride == 0
            for player in players:
                player.advance(step, wanted)
            if wanted:
                yield canvas, HOLD_S if last else min(stride, self.steps - step) / self.fps

    # ------------------------------------------------------------------ colours

    @property
    def _clips(self) -> list[Clip]:
        return [tile.clip for tile in self.tiles.values() if tile.clip is not None]

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """RGB [n, 3]: the greys, then the games' colours, those that fill most of a screen first.

        What there is no room for is shown as the nearest there is.
        """
        shares: dict[tuple[int, ...], float] = {}
        for tile in self.tiles.values():
            if tile.clip is not None:
                shown = _faded(tile.clip.colours, tile.faded).tolist()
                parts = tile.clip.counts / tile.clip.counts.sum()
                for colour, part in zip(map(tuple, shown), parts.tolist(), strict=True):
                    shares[colour] = max(part, shares.get(colour, 0.0))
        for grey in _GREYS.tolist():
            shares.pop(tuple(grey), None)
        most = sorted(shares, key=lambda colour: (-shares[colour], colour))[: COLOURS - LEVELS]
        return np.concatenate([_GREYS, np.array(most, np.uint8).reshape(-1, 3)])

    @cached_property
    def _tables(self) -> dict[tuple[int, int], tuple[Indices, Indices]]:
        """Palette index of each tile's colours, while its clip runs and when it is over."""
        empty = np.zeros(0, np.uint8)
        found = {}
        for at, tile in self.tiles.items():
            if tile.clip is None:
                found[at] = (empty, empty)
                continue
            shown = _faded(tile.clip.colours, tile.faded).astype(int)
            distance = ((shown[:, None] - self.palette.astype(int)[None]) ** 2).sum(2)
            dark = (_grey(tile.clip.colours) * 0.55 / 17).round()
            found[at] = (distance.argmin(1).astype(np.uint8), dark.astype(np.uint8))
        return found

    # ------------------------------------------------------------------ places

    @property
    def _left(self) -> int:
        return LEFT if any(self.rows) else 0

    @cached_property
    def _screen(self) -> tuple[int, int]:
        shapes = [clip.shape for clip in self._clips] or [SCREEN]
        return max(h for h, _ in shapes), max(w for _, w in shapes)

    def _corner(self, at: tuple[int, int]) -> tuple[int, int]:
        height, width = self._screen
        top = TOP + HEADER + at[0] * (height + STRIP + GAP)
        return top, GAP + self._left + at[1] * (width + GAP)

    @cached_property
    def _blank(self) -> Indices:
        """Draw everything that never changes."""
        bottom, right = self._corner((len(self.rows), len(self.columns)))
        canvas = np.full((bottom, right), PAPER, np.uint8)
        height, width = self._screen
        _write(canvas, GAP, 5, self.title, 15, BRIGHT, PAPER, right - 2 * GAP)
        for column, label in enumerate(self.columns):
            top, left = self._corner((0, column))
            _write(canvas, left, top - HEADER, label, 13, PLAIN, PAPER, width)
        for row, label in enumerate(self.rows):
            top, _ = self._corner((row, 0))
            for line, text in enumerate(label.split("\n")):
                _write(canvas, GAP, top + 4 + 17 * line, text, 13, PLAIN, PAPER, LEFT - GAP)
        for at, tile in self.tiles.items():
            top, left = self._corner(at)
            canvas[top : top + height + STRIP, left : left + width] = TILE
            _write(canvas, left + 4, top + height + 16, tile.caption, 11, PLAIN, TILE, width - 8)
            if tile.clip is None:
                for line, text in enumerate(_wrapped(tile.problem, width - 12)):
                    _write(canvas, left + 6, top + 8 + 15 * line, text, 12, BRIGHT, TILE, width)
        return canvas


class _Painter:
    """Keeps one tile of a canvas up to date."""

    def __init__(
        self, canvas: Indices, top: int, left: int, tile: Tile, colours: Indices, dark: Indices
    ) -> None:
        self.clip, self.colours, self.dark = tile.clip, colours, dark
        if tile.clip is None:
            return
        height, width = tile.clip.shape
        self.screen = canvas[top : top + height, left : left + width]
        self.strip = canvas[top + height : top + height + 16, left : left + width]
        self.source = tile.clip.frames()

    def advance(self, step: int, wanted: bool) -> None:
        """Go on to a step, and paint it if it is wanted.

        Steps come in order. What is past the clip's end needs no more painting: its last frame is
        painted when it is reached, wanted or not.
        """
        if self.clip is None or step > self.clip.steps:
            return
        frame = next(self.source)
        last = step == self.clip.steps
        if not (wanted or last):
            return
        self.screen[:] = (self.dark if last else self.colours)[frame]
        self.strip[:] = TILE
        width = self.strip.shape[1]
        count = f"step {step:,}"
        _write(self.strip, 4, 2, f"score {number(self.clip.scores[step])}", 12, BRIGHT, TILE, width)
        _write(self.strip, width - 4 - _width(count, 12), 2, count, 12, FAINT, TILE, width)
        if last:
            text = "game over" if self.clip.over else "cut here"
            box = self.screen[len(self.screen) // 2 - 12 :][:24]
            box[:] = TILE
            _write(box, (box.shape[1] - _width(text, 14)) // 2, 4, text, 14, BRIGHT, TILE, width)


def number(score: float) -> str:
    """A raw score.

    >>> number(26600.0), number(-3.25), number(-0.04)
    ('26,600', '-3.2', '0.0')
    """
    return f"{score:,.0f}" if abs(score) >= 100 or score == int(score) else f"{score:z.1f}"


# ---------------------------------------------------------------------- colours and text


def _grey(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luminance (ITU-R BT.601) of RGB [n, 3]: [n]."""
    weights = np.array([0.299, 0.587, 0.114])
    found: NDArray[np.float64] = colours @ weights
    return found


def _faded(colours: NDArray[np.uint8], faded: bool) -> NDArray[np.uint8]:
    """Mix colours half with a light grey, if ``faded``."""
    if not faded:
        return colours
    grey = 0.5 * _grey(colours)[:, None] + 80
    return (0.35 * colours + 0.65 * grey).round().astype(np.uint8)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text)))


@lru_cache(maxsize=4096)
def _text(text: str, size: int, ink: int, paper: int, width: int) -> Indices:
    """Draw letters in levels of grey, smaller if they would be wider than ``width``."""
    while size > 7 and _width(text, size) > width:
        size -= 1
    image = Image.new("L", (max(1, min(_width(text, size), width)), size + 5), 0)
    ImageDraw.Draw(image).text((0, 0), text, 255, _font(size))
    cover = np.asarray(image) / 255
    levels: Indices = (paper + (ink - paper) * cover).round().astype(np.uint8)
    return levels


def _write(
    canvas: Indices, x: int, y: int, text: str, size: int, ink: int, paper: int, width: int
) -> None:
    """Write one line, clipped at the canvas."""
    letters = _text(text, size, ink, paper, width)
    place = canvas[y : y + letters.shape[0], x : x + letters.shape[1]]
    place[:] = letters[: place.shape[0], : place.shape[1]]


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines that fit a width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, 12) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
