"""Both layouts of the DCT / SKILL data base as image folders."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from dataset_making import write_image

from raycl import datasets
from raycl.cli import main
from raycl.datasets import DatasetConfig
from raycl.datasets.convert import Converted, convert
from raycl.errors import UserError

Image = tuple[str, str, object, int, int]
"""Data set, path, class, set, problem."""

IMAGES: list[Image] = [
    *[("scenes", f"sub/{c}{i}.png", c, s, 0) for c in (2, 10) for i, s in enumerate((0, 0, 1, 2))],
    ("scenes", "sub/bad.png", 2, 0, 1),
    ("scenes", "sub/odd.png", 2, 7, 0),
    ("scenes", "sub/note.txt", 2, 0, 0),
    ("scenes", "other/20.png", 2, 0, 0),
    ("scenes", "test-only.png", 3, 2, 0),
    *[("birds", f"{c}{i}.png", c, s, 0) for c in (0, 1) for i, s in enumerate((0, 1, 2))],
]
IDS = {"scenes": 1, "birds": 2, "invalid": 47, "far": 120, "elsewhere": 3}


def write_images(root: Path, images: Iterable[Image]) -> None:
    for number, (name, path, *_) in enumerate(images):
        write_image(root / name / path.replace(".txt", ".png"), 8, seed=number)


def with_ids(root: Path, images: Iterable[Image] = IMAGES) -> tuple[Path, Path]:
    """The layout of CLR."""
    database = root / "rolling_releases" / "database_2.sqlite"
    database.parent.mkdir(parents=True)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE datasets (dataset_id INT, dataset_name TEXT, good INT)")
        connection.execute(
            "CREATE TABLE files (hash TEXT, path TEXT, filename TEXT, class_id INT, "
            'dataset_id INT, problem INT, "set" INT)'
        )
        connection.executemany(
            "INSERT INTO datasets VALUES (?, ?, 1)", [(i, n) for n, i in IDS.items()]
        )
        for name, path, label, split, problem in images:
            folder, _, file = path.rpartition("/")
            row = (f"/{folder}/" if folder else "/", file, label, IDS[name], problem, split)
            connection.execute("INSERT INTO files VALUES ('h', ?, ?, ?, ?, ?, ?)", row)
        row = ("/", "1.png", 0, IDS["invalid"], 0, 0)
        connection.execute("INSERT INTO files VALUES ('h', ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    write_images(root / "original_images", images)
    write_image(root / "original_images" / "invalid" / "1.png", 8)
    return database, root


def by_name(root: Path, images: Iterable[Image] = IMAGES) -> tuple[Path, Path]:
    """The later layout."""
    database = root / "name-pending_collection" / "0_collection" / "all_images.sqlite"
    database.parent.mkdir(parents=True)
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE images (file_hash TEXT, relative_path TEXT, class_id INT, set_id INT, "
            "problem INT, dataset TEXT)"
        )
        for name, path, label, split, problem in [*images, ("elsewhere", "1.png", 0, 0, 0)]:
            row = (path, label, split, problem, name)
            connection.execute("INSERT INTO images VALUES ('h', ?, ?, ?, ?, ?)", row)
    connection.close()
    write_images(root / "name-pending_collection", images)
    return database, root / "name-pending_collection"


def tree(root: Path) -> dict[str, bytes]:
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


EXPECTED = [
    "birds/test/00000/02.png",
    "birds/test/00001/12.png",
    "birds/train/00000/00.png",
    "birds/train/00001/10.png",
    "birds/val/00000/01.png",
    "birds/val/00001/11.png",
    "scenes/test/00002/23.png",
    "scenes/test/00010/103.png",
    "scenes/train/00002/20-367f813f.png",
    "scenes/train/00002/20-559a47e9.png",
    "scenes/train/00002/21.png",
    "scenes/train/00010/100.png",
    "scenes/train/00010/101.png",
    "scenes/val/00002/22.png",
    "scenes/val/00010/102.png",
]


@pytest.mark.parametrize("layout", [with_ids, by_name])
def test_both_layouts(tmp_path: Path, layout: object) -> None:
    database, images = layout(tmp_path / "data")  # type: ignore[operator]
    out, lines = tmp_path / "skill", []
    done = convert(database, images, out, tell=lines.append)
    assert list(tree(out)) == EXPECTED
    assert done.tasks == {"scenes": (2, 9), "birds": (2, 6)}
    assert sorted(lines) == ["birds: 2 classes, 6 images", "scenes: 2 classes, 9 images"]
    assert (done.linked, done.copied, done.present) == (15, 0, 0)
    assert done.missing == ["elsewhere"]
    assert done.left_out == {
        "rows that are marked as problems": 1,
        "rows of no set": 1,
        "files that raycl cannot read": 1,
        "images of classes without training images": 1,
    }
    assert "2 tasks, 4 classes, 15 images: 15 linked, 0 copied, 0 there already\n" in str(done)
    source = next((tmp_path / "data").rglob("scenes/sub/102.png"))
    assert (out / "scenes/val/00010/102.png").samefile(source)
    before = tree(tmp_path)
    again = convert(database, images, out)
    assert (again.linked, again.copied, again.present) == (0, 0, 15)
    assert tree(tmp_path) == before


def test_both_layouts_give_the_same(tmp_path: Path) -> None:
    for layout in (with_ids, by_name):
        convert(*layout(tmp_path / layout.__name__), tmp_path / f"out-{layout.__name__}")
    assert tree(tmp_path / "out-with_ids") == tree(tmp_path / "out-by_name")


def test_what_comes_out_can_be_read(tmp_path: Path) -> None:
    convert(*with_ids(tmp_path / "data"), tmp_path / "skill")
    data = datasets.load(
        DatasetConfig(name="folder", path="skill/scenes", validation=True), tmp_path
    )
    assert data.classes == ("00002", "00010")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.validation is not None
    assert data.validation.labels.tolist() == [0, 1]


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, images = by_name(tmp_path / "data")
    convert(database, images, tmp_path / "linked")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "link", refuse)
    done = convert(database, images, tmp_path / "copied")
    assert (done.linked, done.copied) == (0, 15)
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked")
    again = convert(database, images, tmp_path / "copied")
    assert again.present == 15


def test_two_conversions_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each conversion writes drafts of its own for files that cannot be linked."""
    database, images = by_name(tmp_path / "data")
    link, copy, other = os.link, shutil.copyfile, []

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "other device")

    def copied(source: Path, draft: Path) -> None:
        copy(source, draft)
        if not other:
            other.append(1)
            convert(database, images, tmp_path / "copied")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", copied)
    convert(database, images, tmp_path / "copied")

    def late(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    done = convert(database, images, tmp_path / "linked")
    assert (done.present, done.linked) == (15, 0)
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked")
    assert not list(tmp_path.rglob("*.part"))


def test_a_copy_that_is_cut_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, images = by_name(tmp_path / "data")

    def full(_: Path, draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"cannot go on: .*No space"):
        convert(database, images, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_parts_of_a_killed_conversion_are_removed_by_a_later_one(tmp_path: Path) -> None:
    database, images = by_name(tmp_path / "data")
    convert(database, images, tmp_path / "out")
    folder = next((tmp_path / "out").rglob("*.png")).parent
    old, young = (folder / f".raycl-{name}.part" for name in ("old", "young"))
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    done = convert(database, images, tmp_path / "out")
    assert (done.present, done.linked, done.copied) == (15, 0, 0)
    assert young.exists(), "another conversion may be writing it"
    assert not old.exists()


def test_other_content_is_never_overwritten(tmp_path: Path) -> None:
    database, images = by_name(tmp_path / "data")
    mine = tmp_path / "skill" / "birds" / "val" / "00001" / "11.png"
    write_image(mine, 8, seed=99)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"birds/val/00001/11\.png' is there with other content"):
        convert(database, images, tmp_path / "skill")
    assert mine.read_bytes() == before


@pytest.mark.parametrize("content", ["id,name\n2,birds\n", "id\n2\n", "name\nbirds\n"])
def test_only_the_tasks_of_a_csv_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "stat.csv").write_text(content)
    database, images = with_ids(tmp_path / "data")
    done = convert(database, images, tmp_path / "skill", tmp_path / "stat.csv")
    assert list(done.tasks) == ["birds"]
    assert sorted(p.name for p in (tmp_path / "skill").iterdir()) == ["birds"]


