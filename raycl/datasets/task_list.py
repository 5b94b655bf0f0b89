"""Tasks listed in a CSV file with the columns ``id`` and ``name``, such as CLR's ``stat.csv``."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raycl.errors import UserError, nearest

COLUMNS = {"id": ("id", "dataset_id"), "name": ("name", "dataset_name", "task")}
"""Names that the two columns may have; the first of each is the one in ``stat.csv``."""


@dataclass(frozen=True)
class Listed:
    """One task as a line of the file describes it.

    Attributes:
        line: Its number, from 1.
        id: The number of the data set in the data base; empty if the file does not say.
        name: The task's name; empty if the file does not say.
    """

    line: int
    id: str
    name: str

    @property
    def shown(self) -> str:
        """The task's name, or else its id."""
        return self.name or self.id


def read(path: Path, where: str) -> list[Listed]:
    """The tasks of a CSV file in the order of its lines; other columns do not matter.

    Args:
        path: The file; its first line names the columns.
        where: The option that names the file, for errors.

    Raises:
        UserError: No such file, not a CSV file, neither column, a line without a task, a task
            listed twice, or no task at all.
    """
    if not path.is_file():
        hint = "relative paths start at the data root"
        raise UserError(where, f"there is no file '{path}'", hint)
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(where, f"'{path}' cannot be read as CSV: {error}") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = {
        what: next((header.index(name) for name in names if name in header), None)
        for what, names in COLUMNS.items()
    }
    if not any(cell.strip() for row in rows[1:] for cell in row):
        raise UserError(where, f"'{path}' lists no tasks")
    if column["id"] is None and column["name"] is None:
        have = ", ".join(f"'{name}'" for name in header)
        what = f"'{path}' has neither a column 'name' nor 'id' in its first line, only {have}"
        raise UserError(where, what)
    tasks = [
        Listed(number, _cell(row, column["id"]), _cell(row, column["name"]))
        for number, row in enumerate(rows[1:], 2)
        if any(cell.strip() for cell in row)
    ]
    _check(tasks, path, where)
    return tasks


def _cell(row: Sequence[str], column: int | None) -> str:
    """The text of a cell, composed (NFC) as the names of folders are."""
    text = row[column].strip() if column is not None and column < len(row) else ""
    return unicodedata.normalize("NFC", text)


def _check(tasks: Sequence[Listed], path: Path, where: str) -> None:
    """Each line names a task, and no two lines the same one."""
    lines: dict[tuple[str, str], int] = {}
    for task in tasks:
        if not task.shown:
            raise UserError(where, f"line {task.line} of '{path}' names no task")
        for key in (("id", task.id), ("name", task.name)):
            if key[1] and lines.setdefault(key, task.line) != task.line:
                what = f"line {task.line} of '{path}' lists '{key[1]}' again, after line "
                raise UserError(where, f"{what}{lines[key]}")


def match(tasks: Sequence[Listed], folders: Mapping[str, str], path: Path, where: str) -> list[str]:
    """The folder of each task: the one that has its name, or else its id.

    Args:
        tasks: As read.
        folders: Folder of each task, by every name that the task may have.
        path: The CSV file, for errors.
        where: The option that names the file, for errors.

    Raises:
        UserError: A task without a folder, with the nearest name.
    """
    matched = []
    for task in tasks:
        folder = folders.get(task.name) or folders.get(task.id)
        if folder is None:
            what = f"line {task.line} of '{path}': unknown task '{task.shown}'"
            raise UserError(where, what, nearest(task.shown, folders))
        matched.append(folder)
    return matched
