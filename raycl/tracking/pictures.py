"""Copies of the pictures that a trial keeps in its own folder, to be made artifacts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import fsspec

log = logging.getLogger(__name__)


def copy(names: Sequence[str], folder: str, sweep: Path, to: Path) -> list[Path]:
    """Copy pictures into a folder on this machine.

    Args:
        names: Names of PNG files, without suffix.
        folder: Where they are: any URL fsspec knows, or relative to the sweep's folder.
        sweep: The sweep's folder.
        to: Where to.

    Returns:
        What was copied. What cannot be read is named in a warning and left out: a lost picture
        must not hold up the numbers behind it.
    """
    if not re.match(r"/|[a-z][a-z0-9+.-]*://", folder):
        folder = f"{sweep}/{folder}"
    copies = []
    for name in names:
        url, path = f"{folder}/{name}.png", to / f"{name}.png"
        try:
            path.write_bytes(_content(url))
        except Exception as error:  # noqa: BLE001  (file systems raise what they like)
            log.warning("no picture: %s cannot be read (%s)", url, type(error).__name__)
        else:
            copies.append(path)
    return copies


def _content(url: str) -> bytes:
    if url.startswith("/"):  # to fsspec some characters of a path mean more
        return Path(url).read_bytes()
    fs, place = fsspec.url_to_fs(url)
    return fs.cat_file(place)  # type: ignore[no-any-return]
