"""Image folders, loose and zipped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_making import write_image, write_tree
from PIL import Image

from raycl import datasets
from raycl.datasets import Arrays, Dataset, DatasetConfig, Files
from raycl.datasets.listing import subfolders
from raycl.errors import UserError


def load(root: Path, path: str = ".", **options: object) -> Dataset:
    return datasets.load(DatasetConfig(name="folder", path=path, **options), root)  # type: ignore[arg-type]


def pixels(path: Path) -> np.ndarray:
    array = np.asarray(Image.open(path))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def test_train_and_test_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", ("dog", "cat"), each=3)
    write_tree(tmp_path / "test", ("dog", "cat"), each=1)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert isinstance(data.train, Arrays)
    assert data.train.images.shape == (6, 3, 12, 12)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(data.train.images[4], pixels(tmp_path / "train/dog/01.png"))
    np.testing.assert_array_equal(data.test.images[0], pixels(tmp_path / "test/cat/00.png"))
    flat = data.train.images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(data.mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(data.std, flat.std(1), rtol=1e-6)


def test_files_of_the_system_are_no_images(tmp_path: Path) -> None:
    write_tree(tmp_path, ("_cat", "dog"))
    for stray in ("__MACOSX/_cat/._00.png", "_cat/._01.png", ".cache/x.png", "_cat/notes.txt"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_bytes(b"hello")
    data = load(tmp_path)
    assert data.classes == ("_cat", "dog")
    assert len(data.train.labels) == 8


def test_val_serves_as_test(tmp_path: Path) -> None:
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "val", each=2)
    assert len(load(tmp_path).test.labels) == 4


def test_without_test_folder_every_fifth_image_is_held_out(tmp_path: Path) -> None:
    write_tree(tmp_path, each=11)
    data = load(tmp_path)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    for i, name in enumerate(("cat/04", "cat/09", "dog/04", "dog/09")):
        np.testing.assert_array_equal(data.test.images[i], pixels(tmp_path / f"{name}.png"))
    assert len(data.train.labels) == 18
    assert load(tmp_path).train.images.tobytes() == data.train.images.tobytes()


def drawn(root: Path, path: str = ".", hold_out: int = 100) -> tuple[list[str], list[str]]:
    """Names of training and test images; of their content only the header is read."""
    given = {"size": 80, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    data = load(root, path, hold_out=hold_out, **given)
    sides = []
    for part in (data.train, data.test):
        assert isinstance(part, Files)
        names = ["/".join(re.split("[/!]", name)[-2:]) for name in part.paths]
        assert [data.classes[k] for k in part.labels] == [name.split("/")[0] for name in names]
        sides.append(names)
    return sides[0], sides[1]


def test_hold_out_draws_as_blip_does_on_mini_imagenet(tmp_path: Path) -> None:
    write_image(tmp_path / "one.jpg", 12)
    content = (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "one.jpg").unlink()
    for name in ("b", "a"):
        for i in reversed(range(600)):
            path = tmp_path / name / f"{i:03}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    rng = np.random.RandomState(1234)
    orders = {name: rng.permutation(600) for name in "ab"}
    train, test = drawn(tmp_path)
    assert train == [f"{name}/{i:03}.jpg" for name in "ab" for i in orders[name][:500]]
    assert test == [f"{name}/{i:03}.jpg" for name in "ab" for i in orders[name][500:]]
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path)
    assert drawn(tmp_path, "zipped.zip") == (train, test)
    again = drawn(tmp_path, hold_out=599)
    assert again[0] == [f"{name}/{orders[name][0]:03}.jpg" for name in "ab"]


def test_hold_out_of_small_images(tmp_path: Path) -> None:
    write_tree(tmp_path, each=8)
    data = load(tmp_path, hold_out=3, limit=2)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    order = np.random.RandomState(1234).permutation(8)
    for image, i in zip(data.test.images, order[5:], strict=False):
        np.testing.assert_array_equal(image, pixels(tmp_path / f"cat/{i:02}.png"))
    np.testing.assert_array_equal(data.train.images[0], pixels(tmp_path / f"cat/{order[0]:02}.png"))


@pytest.mark.parametrize("split", ["test", "val"])
def test_hold_out_has_nothing_to_draw_from(tmp_path: Path, split: str) -> None:
    write_tree(tmp_path / "pets")
    write_tree(tmp_path / "own" / "train")
    write_tree(tmp_path / "own" / split)
    for path, text in (
        ("pets", r"class 'cat' of '.*/pets' has 5 image\(s\); to keep 5 .* at least 6$"),
        ("own", "'.*/own' has test images of its own; leave out hold_out"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            load(tmp_path, path, hold_out=5)
        assert caught.value.where == "benchmark.dataset.hold_out"


def test_a_zip_gives_what_the_folder_gives(tmp_path: Path) -> None:
    write_tree(tmp_path / "pets" / "train")
    write_tree(tmp_path / "pets" / "test")
    write_tree(tmp_path / "other")
    loose = load(tmp_path, "pets")
    shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path, ".")
    shutil.make_archive(str(tmp_path / "lone"), "zip", tmp_path, "pets")
    for path in ("both.zip!pets", "both.zip!pets/", "lone.zip", str(tmp_path / "lone.zip")):
        zipped = load(tmp_path, path)
        assert zipped.classes == loose.classes
        np.testing.assert_array_equal(zipped.train.images, loose.train.images)
        np.testing.assert_array_equal(zipped.test.images, loose.test.images)
        np.testing.assert_array_equal(zipped.test.labels, loose.test.labels)


def test_jpegs_are_decoded_as_pillow_decodes_them(tmp_path: Path) -> None:
    for k, mode in enumerate(("RGB", "L", "CMYK")):
        for i in range(5):
            path = tmp_path / f"class{k}" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(path)
    data = load(tmp_path)
    assert data.train.images.shape == (12, 3, 16, 16)
    for i, path in enumerate(("class0/0", "class1/0", "class2/0")):
        expected = np.asarray(Image.open(tmp_path / f"{path}.jpg").convert("RGB"))
        np.testing.assert_allclose(
            data.train.images[4 * i].astype(int), expected.transpose(2, 0, 1), atol=2
        )


def test_grey_images_have_one_channel_unless_some_have_colour(tmp_path: Path) -> None:
    write_tree(tmp_path, mode="L")
    assert load(tmp_path).shape == (1, 12, 12)
    write_image(tmp_path / "cat" / "99.png", 12)
    data = load(tmp_path)
    assert data.shape == (3, 12, 12)
    grey = data.train.images[0]
    np.testing.assert_array_equal(grey[0], pixels(tmp_path / "cat/00.png")[0])
    np.testing.assert_array_equal(grey[0], grey[2])


def test_palette_and_alpha_are_resolved(tmp_path: Path) -> None:
    write_tree(tmp_path)
    red = Image.new("RGB", (12, 12), (200, 10, 20))
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "cat" / "00.png")
    red.putalpha(7)
    red.save(tmp_path / "cat" / "01.png")
    data = load(tmp_path)
    assert data.train.images[:2, :, 5, 5].tolist() == [[200, 10, 20]] * 2


def test_size_decides_between_memory_and_files(tmp_path: Path) -> None:
    write_tree(tmp_path, side=100)
    small, large, native = (load(tmp_path, size=32), load(tmp_path, size=80), load(tmp_path))
    assert isinstance(small.train, Arrays)
    assert small.shape == (3, 32, 32)
    assert isinstance(large.train, Files)
    assert large.shape == (3, 80, 80)
    assert native.shape == (3, 100, 100)
    assert large.train.paths[0] == f"{tmp_path}/cat/00.png"
    assert len(large.train.paths) == 8
    np.testing.assert_allclose(large.mean, [0.5] * 3, atol=0.02)
    limited = load(tmp_path, size=80, limit=1)
    assert limited.train.paths == (f"{tmp_path}/cat/00.png", f"{tmp_path}/dog/00.png")
    assert limited.train.labels.tolist() == [0, 1]


def test_mixed_sizes_need_size(tmp_path: Path) -> None:
    write_tree(tmp_path)
    write_image(tmp_path / "dog" / "03.png", (14, 10))
    with pytest.raises(UserError, match=r"12 x 12 .* and 14 x 10 \(.*dog/03.png.*; set size"):
        load(tmp_path)
    assert load(tmp_path, size=12).shape == (3, 12, 12)


def test_mixed_sizes_of_large_images_need_size(tmp_path: Path) -> None:
    write_tree(tmp_path, side=80)
    write_image(tmp_path / "dog" / "03.png", (90, 80))
    with pytest.raises(UserError, match=r"80 x 80 .* and 90 x 80 .*; set size"):
        load(tmp_path)


def test_large_oblong_images_need_size(tmp_path: Path) -> None:
    for c in "ab":
        for i in range(5):
            write_image(tmp_path / c / f"{i}.png", (90, 80))
    with pytest.raises(UserError, match="images of 90 x 80 pixels; set size"):
        load(tmp_path)


def _damage(root: Path, how: str) -> str:
    """Returns the path to load."""
    image = root / "cat" / "02.png"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:-60])
    elif how == "no image":
        image.write_bytes(b"hello")
    elif how == "truncated jpeg":
        write_image(image.with_suffix(".jpg"), 12)
        image = image.with_suffix(".jpg")
        image.write_bytes(image.read_bytes()[:-60])
    elif how == "16 bits":
        Image.fromarray(np.full((12, 12), 40000, np.uint16)).save(image)
    elif how == "empty":
        shutil.rmtree(root)
        (root / "cat").mkdir(parents=True)
    elif how == "one class":
        shutil.rmtree(root / "dog")
    elif how == "flat":
        write_image(root / "stray.png", 12)
    elif how == "few":
        (root / "dog" / "00.png").unlink()
    elif how == "unbalanced":
        shutil.copytree(root, root / "train")
        shutil.copytree(root / "cat", root / "test" / "cat")
        shutil.rmtree(root / "cat")
        shutil.rmtree(root / "dog")
    elif how == "nowhere":
        return "nowhere"
    elif how == "no zip":
        (root / "x.zip").write_bytes(b"hello")
        return "x.zip"
    elif how == "inner":
        shutil.make_archive(str(root / "y"), "zip", root, "cat")
        return "y.zip!dog"
    elif how == "encrypted":
        path = Path(shutil.make_archive(str(root.parent / "z"), "zip", root))
        flags = re.compile(rb"(?s)(PK\x01\x02.{4})\x00")  # of the directory at the end
        path.write_bytes(flags.sub(lambda match: match[1] + b"\x01", path.read_bytes()))
        return str(path)
    return "."


@pytest.mark.parametrize(
    "how, text",
    [
        ("truncated", "cannot read the image '.*cat/02.png'"),
        ("truncated jpeg", "cannot read the image '.*cat/02.jpg'"),
        ("no image", "cannot read the image '.*cat/02.png'"),
        ("16 bits", "more than 8 bits"),
        ("empty", "holds no images"),
        ("one class", "one class only"),
        ("flat", "'.*/stray.png' is not in a class folder"),
        ("few", r"class 'dog' of '.*' has 4 image\(s\); without a test folder .* at least 5"),
        ("unbalanced", "class 'dog' of '.*' is in train but not in test"),
        ("nowhere", "there is no '.*/nowhere'"),
        ("no zip", "'.*/x.zip' is not a zip file"),
        ("encrypted", "cannot read the image '.*/z.zip!.*encrypted"),
        ("inner", "'.*/y.zip!dog' holds no images"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, how: str, text: str) -> None:
    root = write_tree(tmp_path / "pets")
    path = _damage(root, how)
    with pytest.raises(UserError, match=text) as caught:
        load(root, path)
    assert caught.value.where.startswith("benchmark.dataset")
    assert "\n" not in str(caught.value)


def test_subfolders(tmp_path: Path) -> None:
    write_tree(tmp_path / "b")
    write_tree(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert subfolders(tmp_path) == ["a", "b"]
