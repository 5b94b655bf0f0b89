"""Writes a table as text: for a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from io import StringIO
from itertools import groupby
from operator import itemgetter
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from raycl.report import words
from raycl.report.table import COSTS, Row, Table

FORMATS = ("table", "markdown", "json", "csv")
WIDTH = 100

Cells = dict[str, str | None]
_MINUS = "−"


def render(table: Table, fmt: str) -> str:
    """Write the table in one of ``FORMATS``; ``"table"`` is without colours, 100 columns wide."""
    if fmt == "json":
        return json.dumps(list(table.rows), indent=2, allow_nan=False) + "\n"
    if fmt == "csv":
        return _csv(table)
    if fmt == "markdown":
        return _markdown(table)
    buffer = StringIO()
    print_table(table, Console(file=buffer, width=WIDTH, color_system=None))
    return buffer.getvalue()


def _csv(table: Table) -> str:
    frame = pd.DataFrame(list(table.rows))
    for column in ("seeds", "run_ids"):
        if column in frame:
            frame[column] = [" ".join(map(str, cell)) for cell in frame[column]]
    if "published_revisions" in frame:
        frame["published_revisions"] = [
            "; ".join(f"{name}: {_mean(value)}" for name, value in (cell or {}).items())
            for cell in frame["published_revisions"]
        ]
    return frame.to_csv(index=False, lineterminator="\n")


def _markdown(table: Table) -> str:
    parts = [
        f"### {benchmark}: {_title(readout, ', ')}\n\n"
        + _pipes([_cells(row, table.baseline) for row in rows])
        for (benchmark, readout), rows in _blocks(table.rows)
    ]
    if table.rows:
        parts.append(f"### cost of one run, mean over seeds\n\n{_pipes(_costs(table))}")
    parts.append("".join(f"- {note}\n" for note in table.notes))
    return "\n".join(parts)


def _pipes(cells: Sequence[Cells]) -> str:
    """A Markdown table: two columns of names, then numbers; empty columns are left out."""
    frame = pd.DataFrame(list(cells)).dropna(axis="columns", how="all").fillna("")
    frame = frame.map(lambda cell: cell.replace("|", "\\|"))
    align = ["left", "left", *["right"] * (len(frame.columns) - 2)]
    return f"{frame.to_markdown(index=False, disable_numparse=True, colalign=align)}\n"


def print_table(table: Table, console: Console) -> None:
    """Headline and published metrics with rich, per benchmark and readout, then costs and notes."""
    for (benchmark, readout), rows in _blocks(table.rows):
        title = f"{benchmark} · {_title(readout, ' · ')}"
        _print(console, title, _rich([_cells(row, table.baseline) for row in rows], "metric"))
    if table.rows:
        costs = _rich(_costs(table), "benchmark")
        _print(console, "cost of one run, mean over seeds", costs)
    for note in table.notes:
        console.print(f"• {note}", style="dim", highlight=False, markup=False)


def _title(readout: str, between: str) -> str:
    known = words.of(readout)
    return f"{known.title(readout)}{between}{known.unit(readout)}"


def _print(console: Console, title: str, table: RichTable) -> None:
    """A table below its title, which may be longer than it is wide."""
    console.print(title, style="bold underline", highlight=False, markup=False)
    console.print(table)
    console.print()


def _rich(cells: Sequence[Cells], section: str) -> RichTable:
    """A table in sections, each headed by a line of its own; empty columns are left out."""
    columns = [name for name in cells[0] if any(row[name] is not None for row in cells)]
    columns.remove(section)
    table = RichTable(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for name in columns:
        first = name == columns[0]
        table.add_column(
            "" if first else name, justify="left" if first else "right", overflow="fold"
        )
    for header, group in groupby(cells, key=lambda row: row[section]):
        table.add_row(f"[bold]{escape(header or '')}[/bold]")
        for row in group:
            table.add_row(
                f"  {escape(row[columns[0]] or '')}", *(escape(row[c] or "") for c in columns[1:])
            )
    return table


def _blocks(rows: Sequence[Row]) -> Iterable[tuple[tuple[str, str], list[Row]]]:
    """Rows of the headline metrics, and of those with a published number, by benchmark, readout."""
    metric = itemgetter("benchmark", "readout", "metric")
    published = {metric(row) for row in rows if row["published"] is not None}
    wanted = (row for row in rows if _is_headline(row) or metric(row) in published)
    for key, group in groupby(wanted, key=lambda row: (row["benchmark"], row["readout"])):
        yield key, list(group)


def _is_headline(row: Row) -> bool:
    known = words.of(row["readout"])
    return row["metric"] in known.headlines or row["metric"] not in known.metrics


def _cells(row: Row, baseline: str | None) -> Cells:
    """Cells of one row; ``None`` where a cell stays empty."""
    digits = words.of(row["readout"]).decimals(row["readout"])
    spread = "" if row["std"] is None else f" ± {row['std']:.{digits}f}"
    about = "~" if row["sampled"] and row["n"] else ""
    interval = _interval(row["low"], row["high"], digits)
    difference = None
    if row["baseline"] is not None:
        pair = _interval(row["difference_low"], row["difference_high"], digits)
        own = _number(row["difference"], f"+.{digits}f")
        difference = " ".join(filter(None, [own, pair]))
    return {
        "metric": words.of(row["readout"]).metric(row["metric"]),
        "method": row["method"],
        "mean ± std": about + _number(row["mean"], f".{digits}f") + spread,
        "95 % interval": interval,
        "n": str(row["n"]),
        f"vs {baseline}": difference,
        "published": _published(row, f".{digits}f"),
    }


def _published(row: Row, form: str) -> str | None:
    """The published number, or several with the revision of each, and how ours compares."""
    if row["published"] is None and not row["published_revisions"]:
        return None
    spread = "" if row["published_std"] is None else f" ± {_number(row['published_std'], form)}"
    text = _number(row["published"], form) + spread
    if row["published_revisions"]:
        revisions = row["published_revisions"].items()
        text = ", ".join(f"{_number(_mean(value), form)} ({name})" for name, value in revisions)
    return text if row["verdict"] is None else f"{text}, {row['verdict']}"


def _mean(printed: Any) -> Any:
    """The number that one revision prints."""
    return printed["mean"] if isinstance(printed, dict) else printed


def _number(value: float | None, form: str = ".2f") -> str:
    if value is None:
        return "–"
    return format(round(value, int(form[-2])) + 0.0, form).replace(
        "-", _MINUS
    )  # + 0.0: no minus zero


def _interval(low: float | None, high: float | None, digits: int) -> str | None:
    if low is None or high is None:
        return None
    return f"[{_number(low, f'.{digits}f')}, {_number(high, f'.{digits}f')}]"


def _costs(table: Table) -> list[Cells]:
    seen = {(row["benchmark"], row["method"]): row for row in table.rows}
    order = {(group.benchmark, group.method): i for i, group in enumerate(table.groups)}
    return [
        {"benchmark": key[0], "method": key[1]}
        | {title: _cost(seen[key][name], scale, digits) for name, title, scale, digits in _COSTS}
        for key in sorted(seen, key=order.__getitem__)
    ]


_COSTS = tuple(
    zip(
        COSTS,
        (
            "seconds",
            "peak memory (MB)",
            "stored (kB)",
            "extra parameters",
            "task (%)",
            "+ affine",
            "+ statistics",
        ),
        (1.0, 1.0, 1000.0, 1.0, 1.0, 1.0, 1.0),
        (1, 1, 1, 0, 3, 3, 3),
        strict=True,
    )
)


def _cost(value: float | None, scale: float, digits: int) -> str | None:
    return None if value is None else f"{value / scale:,.{digits}f}"
