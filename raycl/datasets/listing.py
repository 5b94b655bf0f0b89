"""Lists the images below a folder or in a zip, and the other files that lie there.

Links are followed, but for those that lead back to a folder they lie in. Files that systems leave
behind (``.DS_Store``, ``Thumbs.db``, ``__MACOSX``) do not count; whatever else is passed over is
counted in ``LeftOut``.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from raycl.datasets.files import WHERE, ZIP, open_zip, split_archive
from raycl.datasets.left_out import LeftOut
from raycl.errors import UserError, printable

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".tga", ".jp2",
)  # fmt: skip
SYSTEM = ("__macosx", ".ds_store", "thumbs.db", "desktop.ini")
"""Names, in small letters, of files that systems leave behind; others begin with ``._``."""
EMPTY = "folders without images"
OTHER = "files of other kinds"
HIDDEN = "hidden files or folders"
BROKEN = "links that lead nowhere"
LOOPS = "links that lead back"
SPECIAL = "files that are no regular files"
LINKS = "links inside the zip"
OUTSIDE = "names that lead outside the zip"
LOOSE = "images outside the tasks' folders"


class Listing(NamedTuple):
    """The images below a path.

    Attributes:
        names: Relative to the path, sorted.
        start: Prefix that makes a name one of ``Files.paths``.
        left_out: Other files and folders that are there.
    """

    names: list[PurePosixPath]
    start: str
    left_out: LeftOut


def images(path: Path) -> Listing:
    """All images below a folder, a zip, or a folder inside a zip.

    Raises:
        UserError: No such path, neither a folder nor a zip, a folder that cannot be read, or no
            image at all.
    """
    found, start = _walked(path)
    if not found.images:
        what = f"'{printable(str(path))}' holds no images"
        left_out = LeftOut.of(found.passed)
        raise UserError(WHERE, what, f"left out: {left_out}" if left_out else f"known: {_KNOWN}")
    left_out = found.left_out(start)
    return Listing(sorted(PurePosixPath(name) for name in found.images), start, left_out)


_KNOWN = ", ".join(SUFFIXES)


def subfolders(path: Path) -> list[str]:
    """Names of the folders below ``path`` that hold images, sorted.

    A lone folder around image-folder trees is skipped: its name stands before theirs,
    ``outer/scenes``.

    Raises:
        UserError: As ``images``; or the name of a folder cannot stand in a table.
    """
    around, parts = _inside([name.parts for name in images(path).names])
    names = sorted({p[0] for p in parts})
    for name in names:
        readable(name, path)
    return [around + name for name in names]


def beside(path: Path, tasks: Sequence[str]) -> LeftOut:
    """Count what ``subfolders`` passes over: folders without images, images outside of folders.

    Args:
        path: As for ``subfolders``.
        tasks: Folders that are not looked into here.
    """
    found, start = _walked(path)
    parts = [tuple(name.split("/")) for name in found.images]
    around, inner = _inside(parts)
    empty = [
        name
        for name in found.empty() - set(tasks)
        if name.startswith(around) and "/" not in name.removeprefix(around)
    ]
    loose = ["/".join(p) for p in parts if len(p) == 1] if inner else []
    named = {EMPTY: empty, LOOSE: loose}
    return LeftOut.of({reason: [start + n for n in names] for reason, names in named.items()})


def _inside(parts: Sequence[tuple[str, ...]]) -> tuple[str, list[tuple[str, ...]]]:
    """The lone folders around all images, and the names of the images inside them."""
    around, inner = "", [p for p in parts if len(p) > 1]
    while _is_around(inner):
        around, inner = f"{around}{inner[0][0]}/", [p[1:] for p in inner]
    return around, inner


def _is_around(parts: Sequence[tuple[str, ...]]) -> bool:
    """Whether all images are in one folder that is no image-folder tree itself."""
    if len({p[0] for p in parts}) != 1:
        return False
    return min(map(len, parts)) > 3 and "train" not in {p[1] for p in parts}


def has_folder(path: Path, name: str) -> bool:
    """Whether there is a folder ``name`` below ``path``, which may be a zip."""
    archive, inner = split_archive(path)
    if archive.is_dir():
        return (archive / inner / name).is_dir()
    if not archive.is_file():
        return False
    start = f"{inner}/{name}/".lstrip("/")
    return any(member.startswith(start) for member in open_zip(archive.absolute()).members)


def is_zip(path: Path) -> bool:
    """Whether ``path`` is a zip, whose members are called ``path!inner``, not ``path/inner``."""
    return path.suffix.lower() == ZIP and not path.is_dir()


def readable(name: str, path: Path) -> str:
    """The name of a class or a task in its composed form (NFC), in which names are compared.

    Raises:
        UserError: It is not UTF-8, or has control characters: it cannot stand in a table.
    """
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        kind = "is not UTF-8" if not _is_utf8(name) else "has control characters"
        what = f"the name of the folder '{printable(name)}' in '{printable(str(path))}' {kind}"
        raise UserError(WHERE, what, "rename it")
    return unicodedata.normalize("NFC", name)


def _is_utf8(name: str) -> bool:
    return not any(unicodedata.category(letter) == "Cs" for letter in name)


# ---------------------------------------------------------------------- looking


class _Found:
    """Names collected while a tree is walked; all are relative to its root."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.folders: set[str] = set()
        self.passed: dict[str, set[str]] = defaultdict(set)

    def file(self, name: str) -> None:
        """Sort a regular file in."""
        if name.lower().endswith(SUFFIXES):
            self.images.add(name)
        else:
            self.passed[OTHER].add(name)

    def empty(self) -> set[str]:
        """The outermost folders that no image lies below."""
        full = {
            "/".join(parts[:n]) for parts in map(_split, self.images) for n in range(len(parts))
        }
        empty = {folder for folder in self.folders if folder and folder not in full}
        return {name for name in empty if name.rpartition("/")[0] not in empty}

    def left_out(self, start: str) -> LeftOut:
        """Everything that was passed over, with whole names."""
        passed = {EMPTY: self.empty(), **self.passed}
        return LeftOut.of({reason: [start + n for n in names] for reason, names in passed.items()})


