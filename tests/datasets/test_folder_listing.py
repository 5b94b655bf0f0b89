"""Folders as people have them: links, strange names, other files, zips from everywhere."""

from __future__ import annotations

import os
import shutil
import stat
import unicodedata
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np
import pytest
from dataset_making import write_image, write_tree

from raycl import datasets
from raycl.datasets import Dataset, DatasetConfig
from raycl.datasets.left_out import LeftOut
from raycl.datasets.listing import beside, subfolders
from raycl.errors import UserError

LATIN = os.fsdecode(b"caf\xe9")


def load(root: Path, path: str = ".", **options: object) -> Dataset:
    return datasets.load(DatasetConfig(name="folder", path=path, **options), root)  # type: ignore[arg-type]


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for i in range(12):
        (tmp_path / "eel" / f"{i:02}.heic").parent.mkdir(exist_ok=True)
        (tmp_path / "eel" / f"{i:02}.heic").write_bytes(b"x")
    (tmp_path / "fly" / "more").mkdir(parents=True)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    root = f"{tmp_path}/"
    assert str(data.left_out).startswith(
        f"12 files of other kinds ('{root}eel/00.heic', '{root}eel/01.heic', "
    )
    assert str(data.left_out).endswith(
        f"'{root}eel/09.heic', ...); 2 folders without images ('{root}eel', '{root}fly')"
    )


def test_what_systems_leave_behind_is_not_worth_a_word(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for name in ("._00.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/cat/._00.png"):
        for folder in (tmp_path, tmp_path / "cat"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
    assert not load(tmp_path).left_out
    shutil.make_archive(str(tmp_path.parent / "junk"), "zip", tmp_path)
    assert not load(tmp_path.parent, "junk.zip").left_out


def test_hidden_ones_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "pets")
    write_image(tmp_path / "pets" / "cat" / ".ipynb_checkpoints" / "0.png", 12)
    write_image(tmp_path / "pets" / "cat" / ".0.png", 12)
    shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")
    for path, start in (("pets", f"{tmp_path}/pets/"), ("pets.zip", f"{tmp_path}/pets.zip!")):
        named = (f"{start}cat/.0.png", f"{start}cat/.ipynb_checkpoints")
        assert load(tmp_path, path).left_out == LeftOut({"hidden files or folders": (2, named)})


def test_links(tmp_path: Path) -> None:
    write_tree(tmp_path / "far" / "dog")  # a folder that looks like classes 'cat' and 'dog'
    write_tree(tmp_path / "pets", ("cat",))
    (tmp_path / "pets" / "dog").symlink_to(tmp_path / "far" / "dog" / "dog")
    (tmp_path / "pets" / "l1").symlink_to(".")
    (tmp_path / "pets" / "cat" / "l2").symlink_to("..")
    (tmp_path / "pets" / "itself").symlink_to("itself")
    (tmp_path / "pets" / "emu").symlink_to("nowhere")
    data = load(tmp_path, "pets")
    assert data.classes == ("cat", "dog")
    assert len(data.train.labels) == 8
    root = f"{tmp_path}/pets/"
    assert data.left_out.reasons == {
        "links that lead back": (2, (f"{root}cat/l2", f"{root}l1")),
        "links that lead nowhere": (2, (f"{root}emu", f"{root}itself")),
    }
    (tmp_path / "pets" / "cat" / "09.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read the image '.*cat/09.png': No such file"):
        load(tmp_path, "pets")


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    write_tree(tmp_path / "a")
    write_tree(tmp_path / "b")
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b" / "a").symlink_to("../a")
    with pytest.raises(UserError, match="is not in a class folder"):
        load(tmp_path, "a")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write_tree(tmp_path)
    os.mkfifo(tmp_path / "cat" / "09.png")
    assert load(tmp_path).left_out.reasons == {
        "files that are no regular files": (1, (f"{tmp_path}/cat/09.png",))
    }


def test_a_folder_that_is_closed_to_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path)
    scandir = os.scandir

    def closed(path: str | Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot read the folder '.*/dog': Permission denied"):
        load(tmp_path)


def test_names_of_images_may_be_anything(tmp_path: Path) -> None:
    write_tree(tmp_path)
    names = ("a\nb.png", "\x1b[31m.png", f"{LATIN}.png", "a?b#c%d.PNG", "ü '\".png", "a.zip!.png")
    for i, name in enumerate(names):
        write_image(tmp_path / "x.png", 12, seed=i)
        (tmp_path / "x.png").rename(tmp_path / "cat" / name)
    data = load(tmp_path)
    assert np.bincount(data.train.labels).tolist() == [9, 4]
    (tmp_path / "cat" / f"{LATIN}.png").write_bytes(b"")
    (tmp_path / "cat" / "a\nb.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"'.*/cat/a\\nb.png': the file is empty") as caught:
        load(tmp_path)
    assert str(caught.value).isprintable()
    (tmp_path / "cat" / "a\nb.png").unlink()
    with pytest.raises(UserError, match=r"'.*/cat/caf\\xe9.png': the file is empty"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        (LATIN, r"'caf\\xe9' in '.*' is not UTF-8; rename it"),
        ("a\nb", r"'a\\nb' in '.*' has control characters; rename it"),
        ("\x1b[31m", r"'\\x1b\[31m' in '.*' has control characters"),
    ],
)
def test_names_of_classes_and_tasks_are_text(tmp_path: Path, name: str, text: str) -> None:
    write_tree(tmp_path / "seq" / "t1", ("cat", name))
    with pytest.raises(UserError, match=f"the name of the folder {text}"):
        load(tmp_path, "seq/t1")
    (tmp_path / "seq" / "t1" / name).rename(tmp_path / "seq" / "t1" / "dog")
    shutil.copytree(tmp_path / "seq" / "t1", tmp_path / "seq" / name)
    with pytest.raises(UserError, match=f"the name of the folder {text}"):
        subfolders(tmp_path / "seq")


def test_one_name_in_two_spellings(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_tree(tmp_path / "train", (composed, "dog"))
    write_tree(tmp_path / "test", (apart, "dog"))
    assert load(tmp_path).classes == (composed, "dog")
    write_tree(tmp_path / "train", (apart,))
    with pytest.raises(UserError, match=r"two folders for class 'café'.*\(NFC, NFD\); rename one"):
        load(tmp_path)


def test_classes_may_differ_in_case_only(tmp_path: Path) -> None:
    write_tree(tmp_path, ("Cat", "cat"))
    assert load(tmp_path).classes == ("Cat", "cat")


def test_one_class_that_is_left_says_what_was_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, ("cat",))
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"one class only; left out: 1 folders .*/dog'\)"):
        load(tmp_path)


