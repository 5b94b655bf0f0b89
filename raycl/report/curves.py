"""Figures of games over emulator frames: scores in evaluation, and returns in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raycl.report.games import game_frames, is_games
from raycl.report.statistics import BAND, bootstrap
from raycl.report.table import Group

Array = NDArray[np.float64]
Style = Mapping[str, Any]
_MARKED_UP_TO = 25
"""Largest number of points of a curve in a figure whose points are marked one by one."""


def there_are(groups: Sequence[Group]) -> bool:
    """Whether these are results of games."""
    return any(is_games(run.result) for group in groups for run in group.runs)


def figures(
    groups: Sequence[Group], styles: Mapping[str, Style], several: bool
) -> Iterator[tuple[str, Figure]]:
    """Draw ``curves`` and, if any game ended in training, ``training``; without legends.

    Args:
        groups: Finished runs on one benchmark.
        styles: Style of each method, as matplotlib takes it.
        several: Whether the title must say which benchmark it is.
    """
    before = f"{groups[0].benchmark}: " if several else ""
    yield "curves", _evaluation(groups, styles, f"{before}raw score while each game is learnt")
    if any(_stack(g, "training", game)[0].size for g in groups for game in _games(groups)):
        yield "training", _training(groups, styles, f"{before}return in training")


def _evaluation(groups: Sequence[Group], styles: Mapping[str, Style], title: str) -> Figure:
    """Draw scores in evaluation: a row per game over all frames, its own window shaded."""
    games, frames, (scale, unit) = _games(groups), _frames(groups), _unit(groups)
    size = (8.4, 1.55 * len(games) + 1.0)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(games), 1, sharex=True, squeeze=False)[:, 0]
    marked = _most_points(groups) <= _MARKED_UP_TO
    for i, (axis, game) in enumerate(zip(axes, games, strict=True)):
        axis.axvspan(i * frames / scale, (i + 1) * frames / scale, color="#efefef", zorder=0)
        for group in groups:
            at, values = _stack(group, "evaluation", game)
            style = styles[group.method] if marked or len(at) == 1 else _plain(styles[group.method])
            _line(axis, at / scale, values, group.method, style)
        _reference(axis, groups, game)
        axis.set_title(game)
        axis.set_xlim(0, len(games) * frames / scale)
    axes[-1].set_xlabel(f"{unit} emulator frames; shaded: the game is learnt")
    figure.suptitle(title, fontsize=10, fontweight="bold", ha="left").set_x(0.01)
    return figure


def _training(groups: Sequence[Group], styles: Mapping[str, Style], title: str) -> Figure:
    """Draw returns in training: a panel per game over the frames of its own window."""
    games, frames, (scale, unit) = _games(groups), _frames(groups), _unit(groups)
    columns = min(3, len(games))
    rows = -(-len(games) // columns)
    size = (3.1 * columns, 2.3 * rows + 0.5)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(games) :]:
        axis.set_visible(False)
    for i, (axis, game) in enumerate(zip(axes.flat, games, strict=False)):
        for group in groups:
            at, values = _stack(group, "training", game)
            own = (at > i * frames) & (at <= (i + 1) * frames)
            style = _plain(styles[group.method])
            _line(axis, (at[own] - i * frames) / scale, values[:, own], group.method, style)
        if not axis.lines:
            middle = {"ha": "center", "va": "center", "color": "#666666"}
            axis.text(0.5, 0.5, "no game ended", transform=axis.transAxes, **middle)
            axis.set_yticks([])
        axis.set_title(game)
        axis.set_xlim(0, frames / scale)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_xlabel(f"{unit} frames of the game")
    figure.suptitle(title, fontsize=10, fontweight="bold", ha="left").set_x(0.01)
    return figure


def _line(axis: Axes, x: Array, values: Array, label: str, style: Style) -> None:
    """Draw the mean over seeds as a line, with its interval."""
    if not x.size:
        return
    if len(values) > 1:
        low, high = bootstrap(values)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.fill_between([], [], color="#333333", alpha=0.15, linewidth=0, label=BAND)
    axis.plot(x, values.mean(axis=0), linewidth=1.5, markersize=4, label=label, **style)


def _plain(style: Style) -> Style:
    return {**style, "marker": ""}


def _most_points(groups: Sequence[Group]) -> int:
    """Number of points of the longest curve of evaluations; it decides whether all are marked."""
    return max(len(_stack(g, "evaluation", game)[0]) for g in groups for game in _games(groups))


def _reference(axis: Axes, groups: Sequence[Group], game: str) -> None:
    """Draw the scores that are 0 and 100 %, where that does not squeeze the curves."""
    low, high = axis.get_ylim()
    room = 0.25 * (high - low)
    for value in _result(groups)["references"][game]:
        if low - room <= value <= high + room:
            axis.axhline(value, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def _stack(group: Group, which: str, game: str) -> tuple[Array, Array]:
    """Frames (k,) and the curve of every seed at them (n, k); a seed without a point is left out.

    Seeds are evaluated at the same frames; returns in training are looked up between points.
    """
    curves = [
        np.array(run.result["curves"][which][game], dtype=np.float64)
        for run in group.runs
        if run.result is not None and is_games(run.result) and run.result["curves"][which][game]
    ]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    start, end = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
    at = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    at = at[(at >= start) & (at <= end)]  # nothing is made up beyond a seed's points
    return at, np.array([np.interp(at, curve[:, 0], curve[:, 1]) for curve in curves])


def _result(groups: Sequence[Group]) -> Mapping[str, Any]:
    return next(r.result for g in groups for r in g.runs if r.result is not None)


def _games(groups: Sequence[Group]) -> list[str]:
    return list(_result(groups)["tasks"])


def _unit(groups: Sequence[Group]) -> tuple[float, str]:
    """Unit of the frames on an axis."""
    return (1e6, "million") if _frames(groups) >= 2e5 else (1e3, "thousand")


def _frames(groups: Sequence[Group]) -> float:
    return game_frames(_result(groups))
