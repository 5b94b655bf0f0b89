"""Small files are written whole: after a crash a file is the old one or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from raycl.errors import UserError


class Damaged(UserError):
    """A file of raycl's own cannot be read.

    Args:
        path: The file.
        reason: The damage.
        hint: Advice to the user.
    """

    def __init__(self, path: Path, reason: str, hint: str = "") -> None:
        super().__init__(str(path), f"is damaged ({reason})", hint)
        self.path = path


def write(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file at once: whoever reads it, also after a crash, finds old or new content.

    Args:
        path: The file; its folder is made.
        content: All of it; text becomes UTF-8.
        mode: Permissions, less those of the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id would not be unique: threads and other machines write the same file.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_json(path: Path, kind: type, hint: str = "") -> Any:
    """Read a JSON file of raycl's own.

    Args:
        path: A file of raycl's own.
        kind: ``dict`` or ``list``: the type that the file must hold.
        hint: Advice about a damaged file.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: The file cannot be read, is no JSON, or holds another type.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, error.strerror or str(error), hint) from error
    except ValueError as error:
        reason = "it is empty" if not path.stat().st_size else str(error)
        raise Damaged(path, reason, hint) from error
    if not isinstance(content, kind):
        raise Damaged(path, f"it holds no JSON {'object' if kind is dict else 'list'}", hint)
    return content
