"""Pictures that methods made of themselves, from the artifacts of the runs."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from raycl.report.load import TrackedRun
from raycl.report.table import Table
from raycl.tracking.names import file_name
from raycl.tracking.records import PICTURES

_DOWNLOADS = 8


@dataclass(frozen=True)
class Shown:
    """The pictures of one trial.

    Attributes:
        title: Heading: method, benchmark and seed.
        folder: Folder relative to the report.
        files: PNG files by name, in the order of tasks.
    """

    title: str
    folder: str
    files: dict[str, bytes]


def fetch(table: Table, client: MlflowClient) -> list[Shown]:
    """Download the pictures of each method's first seed on each benchmark, if they are there.

    Args:
        table: The table whose groups are looked at.
        client: Client of the tracking store.
    """
    groups = [group for group in table.groups if group.runs]
    several = len({group.benchmark for group in groups}) > 1
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        found = pool.map(lambda group: _files(client, group.runs[0]), groups)
        pairs = list(zip(groups, found, strict=True))
    shown = []
    for group, files in pairs:
        on = [group.benchmark] if several else []
        title = f"{' on '.join([group.method, *on])}, seed {group.runs[0].seed}"
        folder = "/".join([PICTURES, *map(file_name, [*on, group.method])])
        shown.append(Shown(title, folder, files))
    return [one for one in shown if one.files]


def files(shown: Iterable[Shown]) -> dict[str, bytes]:
    """All pictures by their path in the report's folder."""
    return {f"{one.folder}/{name}": data for one in shown for name, data in one.files.items()}


def markdown(shown: Iterable[Shown]) -> str:
    """The part of ``report.md`` that shows them."""
    return "".join(
        f"\n### pictures: {one.title}\n\n"
        + "".join(f"![{Path(name).stem}]({one.folder}/{name})\n" for name in one.files)
        for one in shown
    )


def _files(client: MlflowClient, run: TrackedRun) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        try:
            if not run.run_id or not client.list_artifacts(run.run_id, PICTURES):
                return {}
            place = Path(client.download_artifacts(run.run_id, PICTURES, folder))
            return {path.name: path.read_bytes() for path in sorted(place.glob("*.png"))}
        except (MlflowException, OSError):
            return {}
