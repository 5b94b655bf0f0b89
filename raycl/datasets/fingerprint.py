"""Fingerprints of data sets: few bytes that stand for names, sizes and contents of their files.

Contents are read once for each state of a file (size, times of change, inode); their hashes lie in
a small data base beside the sweeps. Of data sets above ``WHOLE`` bytes only the beginning and the
end of each file are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raycl.datasets.base import DatasetConfig
from raycl.datasets.disk import resolve
from raycl.datasets.files import WORKERS, split_archive
from raycl.datasets.listing import SUFFIXES, is_passed_over
from raycl.datasets.standard import STANDARD

WHOLE = 4_000_000_000
PART = 16_384
FRESH_NS = 2_000_000_000
"""Seconds within which a file may change twice without a change of its time stamp."""
_TABLE = "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, state TEXT, hash TEXT)"


def fingerprint(config: DatasetConfig, root: Path, cache: Path) -> str:
    """The fingerprint of a data set: number and size of its files, and a hash of them all.

    Args:
        config: The data set.
        root: The data root.
        cache: File in which hashes are kept; without it, only time is lost.
    """
    files = sorted(_files(config, root))
    if not files:
        return "bundled"
    states = [path.stat() for _, path in files]
    total = sum(state.st_size for state in states)
    with _cached(cache) as known, ThreadPoolExecutor(WORKERS) as pool:
        whole = total <= WHOLE
        hashes = pool.map(
            lambda pair: known.hash(pair[0][1], pair[1], whole), zip(files, states, strict=True)
        )
        digest = hashlib.sha256()
        for (name, _), state, content in zip(files, states, hashes, strict=True):
            digest.update(f"{name}\0{state.st_size}\0{content}\n".encode(errors="surrogateescape"))
    return f"{len(files)} files, {total} bytes, sha256 {digest.hexdigest()[:16]}"


def _files(config: DatasetConfig, root: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of every file of a data set."""
    if config.name in STANDARD:
        places = [root / name for name in STANDARD[config.name].files]
        places += [place.with_name(f"{place.name}.gz") for place in places]
    else:
        places = [split_archive(resolve(config.path or "", root))[0]]
        if config.split_file is not None:
            lists = (config.split_file.train, config.split_file.test)
            places += [resolve(name, root) for name in lists]
    read = SUFFIXES if config.name == "folder" else ("",)
    for place in places:
        if place.is_file():
            yield place.name, place
        elif place.is_dir():
            below = (path for path in _below(place) if path.name.lower().endswith(read))
            yield from ((f"{place.name}/{path.relative_to(place)}", path) for path in below)


def _below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Files that somebody may read from: no hidden ones, and none that systems leave behind."""
    state = folder.stat()
    identity = (state.st_dev, state.st_ino)
    if identity in above:  # a loop of links
        return
    for path in sorted(folder.iterdir()):
        if is_passed_over(path.name) or not os.access(path, os.R_OK):
            continue
        if path.is_dir():
            yield from _below(path, above | {identity})
        elif path.is_file():
            yield path


class _Hashes:
    """Hashes of files, remembered while the files stay as they are."""

    def __init__(self, known: dict[str, tuple[str, str]]) -> None:
        self.known, self.new = known, dict[str, tuple[str, str]]()

    def hash(self, path: Path, stat: os.stat_result, whole: bool) -> str:
        times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
        state = f"{stat.st_size} {times} {stat.st_ino} {'whole' if whole else 'parts'}"
        name = os.fsencode(path).decode("latin-1")  # SQLite takes no other bytes than Unicode's
        before = self.known.get(name)
        if before is not None and before[0] == state:
            return before[1]
        digest = _content(path, stat.st_size, whole)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > FRESH_NS:
            self.new[name] = (state, digest)
        return digest


def _content(path: Path, size: int, whole: bool) -> str:
    with path.open("rb") as file:
        if whole or size <= 2 * PART:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        begin = file.read(PART)
        file.seek(-PART, os.SEEK_END)
        return hashlib.sha256(begin + file.read(PART)).hexdigest()[:16]


@contextlib.contextmanager
def _cached(path: Path) -> Iterator[_Hashes]:
    """Lend the cached hashes; new ones are stored at the end, if that is possible."""
    known: dict[str, tuple[str, str]] = {}
    with contextlib.suppress(sqlite3.Error, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute(_TABLE)
            there = connection.execute("SELECT path, state, hash FROM hashes")
            known = {name: (state, found) for name, state, found in there}
    hashes = _Hashes(known)
    yield hashes
    if not hashes.new:
        return
    rows = [(name, *pair) for name, pair in hashes.new.items()]
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)
    except sqlite3.OperationalError:
        return  # locked, full or read-only: only time is lost
    except sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # damaged: it is made anew
