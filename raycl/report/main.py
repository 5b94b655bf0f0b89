"""The report of a sweep: prints it, writes it to a folder, attaches it to the parent run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from mlflow.tracking import MlflowClient
from rich.console import Console

from raycl import atomic
from raycl.errors import UserError, nearest
from raycl.report import pictures
from raycl.report.formats import FORMATS, WIDTH, print_table, render
from raycl.report.load import TrackedSweep, load
from raycl.report.table import Table, make_table
from raycl.tracking import store


def report(
    name: str,
    uri: str,
    fmt: str = "table",
    out: Path | None = None,
    baseline: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print the report of the latest sweep called ``name`` in a tracking store.

    Args:
        name: The sweep's name.
        uri: An MLflow tracking URI.
        fmt: See ``show``, also for the rest.
        out: Folder.
        baseline: Label.
        file: Stream to print to.

    Raises:
        UserError: Unknown sweep, format or baseline, or the store cannot be read.
    """
    _check(fmt)
    show(load(name, uri), fmt, out, baseline, file)


def _check(fmt: str) -> None:
    if fmt not in FORMATS:
        raise UserError("--format", f"unknown format '{fmt}'", nearest(fmt, FORMATS))


def show(
    sweep: TrackedSweep,
    fmt: str = "table",
    out: Path | None = None,
    baseline: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print the report of a sweep.

    Args:
        sweep: The sweep.
        fmt: One of ``FORMATS``.
        out: Also write ``report.md``, ``table.csv``, ``table.json``, ``figures/`` there, and
            ``pictures/`` if methods made any.
        baseline: The method differences are taken to; ``None``: as the sweep file says.
        file: Stream to print to; ``None``: standard output.

    Raises:
        UserError: Unknown format or baseline, or ``out`` cannot be a folder.
    """
    _check(fmt)
    table = make_table(sweep, baseline)
    if out is not None:
        make_out_folder(out)
    file = file or sys.stdout
    if fmt == "table":
        console = Console(file=file)
        if not console.is_terminal:
            console = Console(file=file, width=WIDTH)
        print_table(table, console)
    else:
        file.write(render(table, fmt))
    if out is not None:
        _write(report_files(table, _client(sweep)), out)


def write_report(
    name: str,
    uri: str,
    out: Path,
    baseline: str | None = None,
    *,
    log_to_parent: bool = False,
) -> Table:
    """Write the report of the latest sweep called ``name`` to a folder, without printing.

    Args:
        name: The sweep's name.
        uri: An MLflow tracking URI.
        out: Folder for the files; see ``report``.
        baseline: As for ``report``.
        log_to_parent: Also attach the files to the sweep's parent run, under ``report/``.

    Returns:
        The table, which ``formats.print_table`` prints.

    Raises:
        UserError: Unknown sweep or baseline, or the store cannot be read.
    """
    sweep = load(name, uri)
    table = make_table(sweep, baseline)
    files = write(sweep, table, out)
    if log_to_parent:
        attach(sweep, files)
    return table


def make_out_folder(out: Path) -> None:
    """Make the folder that ``--out`` names, before anything is done that it is for.

    Raises:
        UserError: It is a file or below one, or it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the folder {out}: {error.strerror}"
        raise UserError("--out", what, "give another one") from None
    if not os.access(out, os.W_OK):
        raise UserError("--out", f"{out} cannot be written", "give another folder")


def write(sweep: TrackedSweep, table: Table, out: Path) -> dict[str, bytes]:
    """Write the files of a report.

    Args:
        sweep: The sweep.
        table: Its table.
        out: Folder for the files; see ``show``.

    Returns:
        The files, by path in the folder.

    Raises:
        OSError: They cannot be written.
    """
    files = report_files(table, _client(sweep))
    _write(files, out)
    return files


def attach(sweep: TrackedSweep, files: Mapping[str, bytes]) -> None:
    """Attach the files of a report to the sweep's parent run, if a store has it."""
    client = _client(sweep)
    if client is not None and sweep.parent_id:
        with TemporaryDirectory() as folder:
            _write(files, Path(folder))
            client.log_artifacts(sweep.parent_id, folder, "report")


def _client(sweep: TrackedSweep) -> MlflowClient | None:
    """A client of the store that a sweep was read from; ``None`` if it was read from its folder."""
    return MlflowClient(store.for_mlflow(sweep.uri)) if sweep.uri else None


def report_files(table: Table, client: MlflowClient | None) -> dict[str, bytes]:
    """Make all files of a report, by path in its folder; without a store there are no pictures."""
    from raycl.report import figures  # importing matplotlib takes a second

    of_methods = [] if client is None else pictures.fetch(table, client)
    drawn = figures.draw(table)
    shown = [name for name in drawn if name.endswith(".png")]
    figured = "\n".join(f"![{Path(name).stem}](figures/{name})\n" for name in shown)
    text = f"# {table.name}\n\n{figured}\n{render(table, 'markdown')}"
    text += pictures.markdown(of_methods)
    files = {
        "report.md": text.encode(),
        "table.csv": render(table, "csv").encode(),
        "table.json": render(table, "json").encode(),
    }
    files |= {f"figures/{name}": data for name, data in drawn.items()}
    return files | pictures.files(of_methods)


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write each file whole or not at all."""
    for name, data in files.items():
        atomic.write(folder / name, data)
