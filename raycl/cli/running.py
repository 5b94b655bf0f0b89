"""Commands that run trials: here, on a cluster, as a job, again."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from raycl.cli.arguments import (
    Accept,
    Address,
    Dashboard,
    DataDir,
    Name,
    Overrides,
    RunsDir,
    Smoke,
    Uri,
    data_folder,
    runs_folder,
)
from raycl.errors import UserError, printable

app = typer.Typer()
bench_app = typer.Typer(help="Measurements on this machine or cluster.", no_args_is_help=True)


@app.command()
def run(
    sweep: Annotated[Path, typer.Argument(help="A sweep file.", show_default=False)],
    overrides: Overrides = None,
    smoke: Smoke = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every trial that would run, and stop.")
    ] = False,
    address: Address = None,
    runs: RunsDir = None,
    data: DataDir = None,
    tracking_uri: Uri = None,
    accept_changes: Accept = False,
) -> None:
    """Run a sweep, or continue it.

    Exit codes: 0 all trials finished and are in the table; 1 some are not; 2 the file or the
    arguments are wrong; 3 Ray died; 130 interrupted. After 3 and 130 the same command continues.
    """
    if dry_run:
        from raycl import describe
        from raycl.sweep.file import spec

        describe.print_preview(spec.load(sweep, overrides or [], smoke))
        return
    from raycl.sweep import run as sweep_run

    root, runs = data_folder(data), runs_folder(runs)
    where = (address, runs, root, tracking_uri)
    leave(sweep_run.run(sweep, overrides or [], smoke, *where, accept_changes))


@app.command()
def pretrain(
    sweep: Annotated[
        Path,
        typer.Argument(help="A sweep that trains one network.", show_default=False),
    ],
    overrides: Overrides = None,
    smoke: Smoke = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The weights file [default: NAME.safetensors in the data folder]."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Instead of the file's seeds.", show_default=False)
    ] = None,
    trial: Annotated[
        str | None,
        typer.Option(help="Key of the trial to write, if there are several.", show_default=False),
    ] = None,
    address: Address = None,
    runs: RunsDir = None,
    data: DataDir = None,
    tracking_uri: Uri = None,
    accept_changes: Accept = False,
) -> None:
    """Run a sweep that pre-trains a network, write its weights, print the block that names them.

    Exit codes: see raycl run. What has run is not run again.
    """
    from raycl import pretrain as command

    root, runs = data_folder(data), runs_folder(runs)
    wish = command.Wish(sweep, overrides or [], smoke, out, seed, trial, accept_changes)
    leave(command.pretrain(wish, address, runs, root, tracking_uri))


@app.command()
def resume(
    name: Name,
    address: Address = None,
    runs: RunsDir = None,
    data: DataDir = None,
    tracking_uri: Uri = None,
    accept_changes: Accept = False,
) -> None:
    """Continue a sweep by its name, and run its failed trials again."""
    from raycl.sweep import run as sweep_run

    root, runs = data_folder(data), runs_folder(runs)
    leave(sweep_run.resume(name, runs, address, root, tracking_uri, accept_changes))


def leave(code: int) -> NoReturn:
    """End with an exit code; at once if Ray died, whose library would wait for it."""
    from raycl.sweep.execution.cluster import RAY_DIED

    if code == RAY_DIED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    raise typer.Exit(code)


def leave_if_ended_by(error: BaseException) -> None:
    """End in one line if Ray died, or if nothing can be kept; any other error is a fault."""
    from raycl.sweep.execution.cluster import DIED, RAY_DIED, Broken
    from raycl.sweep.execution.ray_here import RayDied

    if isinstance(error, RayDied):
        print(f"error: {DIED}", file=sys.stderr)
        leave(RAY_DIED)
    if isinstance(error, Broken):
        print(f"error: results cannot be kept: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)


@app.command()
def submit(
    sweep: Annotated[Path, typer.Argument(help="A sweep file.", show_default=False)],
    overrides: Overrides = None,
    smoke: Smoke = False,
    address: Dashboard = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all runs on the cluster [default: $RAYCL_RUNS or ~/raycl/runs]."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data sets on the cluster [default: $RAYCL_DATA or ~/raycl/data]."),
    ] = None,
    tracking_uri: Uri = None,
    wait: Annotated[
        bool | None,
        typer.Option(
            "--wait/--no-wait",
            help="Wait for the end without the log, or for nothing [default: follow the log].",
            show_default=False,
        ),
    ] = None,
    accept_changes: Accept = False,
) -> None:
    """Run a sweep as a Ray job: the driver runs on the cluster, with the current directory.

    The exit code is the job's own, see raycl run. Ctrl-C leaves the job alone (exit code 130).
    Variables RAYCL_*, MLFLOW_*, AWS_* and those of other stores are passed on, those with secrets
    in a file of mode 0600 instead of the job's metadata.
    """
    from raycl import jobs

    wish = jobs.Wish(sweep, overrides or [], smoke, runs, data, tracking_uri, accept_changes)
    raise typer.Exit(jobs.submit(wish, address, wait))


@app.command("jobs")
def jobs_(
    job: Annotated[
        str | None, typer.Argument(help="Follow this one, or the sweep's.", show_default=False)
    ] = None,
    address: Dashboard = None,
) -> None:
    """List the jobs of a cluster, or follow one's log to its end."""
    from raycl import describe, jobs

    if job is not None:
        raise typer.Exit(jobs.attach(job, address))
    columns = ["job", "sweep", "state", "began", "took", "code"]
    describe.print_table(columns, jobs.jobs(address))


@app.command()
def stop(
    job: Annotated[str, typer.Argument(help="A job, or the sweep it runs.")],
    address: Dashboard = None,
) -> None:
    """End a job: its trials save their state, its runs are closed as killed."""
    from raycl.jobs import stop as end

    raise typer.Exit(end(job, address))


@app.command()
def verify(
    name: Name,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the finished trials that runs again; at least one."
        ),
    ] = 0.05,
    address: Address = None,
    runs: RunsDir = None,
    data: DataDir = None,
) -> None:
    """Audit a table: run some of its trials again, and compare every bit of their matrices.

    Exit codes: 0 the same bits, made with the same code and data (another device or other versions
    are named); 1 something differs; 2 the arguments are wrong.
    """
    from raycl.verify import verify as again

    root, runs = data_folder(data), runs_folder(runs)
    raise typer.Exit(again(name, share, runs, address, root))


@bench_app.callback()
def _bench() -> None:
    """Typer collapses a group with one command; this callback prevents it."""


@bench_app.command()
def pack(
    sweep: Annotated[Path, typer.Argument(help="A sweep file.", show_default=False)],
    overrides: Overrides = None,
    method: Annotated[
        str | None, typer.Option(help="Label of a method [default: the first].")
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(help="Numbers of trials at a time, e.g. 1,2,4 [default: powers of two]."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement.")] = 20,
    address: Address = None,
    data: DataDir = None,
) -> None:
    """How many trials at a time a device should be given: the best ``resources`` for a sweep."""
    from raycl import describe
    from raycl import pack as bench

    words = [] if trials is None else [word.strip() for word in trials.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 1024 for word in words):
        what = f"'{trials}' is no list of numbers from 1 to 1024"
        raise UserError("--trials", what, "e.g. 1,2,4")
    counts = [int(word) for word in words]
    root = data_folder(data)
    found = bench.pack(sweep, overrides or [], method, counts, seconds, address, root)
    describe.print_packed(found)
    raise typer.Exit(0 if found.best else 1)
