"""What a finished trial's run shows besides numbers: heat maps and the final table.

The pictures are drawn with Pillow, not matplotlib: they are made in the driver while trials train
on the same machine, and 10 ms instead of 80 ms for each is what keeps that from being felt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raycl.tracking.names import file_name

Matrix = Sequence[Sequence[float | None]]
Rows = Sequence[Sequence[int]]

NUMBERS_UP_TO = 10  # tasks; with more the cells are too small to read
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 76, 56  # margins in pixels
BAR, GAP = 14, 16  # width of the colour bar and its distance
STACK = 8  # histograms below each other; more of them fill further columns
INK = "#333333"
STOPS = np.array([(0, 34, 78), (66, 78, 108), (124, 123, 120), (187, 173, 108), (255, 234, 70)])
"""Colours at 0, 25, 50, 75 and 100 %: cividis, readable in grey and by the colour-blind."""


@dataclass(frozen=True)
class Panel:
    """Where a heat map is drawn.

    Attributes:
        values: Percent, one row of cells after each task; white where not finite. What is below 0
            or above 100 has the colour of that.
        left, top: The corner of the first cell, in pixels.
        width, height: Of one cell.
        task: What one is called.
    """

    values: NDArray[np.float64]
    left: int
    top: int
    width: int
    height: int
    task: str = "task"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all cells."""
        rows, columns = self.values.shape
        return columns * self.width, rows * self.height

    def draw(
        self,
        picture: Image.Image,
        title: str,
        label: str,
        first: int,
        step: int,
        names: Sequence[str] = (),
    ) -> None:
        """Draw cells, title and axes.

        Args:
            picture: To draw on.
            title: Above it.
            label: Label of the horizontal axis; the vertical one has the tasks.
            first: Number of the first column.
            step: Every how many columns have their number written below.
            names: Names of the columns, instead of numbers.
        """
        (rows, columns), (across, down) = self.values.shape, self.size
        cells = Image.fromarray(_colours(self.values)).resize(self.size, Image.Resampling.NEAREST)
        picture.paste(cells, (self.left, self.top))
        draw, small, below = ImageDraw.Draw(picture), _font(13), self.top + down
        draw.text((self.left, self.top - 14), title, INK, _font(17), "ls")
        for i in range(0, columns, step):
            middle = self.left + (i + 0.5) * self.width
            draw.text((middle, below + 8), names[i] if names else str(i + first), INK, small, "ma")
        for i in range(0, rows, -(-rows // NUMBERS_UP_TO)):
            middle = self.top + (i + 0.5) * self.height
            draw.text((self.left - 8, middle), str(i + 1), INK, small, "rm")
        draw.text((self.left + across / 2, below + 30), label, INK, _font(15), "ma")
        self._vertical(picture, f"after {'learning ' if down >= 140 else ''}{self.task}")

    def _vertical(self, picture: Image.Image, text: str) -> None:
        label = Image.new("RGB", (160, 24), "white")
        ImageDraw.Draw(label).text((80, 12), text, INK, _font(15), "mm")
        label = label.rotate(90, expand=True)
        at = (self.left - LEFT + 8, self.top + self.size[1] // 2 - 80)
        picture.paste(label, at, label.convert("L").point(lambda value: 255 * (value < 255)))

    def numbers(
        self, picture: Image.Image, size: int, shown: NDArray[np.float64] | None = None
    ) -> None:
        """Write whole percents, or what else is ``shown``, into the cells, in letters of a size."""
        draw, font = ImageDraw.Draw(picture), _font(size)
        shown = self.values if shown is None else shown
        for row, column in zip(*np.nonzero(np.isfinite(self.values)), strict=True):
            colour = "black" if self.values[row, column] > 55 else "white"
            x, y = self.left + (column + 0.5) * self.width, self.top + (row + 0.5) * self.height
            draw.text((x, y), f"{shown[row, column]:z,.0f}", colour, font, "mm")

    def bar(self, picture: Image.Image) -> None:
        """Draw the colour bar beside it."""
        left, side = self.left + self.size[0] + GAP, self.size[1]
        colours = _colours(np.linspace(100, 0, side)[:, None])
        picture.paste(Image.fromarray(colours).resize((BAR, side)), (left, self.top))
        for value in (0, 50, 100) if side < 200 else range(0, 101, 20):
            at = (left + BAR + 6, self.top + side * (1 - value / 100))
            ImageDraw.Draw(picture).text(at, str(value), INK, _font(13), "lm")


def pictures(result: Mapping[str, Any]) -> Iterator[tuple[str, Image.Image]]:
    """Every picture of a trial's result, by the name of its file."""
    references = result.get("references")
    for readout, matrix in result["matrices"].items():
        if references is None:
            yield f"accuracy_matrix_{file_name(readout)}", accuracy_matrix(matrix, readout)
        else:
            yield f"score_matrix_{readout}", score_matrix(matrix, readout, references)
    groups: dict[str, dict[str, Rows]] = defaultdict(dict)
    for name, rows in result.get("histograms", {}).items():
        group, _, rest = name.partition("/")
        groups[file_name(group)][rest or group] = rows
    for group, members in groups.items():
        yield group, histograms(members, group, "task" if references is None else "game")


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
    panel = Panel(values, LEFT, TOP, cell, cell)
    step = -(-count // NUMBERS_UP_TO)
    panel.draw(picture, f"accuracy (%), {readout} readout", "tested on task", 1, step)
    panel.bar(picture)
    if count <= NUMBERS_UP_TO:
        panel.numbers(picture, 16)
    return picture


def score_matrix(
    matrix: Matrix, readout: str, references: Mapping[str, tuple[float, float]]
) -> Image.Image:
    """Draw scores on games as a heat map: numbers as they are, colours by each game's reference.

    Args:
        matrix: R [T, T]: row = after learning this game, column = score on it; null where nothing
            was measured (left empty).
        readout: ``"normalised"``, in percent of the reference, or ``"score"``, raw.
        references: Of each game in order, the raw scores that are 0 and 100 %.
    """
    values = np.array(matrix, dtype=float)
    low, high = np.array(list(references.values())).T
    percent = values if readout == "normalised" else 100 * (values - low) / (high - low)
    count = len(values)
    named = count <= NUMBERS_UP_TO
    height = int(np.clip(560 // count, 8, 72))
    letters = max(_font(13).getlength(name) for name in references) if named else 0
    width = max(height, int(letters) + 16)
    title = "normalised score (%)" if readout == "normalised" else "raw score (colours: normalised)"
    across = max(width * count, int(_font(17).getlength(title)) + 8 - RIGHT)
    picture = Image.new("RGB", (LEFT + across + RIGHT, TOP + height * count + BOTTOM), "white")
    panel = Panel(percent, LEFT, TOP, width, height, "game")
    names = list(references) if named else ()
    panel.draw(picture, title, "played game", 1, -(-count // NUMBERS_UP_TO), names)
    panel.bar(picture)
    if named:
        panel.numbers(picture, 16, values)
    return picture


def histograms(members: Mapping[str, Rows], label: str, task: str = "task") -> Image.Image:
    """Draw distributions over tasks, one heat map each: the share of each bin, white if empty.

    Args:
        members: Counts [T, bins] by name: row = after learning this task.
        label: What the bins are, e.g. ``bits``.
        task: What one is called.
    """
    titles = [f"{name}: {sum(rows[-1]):,} elements" for name, rows in members.items()]
    shares = [_shares(rows) for rows in members.values()]
    tasks, bins = (max(share.shape[axis] for share in shares) for axis in (0, 1))
    width, height = int(np.clip(560 // bins, 1, 40)), int(np.clip(200 // tasks, 4, 40))
    step = next((s for s in (1, 2, 5, 10, 20, 50) if s * width >= 24), 100)
    across = LEFT + RIGHT + max(bins * width, *(int(_font(17).getlength(t)) for t in titles))
    down = TOP + tasks * height + BOTTOM
    columns = -(-len(shares) // STACK)
    deep = -(-len(shares) // columns)
    picture = Image.new("RGB", (columns * across, deep * down), "white")
    for i, (title, share) in enumerate(zip(titles, shares, strict=True)):
        column, row = divmod(i, deep)
        panel = Panel(share, column * across + LEFT, row * down + TOP, width, height, task)
        panel.draw(picture, f"% of {title}", label, 0, step)
        panel.bar(picture)
        if tasks <= NUMBERS_UP_TO and width >= 24:
            panel.numbers(picture, 12)
    return picture


def _shares(rows: Rows) -> NDArray[np.float64]:
    """Counts to percent of their row; NaN in empty bins."""
    counts = np.array(rows, dtype=np.float64)
    counts[counts == 0] = np.nan
    shares: NDArray[np.float64] = 100 * counts / np.nansum(counts, axis=1, keepdims=True)
    return shares


def _colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Percent [...] to colours [..., 3]; what is not finite becomes white."""
    at = np.linspace(0, 100, len(STOPS))
    shades = [np.interp(values, at, STOPS[:, channel]) for channel in range(3)]
    shown = np.isfinite(values)[..., None]
    return np.where(shown, np.stack(shades, axis=-1), 255).astype(np.uint8)


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
    titles = {"normalised": "normalised score (%)", "score": "raw score"}
    return {
        "columns": [
            "game" if "references" in result else "task",
            *(titles.get(readout, f"{readout} readout (%)") for readout in last),
        ],
        "data": [[name, *(_rounded(r[i]) for r in last.values())] for i, name in enumerate(tasks)],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