def _split(name: str) -> list[str]:
    return name.split("/")


def _walked(path: Path) -> tuple[_Found, str]:
    """Walk everything below ``path``; also returns the prefix of its names."""
    archive, inner = split_archive(path)
    shown = printable(str(archive))
    if not archive.exists():
        raise UserError(WHERE, f"there is no '{shown}'", "relative paths start at the data root")
    found = _Found()
    if archive.is_dir():
        root = archive / inner
        _walk_folder(root, found)
        return found, f"{root.resolve()}/"
    if not is_zip(archive):
        raise UserError(WHERE, f"'{shown}' is neither a folder nor a file that ends in {ZIP}")
    prefix = f"{inner}/" if inner else ""
    _walk_zip(archive.absolute(), prefix, found)
    return found, f"{archive.absolute()}!{prefix}"


def _walk_folder(root: Path, found: _Found) -> None:
    """Look at everything below a folder; a link counts as what it leads to."""
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        here = root / folder
        try:
            status = here.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                found.passed[LOOPS].add(folder)
                continue
            entries = list(os.scandir(here))
        except OSError as error:
            what = f"cannot read the folder '{printable(str(here))}': {error.strerror}"
            raise UserError(WHERE, what) from error
        found.folders.add(folder)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _is_junk(entry.name):
                continue
            kind = _kind(entry)
            if _is_hidden(entry.name):
                found.passed[HIDDEN].add(name)
            elif kind is None:
                waiting.append((name, above | {identity}))
            elif kind:
                found.passed[kind].add(name)
            else:
                found.file(name)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Kind of a directory entry: ``None``: folder, empty: file, else why it is neither.

    A link that leads nowhere is a file if it is called like an image, so that reading says so.
    """
    try:
        if entry.is_dir():
            return None
        if entry.is_file():
            return ""
        broken = entry.is_symlink() and not Path(entry.path).exists()
    except OSError:  # a link to itself, or through a folder that is closed to us
        broken = True
    if not broken:
        return SPECIAL
    return "" if entry.name.lower().endswith(SUFFIXES) else BROKEN


def _walk_zip(archive: Path, prefix: str, found: _Found) -> None:
    """Look at everything in a zip whose name begins with ``prefix``."""
    for member, info in open_zip(archive).members.items():
        if not member.startswith(prefix):
            continue
        name = member.removeprefix(prefix)
        parts = _split(name)
        hidden = next((i for i, part in enumerate(parts) if _is_hidden(part)), None)
        if any(map(_is_junk, parts)):
            continue
        if member.startswith("/") or ".." in parts:
            found.passed[OUTSIDE].add(name)
            continue
        if hidden is not None:
            found.passed[HIDDEN].add("/".join(parts[: hidden + 1]))
            continue
        found.folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
        if info.is_dir():
            found.folders.add(name)
        elif stat.S_ISLNK(info.external_attr >> 16):
            found.passed[LINKS].add(name)
        else:
            found.file(name)


def _is_junk(name: str) -> bool:
    return name.lower() in SYSTEM or name.startswith("._")


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is never read, whatever it holds: hidden, or left by a system."""
    return _is_junk(name) or _is_hidden(name)
