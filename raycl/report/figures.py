"""The figures of a report: accuracy after each task, the matrices, forgetting.

Every figure comes as PNG and as SVG. The same numbers give the same files, byte for byte.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raycl.report.formats import READOUT_TITLES
from raycl.report.statistics import LEVEL, bootstrap
from raycl.report.table import Group, Table

Array = NDArray[np.float64]

# Okabe & Ito's palette, which colour-blind readers can tell apart, grey for its yellow
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "raycl",
    "svg.fonttype": "path",
}
_CELLS = 10
_BAND = f"{LEVEL:g} % interval over seeds"


def draw(table: Table) -> dict[str, bytes]:
    """Every figure of a table, by file name; empty if nothing finished."""
    files: dict[str, bytes] = {}
    panels = _panels(table)
    if not panels:
        return files
    with mpl.rc_context(STYLE):
        files |= _files("accuracy", _grid(panels, table, _accuracy, 2.8))
        if any(row["metric"] == "forgetting" for row in table.rows):
            height = 0.9 + 0.32 * len(_methods(table))
            files |= _files("forgetting", _grid(panels, table, _forgetting, height))
        for benchmark, readout in panels:
            name = f"matrix-{_slug(benchmark)}-{readout}"
            files |= _files(name, _matrices(table, benchmark, readout))
    return files


def matrices(group: Group, readout: str) -> Array:
    """R of each seed: (n, T, T), percent; NaN where not measured. n = 0 without the readout."""
    found = [
        run.result["matrices"][readout]
        for run in group.runs
        if run.result is not None and readout in run.result["matrices"]
    ]
    return np.array(found, dtype=np.float64)


def after_each_task(stack: Array) -> Array:
    """Mean accuracy over the tasks seen so far, after each task: (n, T, T) to (n, T)."""
    seen = np.tril(np.ones(stack.shape[1:], dtype=bool))
    sums: Array = np.where(seen, stack, 0).sum(axis=2) / seen.sum(axis=1)
    return sums


# ---------------------------------------------------------------------- layout


def _panels(table: Table) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["benchmark"], row["readout"]) for row in table.rows))


def _methods(table: Table) -> list[str]:
    return list(dict.fromkeys(group.method for group in table.groups))


def _style(table: Table, method: str) -> dict[str, Any]:
    """Colour, marker and line of a method, the same in every figure and unlike any other's."""
    cycle, index = divmod(_methods(table).index(method), len(PALETTE))
    return {
        "color": PALETTE[index],
        "marker": MARKERS[(index + cycle) % len(MARKERS)],
        "linestyle": LINES[cycle % len(LINES)],
    }


def _title(table: Table, benchmark: str, readout: str) -> str:
    readout_title = READOUT_TITLES[readout].partition(" (")[0]
    several = len({group.benchmark for group in table.groups}) > 1
    return f"{benchmark}, {readout_title}" if several else readout_title


