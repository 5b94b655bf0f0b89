"""Small files: old or new, and what is said of damaged ones."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycl import atomic


def test_a_file_is_replaced_and_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file.json"
    synced: list[bool] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(path.exists() and path.read_text() == "two")
        real(handle)

    atomic.write(path, "one")
    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write(path, b"two", 0o600)
    assert synced == [False, True], "the content, then the folder with the new name in it"
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_content_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    atomic.write(path, "one")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Threads of one process, or processes of the same number on two machines."""
    path = tmp_path / "file.json"
    texts = [str(i) * 100 for i in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(lambda text: [atomic.write(path, text) for _ in range(20)], texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is damaged (it is empty)"),
        (b'{"a": 1', "is damaged (Expecting"),
        (b"\0\0\0\0", "is damaged (Expecting value"),
        (b"\xff\xfe{", "is damaged ("),
        (b"[1]", "is damaged (it holds no JSON object)"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(content)
    with pytest.raises(atomic.Damaged) as caught:
        atomic.read_json(path, dict, "do this")
    assert str(caught.value).startswith(f"{path}: {said}")
    assert str(caught.value).endswith("; do this")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        atomic.read_json(path, dict)
