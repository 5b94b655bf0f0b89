"""Pictures that methods made of themselves, from the artifacts of the runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.tracking import MlflowClient

from raycl.report.load import TrackedRun
from raycl.report.table import Table
from raycl.tracking import store
from raycl.tracking.names import distinct, file_name
from raycl.tracking.records import PICTURES

log = logging.getLogger(__name__)

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
        found = list(pool.map(lambda group: _files(client, group.runs[0]), groups))
    if problems := [one for one in found if isinstance(one, str)]:
        text = "pictures of methods cannot be read, and are left out (of %d trials): %s"
        log.warning(text, len(problems), problems[0])
    places = distinct((group.benchmark for group in groups), file_name)
    shown = []
    for group, files in zip(groups, found, strict=True):
        if files and not isinstance(files, str):
            on = [group.benchmark] if several else []
            title = f"{' on '.join([group.method, *on])}, seed {group.runs[0].seed}"
            folder = "/".join([PICTURES, *(places[one] for one in on), file_name(group.method)])
            shown.append(Shown(title, folder, files))
    return shown


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


def _files(client: MlflowClient, run: TrackedRun) -> dict[str, bytes] | str:
    """The pictures of a run by name, or why they cannot be read."""
    with TemporaryDirectory() as folder:
        try:
            if not run.run_id or not client.list_artifacts(run.run_id, PICTURES):
                return {}
            place = Path(client.download_artifacts(run.run_id, PICTURES, folder))
            return {path.name: path.read_bytes() for path in sorted(place.glob("*.png"))}
        except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
            return store.reason(error)
