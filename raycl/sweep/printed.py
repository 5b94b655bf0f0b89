"""The end of a sweep as people see it: the table, and the files of its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console

from raycl.report import main as report
from raycl.report.formats import WIDTH, print_table
from raycl.report.table import make_table
from raycl.sweep.execution import signals
from raycl.sweep.record import local
from raycl.sweep.record.folder import SweepFolder
from raycl.tracking import store


class Printed(NamedTuple):
    """What was printed.

    Attributes:
        trials: Keys of the trials that are in the table.
        written: Whether the files of the report are there.
    """

    trials: set[str]
    written: bool


def print_report(
    folder: SweepFolder, uri: str, whole: bool, terminal: bool, say: Callable[[str], None]
) -> Printed:
    """Print a sweep's table from its folder and its store, and write its report.

    Args:
        folder: The sweep's.
        uri: The tracking store; it may be away.
        whole: Whether all values should be in the store; if so, it is told of the report.
        terminal: Whether the table is to be as wide as that.
        say: Says a line.
    """
    found = local.load(folder)
    assert found is not None, "the tracker has just written the journal"
    sweep, differences = local.with_store(found, uri)
    for line in differences if whole else ():
        say(line)
    table, out = make_table(sweep), folder.path / "report"
    try:
        print_table(table, Console(width=None if terminal else WIDTH))
    except OSError:  # nobody reads it any more
        signals.abandon(1)
    trials = {run.trial_key for group in table.groups for run in group.runs}
    try:
        files = report.write(sweep, table, out)
    except Exception as error:  # noqa: BLE001  (a sweep of days does not end in a traceback)
        why = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        say(f"the report cannot be written to {out}: {why}")
        return Printed(trials, written=False)
    try:
        if whole:
            report.attach(sweep, files)
        say(f"report: {out}")
    except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
        say(f"report: {out}; MLflow did not take it: {store.reason(error)}")
    return Printed(trials, written=True)
