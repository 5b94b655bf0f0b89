"""What a finished trial's run shows besides numbers: the accuracy matrix and the final table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float | None]]

NUMBERS_UP_TO = 10  # tasks; with more the cells are too small to read


def accuracy_matrix(matrix: Matrix, readout: str, tasks: Sequence[str] | None = None) -> Figure:
    """Draw R as a heat map.

    Args:
        matrix: R [T, T] in percent: row = after learning this task, column = accuracy on it; null
            where nothing was measured.
        readout: What the network was asked, for the title.
        tasks: Names of the tasks.

    Returns:
        A figure that no global state of matplotlib knows (so it may be drawn in any thread and
        need not be closed).
    """
    values = np.array(matrix, dtype=float)
    count = len(values)
    side = float(np.clip(0.55 * count, 3.0, 8.0))
    figure = Figure(figsize=(side + 1.5, side + 1.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=100)
    axes.set_title(f"Accuracy, {readout} readout (%)", fontsize=11)
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    if count <= NUMBERS_UP_TO:
        labels = [str(i + 1) for i in range(count)]
        axes.set_xticks(range(count), labels)
        axes.set_yticks(range(count), labels)
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            ink = "black" if value > 60 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return figure


def final_table(result: dict[str, Any]) -> dict[str, Any]:
    """The last row of each R as a table of tasks x readouts, in the form of MLflow's tables."""
    matrices: dict[str, Matrix] = result["matrices"]
    tasks = result.get("tasks") or [str(i + 1) for i in range(len(next(iter(matrices.values()))))]
    last = {readout: matrix[-1] for readout, matrix in matrices.items()}
    return {
        "columns": ["task", *(f"accuracy ({readout} readout), %" for readout in last)],
        "data": [[name, *(row[i] for row in last.values())] for i, name in enumerate(tasks)],
    }