def test_named_classes_and_images_that_are_not_there(tmp_path: Path) -> None:
    images = [("birds", f"{c}{i}.png", c, 0, 0) for c in ("owl", "wren") for i in (0, 1)]
    database, folder = by_name(tmp_path / "data", images)
    (folder / "birds" / "owl0.png").unlink()
    done = convert(database, folder, tmp_path / "skill")
    assert done.left_out == {"images that are not there": 1}
    found = ["birds/train/owl/owl1.png", "birds/train/wren/wren0.png", "birds/train/wren/wren1.png"]
    assert list(tree(tmp_path / "skill")) == found


def _wrong(root: Path, how: str) -> list[str]:
    """The arguments of the command."""
    database, images = by_name(root)
    out, more = root / "out", []
    if how == "no database":
        database.unlink()
    elif how == "no sqlite":
        database.write_text("hello" * 200)
    elif how == "no tables":
        database.unlink()
        sqlite3.connect(database).execute("CREATE TABLE pets (name)").connection.close()
    elif how == "no columns":
        database.unlink()
        sqlite3.connect(database).execute("CREATE TABLE images (name)").connection.close()
    elif how == "no folder":
        images = root / "nowhere"
    elif how == "empty folder":
        images = root / "empty"
        images.mkdir()
    elif how == "inside":
        out = images / "out"
    elif how == "unknown task":
        (root / "t.csv").write_text("name\nbrids\n")
        more = ["--tasks", str(root / "t.csv")]
    elif how in ("outside", "slash"):
        with sqlite3.connect(database) as connection:
            row = ("../x.png", "a", "birds") if how == "outside" else ("1.png", "a/b", "birds")
            if how == "slash":
                write_image(images / "birds" / "1.png", 8)
            connection.execute("INSERT INTO images VALUES ('h', ?, ?, 0, 0, ?)", row)
        connection.close()
    elif how == "a file in the way":
        out.mkdir()
        (out / "birds").write_text("hello")
    return ["data", "convert", str(database), str(images), str(out), *more]