# ---------------------------------------------------------------------- zips


@pytest.mark.parametrize("name", ["PETS.ZIP", "pets.Zip", "pets.zip"])
def test_the_suffix_of_a_zip_in_any_case(tmp_path: Path, name: str) -> None:
    loose = load(write_tree(tmp_path / "pets"))
    shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path)
    (tmp_path / "made.zip").rename(tmp_path / name)
    for size in (None, 80):
        zipped = load(tmp_path, name, size=size)
        assert zipped.classes == loose.classes
    np.testing.assert_array_equal(load(tmp_path, f"{name}!pets").train.images, loose.train.images)
    assert DatasetConfig(name="folder", path=name).label == name[:4]


def test_a_file_that_is_not_called_zip(tmp_path: Path) -> None:
    write_tree(tmp_path / "pets")
    shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "pets")
    (tmp_path / "made.zip").rename(tmp_path / "made.cbz")
    with pytest.raises(UserError, match=r"made.cbz' is neither a folder nor .* ends in .zip"):
        load(tmp_path, "made.cbz")


def test_a_folder_that_is_called_zip(tmp_path: Path) -> None:
    loose = load(write_tree(tmp_path / "data.zip" / "pets"))
    for path in ("data.zip", "data.zip/pets", "data.zip!pets"):
        found = load(tmp_path, path)
        np.testing.assert_array_equal(found.train.images, loose.train.images)


def test_a_link_to_a_zip_in_a_store(tmp_path: Path) -> None:
    loose = load(write_tree(tmp_path / "pets"))
    shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "pets")
    (tmp_path / "made.zip").rename(tmp_path / "0123abcd")
    (tmp_path / "pets.zip").symlink_to("0123abcd")
    np.testing.assert_array_equal(load(tmp_path, "pets.zip").train.images, loose.train.images)


def test_zips_from_everywhere(tmp_path: Path) -> None:
    write_tree(tmp_path / "pets")
    with ZipFile(tmp_path / "x.zip", "w") as file:
        for path in sorted((tmp_path / "pets").rglob("*.png")):
            relative = path.relative_to(tmp_path / "pets")
            name = f"./{relative}" if relative.parts[0] == "cat" else str(relative)
            entry = ZipInfo("x")
            entry.filename = name.replace("/", "\\") if relative.parts[0] == "dog" else name
            file.writestr(entry, path.read_bytes())
        for name in ("../../evil.png", "/etc/evil.png"):
            file.writestr(name, b"x")
        link = ZipInfo("cat/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "00.png")
        file.writestr("cat/inner.zip", b"PK")
        file.writestr("cat/eel/", b"")
    data = load(tmp_path, "x.zip")
    loose = load(tmp_path / "pets")
    np.testing.assert_array_equal(data.train.images, loose.train.images)
    start = f"{tmp_path}/x.zip!"
    assert data.left_out.reasons == {
        "files of other kinds": (1, (f"{start}cat/inner.zip",)),
        "folders without images": (1, (f"{start}cat/eel",)),
        "links inside the zip": (1, (f"{start}cat/link.png",)),
        "names that lead outside the zip": (2, (f"{start}../../evil.png", f"{start}/etc/evil.png")),
    }


# ---------------------------------------------------------------------- tasks


def test_tasks_without_images_and_images_without_a_task(tmp_path: Path) -> None:
    write_tree(tmp_path / "outer" / "t1" / "train")
    write_tree(tmp_path / "outer" / "t2" / "train")
    (tmp_path / "outer" / "t3" / "train").mkdir(parents=True)
    write_image(tmp_path / "stray.png", 12)
    assert subfolders(tmp_path) == ["outer/t1", "outer/t2"]
    assert beside(tmp_path, ["outer/t1", "outer/t2"]).reasons == {
        "folders without images": (1, (f"{tmp_path}/outer/t3",)),
        "images outside the tasks' folders": (1, (f"{tmp_path}/stray.png",)),
    }
    assert not beside(tmp_path / "outer", ["t3"])


def test_lines_of_several_data_sets_are_one() -> None:
    one, two = LeftOut.of({"a": ["x", "y"]}), LeftOut.of({"a": ["z"], "b": ["\n"]})
    assert str(LeftOut.merged([one, two, LeftOut()])) == r"3 a ('x', 'y', 'z'); 1 b ('\n')"
    assert not LeftOut.merged([])


def test_images_beside_the_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "test", "train_part2"):
        write_tree(tmp_path / split)
    write_image(tmp_path / "9.png", 12)
    left_out = load(tmp_path).left_out.reasons["images outside the folders of the splits"]
    assert left_out[0] == 11
    assert left_out[1][0] == f"{tmp_path}/9.png"
