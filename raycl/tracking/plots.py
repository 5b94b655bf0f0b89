"""What a finished trial's run shows besides numbers: the accuracy matrix and the final table.

The pictures are drawn with Pillow, not matplotlib: they are made in the driver while trials train
on the same machine, and 10 ms instead of 80 ms for each is what keeps that from being felt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Matrix = Sequence[Sequence[float | None]]

NUMBERS_UP_TO = 10  # tasks; with more the cells are too small to read
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 76, 56  # margins in pixels
BAR, GAP = 14, 16  # width of the colour bar and its distance
INK = "#333333"
#: Colours at 0, 25, 50, 75 and 100 %: cividis, readable in grey and by the colour-blind.
STOPS = np.array([(0, 34, 78), (66, 78, 108), (124, 123, 120), (187, 173, 108), (255, 234, 70)])


def accuracy_matrix(matrix: Matrix, readout: str) -> Image.Image:
    """Draw R as a heat map.

    Args:
        matrix: R [T, T] in percent: row = after learning this task, column = accuracy on it; null
            where nothing was measured (left empty).
        readout: What the network was asked, for the title.
    """
    values = np.array(matrix, dtype=float)
    count = len(values)
    cell = int(np.clip(560 // count, 8, 72))
    side = cell * count
    picture = Image.new("RGB", (LEFT + side + RIGHT, TOP + side + BOTTOM), "white")
    cells = Image.fromarray(_colours(values)).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(cells, (LEFT, TOP))
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, TOP - 14), f"accuracy (%), {readout} readout", INK, _font(17), "ls")
    _axes(picture, draw, count, cell)
    _bar(picture, draw, side)
    if count <= NUMBERS_UP_TO:
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            at = (LEFT + (column + 0.5) * cell, TOP + (row + 0.5) * cell)
            draw.text(at, f"{value:.0f}", "black" if value > 55 else "white", _font(16), "mm")
    return picture


def _colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Percent [...] to colours [..., 3]; what is not finite becomes white."""
    at = np.linspace(0, 100, len(STOPS))
    shades = [np.interp(values, at, STOPS[:, channel]) for channel in range(3)]
    shown = np.isfinite(values)[..., None]
    return np.where(shown, np.stack(shades, axis=-1), 255).astype(np.uint8)


def _axes(picture: Image.Image, draw: ImageDraw.ImageDraw, count: int, cell: int) -> None:
    side, font, small = count * cell, _font(15), _font(13)
    for i in range(0, count, -(-count // NUMBERS_UP_TO)):
        middle = (i + 0.5) * cell
        draw.text((LEFT + middle, TOP + side + 8), str(i + 1), INK, small, "ma")
        draw.text((LEFT - 8, TOP + middle), str(i + 1), INK, small, "rm")
    draw.text((LEFT + side / 2, TOP + side + 30), "tested on task", INK, font, "ma")
    label = Image.new("RGB", (160, 24), "white")
    ImageDraw.Draw(label).text((80, 12), "after learning task", INK, font, "mm")
    picture.paste(label.rotate(90, expand=True), (8, TOP + side // 2 - 80))


def _bar(picture: Image.Image, draw: ImageDraw.ImageDraw, side: int) -> None:
    left = LEFT + side + GAP
    colours = _colours(np.linspace(100, 0, side)[:, None])
    picture.paste(Image.fromarray(colours).resize((BAR, side)), (left, TOP))
    for value in (0, 50, 100) if side < 200 else range(0, 101, 20):
        at = TOP + side * (1 - value / 100)
        draw.text((left + BAR + 6, at), str(value), INK, _font(13), "lm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def final_table(result: dict[str, Any]) -> dict[str, Any]:
    """The last row of each R as a table of tasks x readouts, in the form of MLflow's tables.

    For reading: two decimals.
    """
    matrices: dict[str, Matrix] = result["matrices"]
    tasks = result.get("tasks") or [str(i + 1) for i in range(len(next(iter(matrices.values()))))]
    last = {readout: matrix[-1] for readout, matrix in matrices.items()}
    return {
        "columns": ["task", *(f"{readout} readout (%)" for readout in last)],
        "data": [[name, *(_rounded(r[i]) for r in last.values())] for i, name in enumerate(tasks)],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