@pytest.mark.parametrize(
    "how, said",
    [
        ("no database", "there is no file '{root}/name-pending_collection/0_coll"),
        ("no sqlite", "cannot be read as such a data base: file is not a database"),
        ("no tables", "has neither the tables 'datasets' and 'files' nor 'images'"),
        ("no columns", "cannot be read as such a data base: no such column: dataset"),
        ("no folder", "there is no folder '{root}/nowhere'"),
        ("empty folder", "it should have a folder for each data set, such as 'birds'"),
        ("inside", "is inside '{root}/name-pending_collection', which has the images"),
        ("unknown task", "line 2 of '{root}/t.csv': unknown task 'brids'; did you mean 'birds'?"),
        ("outside", "the path 'birds/../x.png' leads outside the data set"),
        ("slash", "'a/b' cannot be the name of a folder"),
        ("a file in the way", "cannot go on: [Errno 20] Not a directory"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raycl", *_wrong(tmp_path, how)])
        with pytest.raises(SystemExit) as ended:
            main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert said.format(root=tmp_path) in error


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, images = with_ids(tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        given = ["data", "convert", str(database), str(images), str(tmp_path / "skill")]
        patch.setattr(sys, "argv", ["raycl", *given])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scenes: 2 classes, 9 images"
    assert lines[2].startswith("2 tasks, 4 classes, 15 images: 15 linked")
    assert lines[-1] == "left out: data sets whose images are not there: elsewhere"
    assert str(Converted()).startswith("0 tasks")
