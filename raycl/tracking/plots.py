"""What a finished trial's run shows besides numbers: the accuracy matrix and the final table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Matrix = Sequence[Sequence[float | None]]

NUMBERS_UP_TO = 10  # tasks; with more the cells are too small to read


def accuracy_matrix(matrix: Matrix, readout: str) -> Figure:
    """Draw R as a heat map.

    Args:
        matrix: R [T, T] in percent: row = after learning this task, column = accuracy on it; null
            where nothing was measured (left empty).
        readout: What the network was asked, for the title.

    Returns:
        A figure that no global state of matplotlib knows: it may be drawn in any thread and need
        not be closed.
    """
    values = np.array(matrix, dtype=float)
    count = len(values)
    side = float(np.clip(0.55 * count, 3.0, 5.5))  # inches
    figure = Figure(figsize=(side + 1.6, side + 1.1), dpi=110)
    FigureCanvasAgg(figure)
    axes = _inches(figure, 0.7, 0.6, side, side)
    image = axes.imshow(
        values, cmap="cividis", vmin=0, vmax=100, extent=(0.5, count + 0.5, count + 0.5, 0.5)
    )
    axes.set_title(f"accuracy (%), {readout} readout", fontsize=11)
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    axes.spines[:].set_visible(False)
    for ticks in (axes.xaxis, axes.yaxis):
        ticks.set_major_locator(MaxNLocator(min(count, 10), integer=True, min_n_ticks=1))
    axes.tick_params(length=0, labelsize=8)
    if count <= NUMBERS_UP_TO:
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            ink = "black" if value > 55 else "white"
            axes.text(column + 1, row + 1, f"{value:.0f}", ha="center", va="center", color=ink)
    bar = figure.colorbar(image, cax=_inches(figure, side + 0.8, 0.6, 0.16, side))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return figure


def _inches(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches; a layout engine would draw everything twice."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def final_table(result: dict[str, Any]) -> dict[str, Any]:
    """The last row of each R as a table of tasks x readouts, in the form of MLflow's tables."""
    matrices: dict[str, Matrix] = result["matrices"]
    tasks = result.get("tasks") or [str(i + 1) for i in range(len(next(iter(matrices.values()))))]
    last = {readout: matrix[-1] for readout, matrix in matrices.items()}
    return {
        "columns": ["task", *(f"accuracy ({readout} readout), %" for readout in last)],
        "data": [[name, *(row[i] for row in last.values())] for i, name in enumerate(tasks)],
    }
