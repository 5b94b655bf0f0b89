"""Turns the data base of the DCT / SKILL collection, CLR's 53 tasks, into image folders.

There are two layouts. In that of CLR, ``database_2.sqlite``, the table ``datasets`` has
``dataset_id`` and ``dataset_name``, and ``files`` has ``path``, ``filename``, ``class_id``,
``dataset_id``, ``problem`` and ``set``; an image is ``dataset_name + path + filename`` below
``original_images``. In the later one, ``all_images.sqlite``, a table ``images`` has
``relative_path``, ``class_id``, ``set_id``, ``problem`` and ``dataset``; an image is
``dataset/relative_path`` below ``name-pending_collection``. Sets are 0 train, 1 validation, 2 test.

What comes out is ``TASK/train|val|test/CLASS/FILE``, which ``folder_sequence`` reads. Files are
hard links where the file system allows it, else copies.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
import sqlite3
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from raycl.datasets import task_list
from raycl.datasets.listing import SUFFIXES
from raycl.errors import UserError

WHERE = "raycl data convert"
SETS = ("train", "val", "test")
"""Folder names of the sets 0, 1 and 2."""
INVALID = frozenset({47, 56, 84, 93, 103})
LAST = 109
"""Numbers of the data sets that count in CLR's layout: 0 to ``LAST`` without ``INVALID``."""
COLLECTIONS = ("original_images", "name-pending_collection")
"""Names of the collection folders, which hold a folder for each data set."""
RawRow = tuple[str, object, object, object]
"""One row: path, class, number of the set, and 0 where the image has no problem."""
DRAFT, DRAFT_S = ".raycl-", 3600.0
"""Begin of the names of copies that are being made; age in seconds of those nobody makes."""
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Row:
    """A usable image that the data base lists.

    Attributes:
        path: Relative to the collection of all data sets.
        split: ``train``, ``val`` or ``test``.
        label: Name of the class folder.
    """

    path: PurePosixPath
    split: str
    label: str


@dataclass
class Converted:
    """Counts of what a conversion did.

    Attributes:
        tasks: Classes and images of each task, by name.
        linked: Files that are hard links now.
        copied: Files that were copied.
        present: Files that had been there already.
        left_out: Images that were left out, by the reason.
        missing: Data sets whose images are not there.
    """

    tasks: dict[str, tuple[int, int]] = field(default_factory=dict)
    linked: int = 0
    copied: int = 0
    present: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        classes, images = (sum(task[i] for task in self.tasks.values()) for i in (0, 1))
        text = f"{len(self.tasks):,} tasks, {classes:,} classes, {images:,} images: "
        text += f"{self.linked:,} linked, {self.copied:,} copied, {self.present:,} there already"
        for reason, count in sorted(self.left_out.items()):
            text += f"\nleft out: {count:,} {reason}"
        if self.missing:
            text += f"\nleft out: data sets whose images are not there: {', '.join(self.missing)}"
        return text


def convert(
    database: Path,
    images: Path,
    out: Path,
    tasks: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Converted:
    """Make an image-folder tree of the images that a data base lists.

    Nothing that is in ``out`` is changed, and a second run changes nothing. A class without
    training images is left out, and so are rows that are marked as problems, files that raycl
    cannot read or that are not there, and data sets whose folder is not there.

    Args:
        database: The SQLite file.
        images: The folder that holds a folder for each data set, or the one around it.
        out: Folder in which the tree is made.
        tasks: A CSV file: only the tasks it lists, see ``raycl.datasets.task_list``.
        tell: Called with a line after each task.

    Raises:
        UserError: Not such a data base, no images, a name that cannot be a folder's, a task that
            is not in the data base, a file with other content in ``out``, no space.
    """
    if not database.is_file():
        raise UserError(WHERE, f"there is no file '{database}'")
    images = next((images / name for name in COLLECTIONS if (images / name).is_dir()), images)
    if not images.is_dir():
        raise UserError(WHERE, f"there is no folder '{images}'")
    if out.resolve().is_relative_to(images.resolve()):
        raise UserError(
            WHERE, f"'{out}' is inside '{images}', which has the images", "take another"
        )
    done = Converted()
    try:
        uri = f"file:{quote(str(database.resolve()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.text_factory = os.fsdecode
            wanted = _layout(connection, database)
            for name in _chosen(wanted, tasks):
                if not (images / name).is_dir():
                    done.missing.append(name)
                    continue
                _task(_usable(wanted[name].rows(), images, done), name, images, out, done)
                if name in done.tasks:
                    tell("{}: {:,} classes, {:,} images".format(name, *done.tasks[name]))
    except sqlite3.Error as error:
        raise UserError(
            WHERE, f"'{database}' cannot be read as such a data base: {error}"
        ) from error
    except OSError as error:
        raise UserError(WHERE, f"cannot go on: {error}") from error
    if not done.tasks:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in done.left_out.items())
        hint = (
            f"it should have a folder for each data set, such as '{next(iter(wanted), 'scenes')}'"
        )
        what = f"'{images}' has no images of '{database}'"
        raise UserError(WHERE, what, f"left out: {reasons}" if reasons else hint)
    return done


# ---------------------------------------------------------------------- the two layouts


@dataclass(frozen=True)
class _DataSet:
    """One data set of a data base.

    Attributes:
        id: Its number, or an empty text in the layout that has none.
        rows: Reads them.
    """

    id: str
    rows: Callable[[], Iterator[RawRow]]


