"""Arguments that several commands have, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

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
        "--tracking-uri",
        help="MLflow [default: the sweep's own, $MLFLOW_TRACKING_URI or runs/mlflow.db].",
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
Smoke = Annotated[
    bool, typer.Option("--smoke", help="The smallest form of the sweep, under NAME-smoke.")
]
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


def data_folder(given: Path | None) -> Path | None:
    """``--data``, made known also to what looks at the environment (benchmarks of folders)."""
    if given is None:
        return None
    root = _folder(given, "--data")
    os.environ["RAYCL_DATA"] = str(root)
    return root


def runs_folder(given: Path | None) -> Path | None:
    """``--runs``, made known also to networks that start from a trial's weights."""
    if given is None:
        return None
    root = _folder(given, "--runs")
    os.environ["RAYCL_RUNS"] = str(root)
    return root


def _folder(given: Path, option: str) -> Path:
    from raycl.datasets.disk import expanded

    return expanded(given, option).resolve()
