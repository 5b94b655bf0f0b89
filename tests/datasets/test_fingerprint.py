"""A data set that has changed is another one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from raycl.datasets import DatasetConfig, fingerprint
from raycl.datasets.fingerprint import fingerprint as found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        path = tmp_path / "data" / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
        os.utime(path, (1e9, 1e9))
    return tmp_path / "data" / "pets"


PETS = DatasetConfig(name="folder", path="pets")
Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "content of the same size": lambda pets: (pets / "cats/1.png").write_bytes(b"x" * 100),
    "one more": lambda pets: (pets / "cats/3.png").write_bytes(b"x"),
    "one less": lambda pets: (pets / "cats/1.png").unlink(),
    "renamed": lambda pets: (pets / "cats/1.png").rename(pets / "cats/0.png"),
    "moved to another class": lambda pets: (pets / "cats/2.png").rename(pets / "dogs/2.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(images: Path, tmp_path: Path, change: str) -> None:
    config = DatasetConfig(name="folder", path="pets")
    root, cache = tmp_path / "data", tmp_path / "hashes.db"
    before = found(config, root, cache)
    assert before.startswith("3 files, ")
    assert found(config, root, cache) == before
    assert found(config, root, tmp_path / "other.db") == before
    CHANGES[change](images)
    assert found(config, root, cache) != before


def test_a_file_whose_times_are_put_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FRESH_NS", 0)
    config, root, cache = (
        DatasetConfig(name="folder", path="pets"),
        tmp_path / "data",
        tmp_path / "c",
    )
    before = found(config, root, cache)
    (images / "cats/1.png").write_bytes(b"x" * 100)
    os.utime(images / "cats/1.png", (1e9, 1e9))
    assert found(config, root, cache) != before


def test_contents_are_read_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FRESH_NS", 0)
    read: list[Path] = []
    real = fingerprint._content

    def content(path: Path, size: int, whole: bool) -> str:
        read.append(path)
        return real(path, size, whole)

    monkeypatch.setattr(fingerprint, "_content", content)
    config, root, cache = (
        DatasetConfig(name="folder", path="pets"),
        tmp_path / "data",
        tmp_path / "c",
    )
    before = found(config, root, cache)
    assert len(read) == 3
    assert found(config, root, cache) == before
    assert len(read) == 3
    (images / "dogs/1.png").touch()
    assert found(config, root, cache) == before, "the same content at another time"
    assert len(read) == 4
    cache.write_bytes(b"no data base")
    assert found(config, root, cache) == before


def test_a_cache_that_is_in_use_stays(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FRESH_NS", 0)
    root, cache = tmp_path / "data", tmp_path / "c"
    before = found(PETS, root, cache)
    content = cache.read_bytes()
    (images / "cats/1.png").touch()  # a new hash of the same content
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    with contextlib.closing(connect(cache)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert found(PETS, root, cache) == before
    assert cache.read_bytes() == content


def test_a_damaged_cache_that_cannot_be_removed_costs_only_time(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FRESH_NS", 0)
    root, cache = tmp_path / "data", tmp_path / "c"
    before = found(PETS, root, cache)
    cache.write_bytes(b"no data base")

    def refuse(path: Path, missing_ok: bool) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert found(PETS, root, cache) == before


def test_large_sets_are_read_in_part(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 10)
    large = images / "cats/1.png"
    large.write_bytes(b"a" * 100_000)
    config, root, cache = (
        DatasetConfig(name="folder", path="pets"),
        tmp_path / "data",
        tmp_path / "c",
    )
    before = found(config, root, cache)
    large.write_bytes(b"a" * 99_999 + b"b")
    assert found(config, root, cache) != before


def test_zips_loops_of_links_lists_and_bundled_sets(images: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "data", tmp_path / "c"
    with ZipFile(root / "pets.zip", "w") as file:
        file.write(images / "cats/1.png", "cats/1.png")
    for path in ("pets.zip", "pets.zip!cats"):
        assert found(DatasetConfig(name="folder", path=path), root, cache).startswith("1 files")
    (images / "cats" / "loop").symlink_to(images)
    assert found(DatasetConfig(name="folder", path="pets"), root, cache).startswith("3 files")
    lists = {}
    for name in ("train", "test"):
        (root / f"{name}.yaml").write_text(name)
        lists[name] = f"{name}.yaml"
    listed = DatasetConfig(name="folder", path="pets", split_file=lists)  # type: ignore[arg-type]
    assert found(listed, root, cache).startswith("5 files")
    assert found(DatasetConfig(name="digits"), root, cache) == "bundled"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    assert found(DatasetConfig(name="mnist"), root, cache).startswith("1 files")


UNREAD: dict[str, Change] = {
    "a system's file": lambda pets: (pets / "cats/.DS_Store").write_bytes(b"x"),
    "a hidden folder": lambda pets: (pets / ".ipynb_checkpoints").mkdir(),
    "a file of another kind": lambda pets: (pets / "notes.txt").write_bytes(b"x"),
}


@pytest.mark.parametrize("change", UNREAD)
def test_what_is_never_read_does_not_count(images: Path, tmp_path: Path, change: str) -> None:
    before = found(PETS, tmp_path / "data", tmp_path / "c")
    UNREAD[change](images)
    for hidden in images.glob(".ipynb*"):
        (hidden / "1.png").write_bytes(b"x")
    assert found(PETS, tmp_path / "data", tmp_path / "c") == before


def test_a_second_link_to_a_folder_counts_as_the_reader_reads_it(
    images: Path, tmp_path: Path
) -> None:
    (images / "apes").symlink_to(images / "cats")
    assert found(PETS, tmp_path / "data", tmp_path / "c").startswith("5 files")


def test_names_that_are_not_utf_8_are_remembered(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FRESH_NS", 0)
    (images / os.fsdecode(b"cats/caf\xe9.png")).write_bytes(b"x")
    root, cache = tmp_path / "data", tmp_path / "c"
    before = found(PETS, root, cache)
    assert before.startswith("4 files")
    monkeypatch.setattr(fingerprint, "_content", lambda *_: pytest.fail("read twice"))
    assert found(PETS, root, cache) == before