def _layout(connection: sqlite3.Connection, database: Path) -> dict[str, _DataSet]:
    """The data sets of a data base, by name."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if {"datasets", "files"} <= tables:
        return _with_ids(connection)
    if "images" in tables:
        return _by_name(connection)
    what = f"'{database}' has neither the tables 'datasets' and 'files' nor 'images'"
    raise UserError(WHERE, what)


def _with_ids(connection: sqlite3.Connection) -> dict[str, _DataSet]:
    """Read the data sets of CLR's layout, which have numbers."""
    query = (
        'SELECT path || filename, class_id, CAST("set" AS INTEGER), CAST(problem AS INTEGER) '
        'FROM files WHERE dataset_id = ? ORDER BY "set", class_id, path, filename'
    )
    listed = list(
        connection.execute(
            "SELECT CAST(dataset_id AS INTEGER), dataset_name FROM datasets ORDER BY 1"
        )
    )
    return {
        _folder(name): _DataSet(str(number), partial(_rows, connection, query, number, name))
        for number, name in listed
        if number is not None and 0 <= number <= LAST and number not in INVALID
    }


def _by_name(connection: sqlite3.Connection) -> dict[str, _DataSet]:
    """Read the data sets of the later layout, which have names only."""
    query = (
        "SELECT relative_path, class_id, CAST(set_id AS INTEGER), CAST(problem AS INTEGER) "
        "FROM images WHERE dataset = ? ORDER BY set_id, class_id, relative_path"
    )
    listed = [str(name) for (name,) in connection.execute("SELECT DISTINCT dataset FROM images")]
    return {
        _folder(name): _DataSet("", partial(_rows, connection, query, name, name))
        for name in sorted(listed)
    }


def _rows(
    connection: sqlite3.Connection, query: str, key: int | str, name: str
) -> Iterator[RawRow]:
    """Read the rows of a query, with paths relative to the collection."""
    for path, *rest in connection.execute(query, (key,)):
        yield (f"{name}/{str(path).lstrip('/')}", *rest)


def _chosen(wanted: dict[str, _DataSet], tasks: Path | None) -> list[str]:
    if tasks is None:
        return list(wanted)
    folders = {data.id: name for name, data in wanted.items() if data.id}
    folders |= {name: name for name in wanted}
    return task_list.match(task_list.read(tasks, "--tasks"), folders, tasks, "--tasks")


# ---------------------------------------------------------------------- one task


def _usable(rows: Iterable[RawRow], images: Path, done: Converted) -> list[Row]:
    """Select the rows that become images of the tree, and count the others by reason."""
    rows_kept = []
    for text, label, number, problem in rows:
        path = PurePosixPath(text)
        if ".." in path.parts:
            raise UserError(WHERE, f"the path '{text}' leads outside the data set")
        if problem != 0:
            done.left_out["rows that are marked as problems"] += 1
        elif not isinstance(number, int) or not 0 <= number < len(SETS):
            done.left_out["rows of no set"] += 1
        elif path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            done.left_out["files that raycl cannot read"] += 1
        elif not (images / path).is_file():
            done.left_out["images that are not there"] += 1
        else:
            rows_kept.append(Row(path, SETS[number], _class_folder(label)))
    trained = {row.label for row in rows_kept if row.split == "train"}
    usable = [row for row in rows_kept if row.label in trained]
    if len(usable) < len(rows_kept):
        done.left_out["images of classes without training images"] += len(rows_kept) - len(usable)
    return usable


def _task(rows: list[Row], name: str, images: Path, out: Path, done: Converted) -> None:
    """Make the folder of one task."""
    if not rows:
        return
    places: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        places[out / name / row.split / row.label].append(row)
    count = 0
    for folder, some in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_drafts(folder)
        for file, row in _file_names(some):
            count += 1
            _place(images / row.path, folder / file, done)
    done.tasks[name] = (len({row.label for row in rows}), count)


def _file_names(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """Name each image: its own name, with a hash in it where several have that name."""
    named = {row.path: row for row in rows}
    times = Counter(path.name for path in named)
    for path, row in named.items():
        mark = f"-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
        yield (path.name if times[path.name] == 1 else f"{path.stem}{mark}{path.suffix}"), row


def _remove_drafts(folder: Path) -> None:
    """Delete what killed conversions had begun to copy; what is young may still be written."""
    for left in folder.glob(f"{DRAFT}*.part"):
        with suppress(FileNotFoundError):  # its own conversion may finish it
            if time.time() - left.stat().st_mtime > DRAFT_S:
                left.unlink()


def _place(source: Path, target: Path, done: Converted) -> None:
    """Make a hard link to ``source``, or a copy; do nothing where it is there already."""
    source = source.resolve()
    if target.exists():
        _compare(source, target, done)
        return
    try:
        os.link(source, target)
        done.linked += 1
    except FileExistsError:  # another conversion has just made it
        _compare(source, target, done)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        draft = target.with_name(f"{DRAFT}{uuid.uuid4().hex[:12]}.part")  # others have their own
        try:
            shutil.copyfile(source, draft)
            if target.exists():
                _compare(source, target, done)
                return
            draft.rename(target)
            done.copied += 1
        finally:
            draft.unlink(missing_ok=True)


def _compare(source: Path, target: Path, done: Converted) -> None:
    """Count a file that is there already.

    Raises:
        UserError: It has other content.
    """
    if not (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        what = f"'{target}' is there with other content than '{source}'"
        raise UserError(WHERE, what, "take an empty folder")
    done.present += 1


def _class_folder(label: object) -> str:
    """Name of a class's folder; numbers get five digits, so that they sort as numbers."""
    return f"{label:05d}" if isinstance(label, int) and label >= 0 else _folder(str(label))


def _folder(name: str) -> str:
    """Check that a folder can have this name, and return it."""
    if not name or name.startswith(".") or name != PurePosixPath(name).name or "\0" in name:
        raise UserError(WHERE, f"'{name}' cannot be the name of a folder")
    return name