def _grid(
    panels: Sequence[tuple[str, str]],
    table: Table,
    paint: Callable[[Axes, Table, str, str, bool], None],
    height: float,
) -> Figure:
    """One panel per benchmark and readout; the last argument of ``paint``: is it a row's first."""
    slots, columns = _slots(panels)
    rows = len(slots) // columns
    width = 4.4 if columns < 3 else 3.3
    figure = Figure(figsize=(width * columns, height * rows + 0.35), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, (axis, slot) in enumerate(zip(axes.flat, slots, strict=True)):
        if slot is None:
            axis.set_visible(False)
            continue
        paint(axis, table, *slot, i % columns == 0)
        axis.set_title(_title(table, *slot))
    _legend(figure, _methods(table))
    return figure


def _slots(panels: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str] | None], int]:
    """Panels row by row, and how many there are in a row.

    A benchmark with several readouts has a row of its own; ``None`` fills it up.
    """
    rows = [list(group) for _, group in groupby(panels, key=lambda panel: panel[0])]
    columns = max(map(len, rows))
    if columns == 1:
        columns = min(2, len(panels))
        rows = [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    return [slot for row in rows for slot in [*row, *[None] * (columns - len(row))]], columns


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    handles = {
        str(h.get_label()): h for axis in figure.axes for h in axis.get_legend_handles_labels()[0]
    }
    names = [name for name in (*methods, _BAND) if name in handles]
    if not names:
        return
    inches = [0.6 + 0.08 * len(name) for name in names]
    width = figure.get_figwidth()
    columns = len(names) if sum(inches) < width else max(1, int(width / max(inches)))
    found = [handles[name] for name in names]
    if len(names) <= 2 * columns:
        figure.legend(found, names, loc="outside lower center", ncols=columns)
    else:  # a tall legend would take its room from the panels
        figure.set_figwidth(width + max(inches))
        figure.legend(found, names, loc="outside right center")


# ---------------------------------------------------------------------- panels


def _accuracy(axis: Axes, table: Table, benchmark: str, readout: str, first: bool) -> None:
    alpha = 0.18 if len(_methods(table)) <= 5 else 0.08
    for group in _of(table, benchmark):
        curves = after_each_task(stack) if len(stack := matrices(group, readout)) else None
        if curves is None:
            continue
        style = _style(table, group.method)
        tasks = np.arange(1, curves.shape[1] + 1)
        if len(curves) > 1:
            low, high = bootstrap(curves)
            axis.fill_between(tasks, low, high, color=style["color"], alpha=alpha, linewidth=0)
        axis.plot(
            tasks,
            curves.mean(axis=0),
            markersize=4.5,
            linewidth=1.8,
            label=group.method,
            **style,
        )
    if axis.collections:
        axis.fill_between([], [], color="#333333", alpha=alpha, linewidth=0, label=_BAND)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axis.set_xlabel("tasks learnt")
    axis.margins(x=0.03)
    axis.set_ylim(top=min(101, axis.get_ylim()[1]))
    if first:
        axis.set_ylabel("accuracy on tasks so far (%)")


def _forgetting(axis: Axes, table: Table, benchmark: str, readout: str, first: bool) -> None:
    rows = {
        row["method"]: row
        for row in table.rows
        if (row["benchmark"], row["readout"], row["metric"]) == (benchmark, readout, "forgetting")
    }
    methods = _methods(table)
    for i, method in enumerate(methods):
        if method not in rows:
            continue
        row = rows[method]
        axis.barh(i, row["mean"], height=0.62, color=_style(table, method)["color"], alpha=0.85)
        ends = [row["mean"]]
        if row["low"] is not None:
            ends += [row["low"], row["high"]]
            axis.plot(ends[1:], [i, i], color="#333333", linewidth=1.4, solid_capstyle="butt")
        axis.annotate(
            f"{row['mean']:z.1f}",  # z: no minus sign before a zero
            (max(0.0, *ends), i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axis.set_yticks(range(len(methods)), methods if first else [""] * len(methods))
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.axvline(0, color="#666666", linewidth=0.8)
    axis.margins(x=0.14)
    axis.set_xlabel("forgetting (% points)")


def _matrices(table: Table, benchmark: str, readout: str) -> Figure:
    """R of each method, mean over seeds, one colour scale."""
    means = {
        group.method: stack.mean(axis=0)
        for group in _of(table, benchmark)
        if len(stack := matrices(group, readout))
    }
    columns = min(4, len(means))
    rows = -(-len(means) // columns)
    figure = Figure(figsize=(2.45 * columns + 0.7, 2.75 * rows + 0.4), dpi=100, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(means) :]:
        axis.set_visible(False)
    for i, (axis, (method, mean)) in enumerate(zip(axes.flat, means.items(), strict=False)):
        image = axis.imshow(mean, cmap="YlGnBu", vmin=0, vmax=100)
        _cell_numbers(axis, mean)
        _task_ticks(axis, len(mean))
        axis.set_title("\n".join(textwrap.wrap(method, 20)), fontweight="normal")
        axis.set_xlabel("task")
        if i % columns == 0:
            axis.set_ylabel("after task")
    figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.85, aspect=24)
    title = f"{_title(table, benchmark, readout)}: accuracy on each task after each task"
    # given a position at once, the layout would make no room for it
    figure.suptitle(title, fontsize=10, fontweight="bold", ha="left").set_x(0.01)
    return figure


def _cell_numbers(axis: Axes, mean: Array) -> None:
    if len(mean) > _CELLS:
        return
    for t, i in zip(*np.nonzero(~np.isnan(mean)), strict=True):
        text = axis.text(i, t, f"{mean[t, i]:.0f}", ha="center", va="center")
        text.set_fontsize(9 if len(mean) <= 6 else 7)
        text.set_color("white" if mean[t, i] > 55 else "#222222")
        text.set_in_layout(False)  # it is inside its axes, and there may be hundreds


def _task_ticks(axis: Axes, tasks: int) -> None:
    step = max(1, tasks // 10)
    axis.set_xticks(range(0, tasks, step), [str(i + 1) for i in range(0, tasks, step)])
    axis.set_yticks(range(0, tasks, step), [str(i + 1) for i in range(0, tasks, step)])
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


# ---------------------------------------------------------------------- files


def _of(table: Table, benchmark: str) -> Iterable[Group]:
    return (group for group in table.groups if group.benchmark == benchmark)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


def _files(name: str, figure: Figure) -> dict[str, bytes]:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough: laying out is most of the time
    box = figure.get_tightbbox().padded(0.06)
    found = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches=box)
        found[f"{name}.{suffix}"] = buffer.getvalue()
    return found
