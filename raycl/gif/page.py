"""The page that shows the pictures of ``raycl gif``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from raycl.gif.drawing import Cell
from raycl.gif.encode import Gif
from raycl.gif.sheet import number

STYLE = """
body { background: #111; color: #ddd; font: 15px/1.5 system-ui, sans-serif; margin: 2em; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; } a { color: #9cf; }
img { image-rendering: pixelated; max-width: 100%; }
figure { margin: 1em 0; } figcaption, .note { color: #999; max-width: 60em; }
table { border-collapse: collapse; } td, th { padding: 4px 12px; text-align: right; }
th { color: #999; font-weight: normal; } td { border-top: 1px solid #333; vertical-align: top; }
td:first-child, th:first-child { text-align: left; }
.unseen { opacity: 0.55; } .problem { color: #f96; } .cell img { display: block; width: 176px; }
"""


@dataclass(frozen=True)
class Drawn:
    """The pictures of one trial.

    Attributes:
        label: The method's label.
        folder: Folder of its files, relative to the page.
        cells: Row by row.
        grid: All of them in one.
        note: What else is to be said.
    """

    label: str
    folder: str
    cells: Sequence[Cell]
    grid: Gif
    note: str = ""


@dataclass(frozen=True)
class Chapter:
    """The trials on one benchmark.

    Attributes:
        benchmark: Its label.
        folder: Folder of its files, relative to the page; empty or ending in ``/``.
        games: Names.
        references: For each game, the raw scores that are 0 % and 100 %.
        trials: One for each method.
        methods: The picture of all methods.
    """

    benchmark: str
    folder: str
    games: Sequence[str]
    references: Sequence[tuple[float, float]]
    trials: Sequence[Drawn]
    methods: Gif


def page(name: str, seed: int, fps: float, chapters: Sequence[Chapter], embed: bool) -> str:
    """The page, as HTML.

    Args:
        name: The sweep's.
        seed: The trials'.
        fps: Agent steps shown per second.
        chapters: What there is.
        embed: Put sheets into the page, and leave the pictures of single games out: for a viewer
            that shows the page without the files beside it, as MLflow's does.
    """
    title = escape(f"{name}: games as they are played, seed {seed}")
    body = "\n".join(_chapter(chapter, fps, embed) for chapter in chapters)
    note = (
        "Each tile is one full game, or its beginning: the first of the games that the mean score "
        "below it was taken from, with the same choice of actions and the settings of the trial. "
        f"Agent steps are shown at {fps:g} a second. Pale: the game had not been learnt yet."
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f'<p class="note">{note}</p>\n{body}\n</body></html>\n'
    )


def _chapter(chapter: Chapter, fps: float, embed: bool) -> str:
    pairs = zip(chapter.games, chapter.references, strict=True)
    scale = ", ".join(f"{g} {low:,g} to {high:,g}" for g, (low, high) in pairs)
    parts = [
        f"<h2>{escape(chapter.benchmark)}</h2>",
        f'<p class="note">0 and 100 % are the raw scores: {escape(scale)}.</p>',
        _figure(chapter.methods, f"{chapter.folder}methods.gif", "All methods", embed),
    ]
    for trial in chapter.trials:
        parts.append(f"<h2>{escape(trial.label)}</h2>")
        if trial.note:
            parts.append(f'<p class="problem">{escape(trial.note)}</p>')
        text = f"{trial.label}: row = after which game, column = which game"
        parts.append(_figure(trial.grid, f"{trial.folder}/grid.gif", text, embed))
        parts.append(_table(trial, chapter.games, embed))
    return "\n".join(parts)


def _figure(gif: Gif, path: str, text: str, embed: bool) -> str:
    source = path
    if embed:
        source = "data:image/gif;base64," + base64.b64encode(gif.data).decode()
    caption = f"{text}; {shown(gif)}; {size(gif)}"
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(text)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def shown(gif: Gif) -> str:
    """How many of the agent's steps are frames.

    >>> shown(Gif(b"", 3))
    'every 3rd step is shown'
    """
    ending = {2: "2nd", 3: "3rd"}.get(gif.stride, f"{gif.stride}th")
    return "every step is shown" if gif.stride == 1 else f"every {ending} step is shown"


def size(gif: Gif) -> str:
    """Size of a picture's file, in MB."""
    return f"{len(gif.data) / 1e6:.1f} MB"


def _table(trial: Drawn, games: Sequence[str], embed: bool) -> str:
    rows = sorted({cell.job.after for cell in trial.cells})
    columns = sorted({cell.job.game for cell in trial.cells})
    head = "".join(f"<th>{escape(games[column])}</th>" for column in columns)
    lines = [f"<table><tr><th>after</th>{head}</tr>"]
    by_place = {(cell.job.after, cell.job.game): cell for cell in trial.cells}
    for row in rows:
        found = (by_place.get((row, column)) for column in columns)
        cells = "".join(_cell(trial.folder, cell, embed) for cell in found)
        lines.append(f"<tr><td>{escape(games[row])}</td>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _cell(folder: str, cell: Cell | None, embed: bool) -> str:
    if cell is None:
        return "<td></td>"
    if cell.clip is None:
        return f'<td class="problem">{escape(cell.problem)}</td>'
    kind = "cell unseen" if cell.job.game > cell.job.after else "cell"
    path = f"{folder}/{cell.job.file}"
    picture = f'<a href="{escape(path)}"><img src="{escape(path)}" loading="lazy" alt=""></a>'
    lines = []
    if cell.score is not None and cell.percent is not None:
        lines.append(f"<b>{number(cell.score)}</b> · {cell.percent:z.1f} %")
    end = "at its end" if cell.clip.over else "when it was cut"
    lines.append(f"here {number(cell.clip.score)} {end}, step {cell.clip.steps:,}")
    return f'<td class="{kind}">{"" if embed else picture}{"<br>".join(lines)}</td>'
