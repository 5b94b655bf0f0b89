"""Commands that show what there is: tables, games, MLflow, methods, files, this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from raycl.cli.arguments import Address, DataDir, Name, RunsDir, Uri, data_folder
from raycl.errors import UserError, nearest

app = typer.Typer()


@app.command()
def report(
    name: Name,
    fmt: Annotated[str, typer.Option("--format", help="table, markdown, json or csv.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Also write tables and figures there.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that differences are taken to.", show_default=False)
    ] = None,
    runs: RunsDir = None,
    tracking_uri: Uri = None,
) -> None:
    """Show a sweep's table: its folder's and MLflow's, or with --tracking-uri MLflow's alone."""
    from raycl.report.main import show as print_report
    from raycl.sweep.record.local import read

    sweep, differences = read(name, runs, tracking_uri)
    print_report(sweep, fmt, out, baseline)
    for line in differences:
        print(f"warning: {line}", file=sys.stderr)


@app.command()
def gif(
    name: Name,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the trials [default: the sweep's first].")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Labels, separated by commas [default: all].")
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(min=1, max=1800, help="Seconds of a game's own time; longer ones are cut."),
    ] = 60,
    fps: Annotated[
        float, typer.Option(min=1, max=50, help="Agent steps shown per second; 15: as it is.")
    ] = 30,
    out: Annotated[
        Path | None, typer.Option(help="Where to [default: gifs in the sweep's folder].")
    ] = None,
    address: Address = None,
    runs: RunsDir = None,
    tracking_uri: Uri = None,
) -> None:
    """Watch a sweep on games: each game after each game learnt, as GIFs and a page that shows them.

    Steps are left out evenly to keep files small: 3 MB for a sheet of games, 1 MB for one game.
    """
    from raycl.gif.command import Wish
    from raycl.gif.command import gif as draw

    labels = tuple(label.strip() for label in (methods or "").split(",") if label.strip())
    wish = Wish(seed, labels, max_seconds, fps, out)
    raise typer.Exit(draw(name, runs, address, tracking_uri, wish))


@app.command()
def sync(name: Name, runs: RunsDir = None, tracking_uri: Uri = None) -> None:
    """Send values that were kept on disk while the tracker was away."""
    from raycl.sweep.record.folder import SweepFolder
    from raycl.sweep.record.local import sync as send
    from raycl.tracking.journal import JOURNAL, count
    from raycl.trial.checkpoint import runs_root

    folder = SweepFolder.existing(runs_root(runs), name)
    done = send(folder, tracking_uri)
    has = count(folder.path / JOURNAL, 0) - done.left
    print(f"{done.sent} sent, {done.left} left; MLflow has {has}")
    if done.left:
        print(f"warning: {done.problem}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def ui(
    name: Annotated[
        str | None, typer.Argument(help="Open at this sweep.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any.")] = 5000,
    runs: RunsDir = None,
    tracking_uri: Uri = None,
) -> None:
    """Serve MLflow's web interface on the right store."""
    from raycl.tracking import state, store
    from raycl.tracking.ui import serve
    from raycl.trial.checkpoint import runs_root

    root = runs_root(runs)
    used = state.store_of(root / name, tracking_uri) if name else store.resolve(root, tracking_uri)
    raise typer.Exit(serve(*used, port, name))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, benchmarks, networks, sweeps or runs.")],
    runs: RunsDir = None,
) -> None:
    """List what there is; sweeps are looked for in ./sweeps."""
    from raycl import describe

    kinds = ["methods", "benchmarks", "networks", "sweeps", "runs"]
    if what not in kinds:
        raise UserError("raycl list", f"unknown kind '{what}'", nearest(what, kinds))
    if what == "sweeps":
        describe.print_sweeps(Path("sweeps"))
    elif what == "runs":
        from raycl.trial.checkpoint import runs_root

        describe.print_runs(runs_root(runs))
    else:
        describe.print_registered(what)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="method, benchmark, network or sweep.")],
    name: Annotated[str, typer.Argument(help="Name of the component; for a sweep, its file.")],
) -> None:
    """Show what something is and all its options; for a sweep, the file as it is understood."""
    from raycl import describe

    kinds = ["method", "benchmark", "network", "sweep"]
    if kind not in kinds:
        raise UserError("raycl show", f"unknown kind '{kind}'", nearest(kind, kinds))
    if kind == "sweep":
        describe.print_sweep(Path(name))
    else:
        describe.print_class(kind, name)


@app.command()
def schema() -> None:
    """Print the JSON schema of sweep files, for editors."""
    from raycl.sweep.file.json_schema import schema as build

    print(json.dumps(build(), indent=1))


@app.command()
def doctor(runs: RunsDir = None, data: DataDir = None, tracking_uri: Uri = None) -> None:
    """Check this machine; exit code 1 if something would not work."""
    from raycl import datasets
    from raycl.doctor import examine

    raise typer.Exit(examine(runs, data_folder(data) or datasets.data_root(), tracking_uri))
