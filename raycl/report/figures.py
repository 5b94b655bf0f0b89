"""The figures of a report: average after each task, the matrices, forgetting; curves of games.

Every figure comes as PNG and as SVG. The same numbers give the same files, byte for byte.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raycl.report import curves, words
from raycl.report.statistics import BAND, bootstrap
from raycl.report.table import Group, Row, Table
from raycl.tracking.names import distinct

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
_WIDEST = 12.0  # inches of matrices side by side


def draw(table: Table) -> dict[str, bytes]:
    """Every figure of a table, by file name; empty if nothing finished."""
    files: dict[str, bytes] = {}
    panels = _panels(table)
    if not panels:
        return files
    percent = [panel for panel in panels if words.of(panel[1]).is_percent(panel[1])]
    with mpl.rc_context(STYLE):
        name, _ = words.of(percent[0][1]).average
        averaged = [panel for panel in percent if any(True for _ in _averages(table, *panel))]
        if averaged:
            files |= _files(name, _grid(averaged, table, _average, 2.8))
        if forgetful := _forgetful(table):
            height = 0.9 + 0.32 * len(forgetful)
            known = {(row["benchmark"], row["readout"]) for row in _forgotten(table)}
            shown = [panel for panel in percent if panel in known]
            files |= _files("forgetting", _grid(shown, table, _forgetting, height))
        slugs = distinct((benchmark for benchmark, _ in panels), _slug)
        for benchmark in slugs:
            groups = list(_of(table, benchmark))
            if curves.there_are(groups):
                styles = {method: _style(table, method) for method in _methods(table)}
                for name, figure in curves.figures(groups, styles, _several(table)):
                    _legend(figure, _methods(table))
                    files |= _files(f"{name}-{slugs[benchmark]}", figure)
        names = distinct(panels, lambda panel: f"matrix-{slugs[panel[0]]}-{_slug(panel[1])}")
        for panel, name in names.items():
            files |= _files(name, _matrices(table, *panel))
    return files


def matrices(group: Group, readout: str) -> Array:
    """R of each seed: (n, T, T); NaN where not measured. n = 0 without the readout."""
    found = [
        run.result["matrices"][readout]
        for run in group.runs
        if run.result is not None and readout in run.result["matrices"]
    ]
    return np.array(found, dtype=np.float64)


def after_each_task(stack: Array) -> Array:
    """Mean over the tasks seen so far, after each task: (n, T, T) to (n, T); NaN where unknown."""
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
    title = words.of(readout).short(readout)
    return f"{benchmark}, {title}" if _several(table) else title


def _several(table: Table) -> bool:
    return len({group.benchmark for group in table.groups}) > 1


def _grid(
    panels: Sequence[tuple[str, str]],
    table: Table,
    paint: Callable[[Axes, Table, str, str, bool], None],
    height: float,
) -> Figure:
    """Draw one panel per benchmark and readout; ``paint`` is told whether it is a row's first."""
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

    A benchmark with several readouts has a row of its own, and so has whoever else was asked on it;
    ``None`` fills it up.
    """
    whose = groupby(panels, key=lambda panel: (panel[0], words.asked(panel[1])))
    rows = [list(group) for _, group in whose]
    columns = max(map(len, rows))
    if columns == 1:
        columns = min(2, len(panels))
        rows = [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    return [slot for row in rows for slot in [*row, *[None] * (columns - len(row))]], columns


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    handles = {
        str(h.get_label()): h for axis in figure.axes for h in axis.get_legend_handles_labels()[0]
    }
    names = [name for name in (*methods, BAND) if name in handles]
    if not names:
        return
    inches = [0.6 + 0.08 * len(name) for name in names]
    width = figure.get_figwidth()
    columns = len(names) if sum(inches) < width else max(1, int(width / max(inches)))
    shown = [handles[name] for name in names]
    if len(names) <= 2 * columns:
        figure.legend(shown, names, loc="outside lower center", ncols=columns)
    else:  # a tall legend would take its room from the panels
        figure.set_figwidth(width + max(inches))
        figure.legend(shown, names, loc="outside right center")


# ---------------------------------------------------------------------- panels


def _average(axis: Axes, table: Table, benchmark: str, readout: str, first: bool) -> None:
    alpha = 0.18 if len(_methods(table)) <= 5 else 0.08
    known = words.of(readout)
    for group, lines in _averages(table, benchmark, readout):
        style = _style(table, group.method)
        known_rows = ~np.isnan(lines).any(axis=0)
        tasks, lines = np.arange(1, lines.shape[1] + 1)[known_rows], lines[:, known_rows]
        if len(lines) > 1:
            low, high = bootstrap(lines)
            axis.fill_between(tasks, low, high, color=style["color"], alpha=alpha, linewidth=0)
        axis.plot(
            tasks,
            lines.mean(axis=0),
            markersize=4.5,
            linewidth=1.8,
            label=group.method,
            **style,
        )
    if axis.collections:
        axis.fill_between([], [], color="#333333", alpha=alpha, linewidth=0, label=BAND)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axis.set_xlabel(f"{known.task}s learnt")
    axis.margins(x=0.03)
    if known is words.IMAGES:
        axis.set_ylim(top=min(101, axis.get_ylim()[1]))
    if first:
        axis.set_ylabel(known.average[1])


def _averages(table: Table, benchmark: str, readout: str) -> Iterator[tuple[Group, Array]]:
    """Average after each task, (n, T), of each method that has one in the end.

    NaN where a row was not measured. ``scratch`` and a probe of the last task have one row or none.
    """
    for group in _of(table, benchmark):
        lines = after_each_task(stack) if len(stack := matrices(group, readout)) else None
        if lines is not None and not np.isnan(lines[:, [0, -1]]).any():
            yield group, lines


def _forgotten(table: Table) -> list[Row]:
    return [row for row in table.rows if row["metric"] == "forgetting" and row["n"]]


def _forgetful(table: Table) -> list[str]:
    """Methods that have forgetting, in order."""
    methods = {row["method"] for row in _forgotten(table)}
    return [method for method in _methods(table) if method in methods]


def _forgetting(axis: Axes, table: Table, benchmark: str, readout: str, first: bool) -> None:
    rows = {
        row["method"]: row
        for row in _forgotten(table)
        if (row["benchmark"], row["readout"]) == (benchmark, readout)
    }
    methods = _forgetful(table)
    for i, method in enumerate(methods):
        if method not in rows:
            continue
        row = rows[method]
        axis.barh(i, row["mean"], height=0.62, color=_style(table, method)["color"], alpha=0.85)
        ends = [row["mean"]]
        if row["low"] is not None:
            ends += [row["low"], row["high"]]
            axis.plot(
                ends[1:],
                [i, i],
                color="#333333",
                linewidth=1.4,
                solid_capstyle="butt",
                path_effects=[withStroke(linewidth=2.6, foreground="white")],  # on dark bars, too
            )
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
    """Draw R of each method, mean over seeds, with one colour scale; games have one scale each."""
    known, groups = words.of(readout), list(_of(table, benchmark))
    means = {
        group.method: stack.mean(axis=0)
        for group in groups
        if len(stack := matrices(group, readout))
    }
    shades = _shades(means, groups, readout)
    side = 2.45 if known is words.IMAGES else _room(means.values())
    rows = -(-len(means) // max(1, min(4, int(_WIDEST / side))))
    columns = -(-len(means) // rows)
    size = (side * columns + 0.7, side / 2.45 * 2.75 * rows + 0.4)
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(means) :]:
        axis.set_visible(False)
    for i, (axis, (method, mean)) in enumerate(zip(axes.flat, means.items(), strict=False)):
        image = axis.imshow(shades[method], cmap="YlGnBu", vmin=0, vmax=100)
        _cell_numbers(axis, mean, shades[method])
        _task_ticks(axis, len(mean), None if known is words.IMAGES else _tasks(groups))
        axis.set_title("\n".join(textwrap.wrap(method, 20)), fontweight="normal")
        axis.set_xlabel(known.task)
        if i % columns == 0:
            axis.set_ylabel(f"after {known.task}")
    what = "accuracy (%)" if known is words.IMAGES else "% of the best score on the game"
    figure.colorbar(image, ax=axes, label=what, shrink=0.85, aspect=24)
    each = f"on each {known.task} after each {known.task}"
    title = f"{_title(table, benchmark, readout)}{known.performance} {each}"
    # given a position at once, the layout would make no room for it
    figure.suptitle(title, fontsize=10, fontweight="bold", ha="left").set_x(0.01)
    return figure


def _room(means: Collection[Array]) -> float:
    """Side in inches of a matrix of games, with their names, in which the longest number fits."""
    letters = max((len(text) for mean in means for text in _numbers(mean).values()), default=0)
    return max(2.94, 1.3 + 0.07 * (letters + 1) * max(map(len, means), default=0))


def _shades(means: Mapping[str, Array], groups: Sequence[Group], readout: str) -> dict[str, Array]:
    """Values shown as colour: percent; for games, percent of the way from reference to best.

    Games differ too much for one scale: some are far above the reference, some never reach it.
    """
    if words.of(readout) is words.IMAGES or not means:
        return dict(means)
    references = next(g.runs[0].result for g in groups if g.runs[0].result is not None)[
        "references"
    ]
    pairs = np.array([references[game] for game in _tasks(groups)], dtype=np.float64)
    low, high = (
        pairs.T if readout == "score" else (np.zeros(len(pairs)), np.full(len(pairs), 100.0))
    )
    best = np.nanmax(np.concatenate(list(means.values())), axis=0)
    best = np.where(np.sign(high - low) * (best - low) > 0, best, high)
    return {method: 100 * (mean - low) / (best - low) for method, mean in means.items()}


def _tasks(groups: Sequence[Group]) -> list[str]:
    result = next(run.result for group in groups for run in group.runs if run.result is not None)
    return list(result["tasks"])


def _cell_numbers(axis: Axes, mean: Array, shade: Array) -> None:
    texts = _numbers(mean)
    longest = max(map(len, texts.values()), default=0)
    for (t, i), label in texts.items():
        text = axis.text(i, t, label, ha="center", va="center")
        text.set_fontsize(9 if len(mean) * max(3, longest) <= 18 else 7)
        text.set_color("white" if shade[t, i] > 55 else "#222222")
        text.set_in_layout(False)  # it is inside its axes, and there may be hundreds


def _numbers(mean: Array) -> dict[tuple[int, int], str]:
    """Texts in the cells of a matrix; none if there are too many cells."""
    known = zip(*np.nonzero(~np.isnan(mean)), strict=True) if len(mean) <= _CELLS else ()
    return {(t, i): f"{mean[t, i]:z,.0f}" for t, i in known}


def _task_ticks(axis: Axes, tasks: int, names: Sequence[str] | None = None) -> None:
    step = max(1, tasks // 10)
    at = range(0, tasks, step)
    labels = [str(i + 1) if names is None else names[i] for i in at]
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(at, labels, **(slanted if names else {}))
    axis.set_yticks(at, labels)
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
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches=box)
        files[f"{name}.{suffix}"] = buffer.getvalue()
    return files
