"""Image folders cut without a change of proportions, and split by lists that come with them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dataset_making import write_image, write_tree
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import CenterCrop, Compose
from torchvision.transforms import Resize as PillowResize

from raycl import datasets
from raycl.cli import main
from raycl.datasets import Arrays, Dataset, DatasetConfig, Files
from raycl.datasets.files import FileSet
from raycl.errors import UserError

SHAPES = ((30, 20), (20, 30), (25, 25), (90, 17))
"""Width and height of images."""
LISTS = {"train": "lists/train.yaml", "test": "lists/test.yaml"}


def load(root: Path, path: str = "set", **options: object) -> Dataset:
    return datasets.load(DatasetConfig(name="folder", path=path, **options), root)  # type: ignore[arg-type]


# ------------------------------------------------------------------ proportions


def write_shapes(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i, shape in enumerate(SHAPES):
                write_image(root / f"set/{split}/{name}/{i}.png", shape, seed=i)
    return root


def expected(file: Path, shorter: int, crop: int) -> np.ndarray:
    """What the transforms of torchvision, which the authors' code has, make of a file."""
    made = Compose([PillowResize(shorter), CenterCrop(crop)])(Image.open(file))
    return np.asarray(made).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("shorter, crop", [(20, 16), (12, 9), (64, 63)])
def test_small_images_keep_their_proportions(tmp_path: Path, shorter: int, crop: int) -> None:
    data = load(write_shapes(tmp_path), resize={"shorter": shorter, "crop": crop})
    for split, part in (("train", data.train), ("test", data.test)):
        assert isinstance(part, Arrays)
        assert part.images.shape == (8, 3, crop, crop)
        for i in range(len(SHAPES)):
            image = expected(tmp_path / f"set/{split}/cat/{i}.png", shorter, crop)
            assert np.abs(part.images[i] - image).max() <= 1
    stretched = load(tmp_path, size=crop).test
    assert isinstance(stretched, Arrays)
    assert isinstance(data.test, Arrays)
    assert not np.array_equal(stretched.images[3], data.test.images[3])


def test_large_images_are_cut_when_they_are_read(tmp_path: Path) -> None:
    data = load(write_shapes(tmp_path), resize={"shorter": 90, "crop": 80}, limit=3)
    part = data.train
    assert isinstance(part, Files)
    assert (part.size, part.shorter, data.shape) == (80, 90, (3, 80, 80))
    rows = torch.arange(len(part.labels))
    found = FileSet(part, rows, torch.from_numpy(part.labels.copy()), data.mean, data.std)
    raw = found.raw(rows)
    for i in range(3):
        image = expected(tmp_path / f"set/train/cat/{i}.png", 90, 80)
        assert np.abs(raw[i].numpy() - image).max() <= 1
    batches = torch.cat([batch.images for batch in found.batches(4)])  # in other processes
    assert torch.equal(batches, found.prepare(raw))
    assert data.mean == pytest.approx((raw / 255).mean((0, 2, 3)).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resize": {"shorter": 20, "crop": 21}}, "crop is 21, more than shorter, 20"),
        ({"resize": {"shorter": 20}}, "crop"),
        ({"resize": {"shorter": 20, "crop": 2}}, "greater than or equal to 4"),
        ({"resize": {"shorter": 20, "crop": 16}, "size": 16}, "size and resize both say"),
        ({"split_file": LISTS, "hold_out": 2}, "leave out hold_out"),
        ({"split_file": LISTS, "budget": {}}, "leave out budget"),
        ({"split_file": LISTS, "validation": True}, "leave out validation"),
        ({"split_file": {"train": "a.yaml"}}, "test"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetConfig(name="folder", path="set", **options)


@pytest.mark.parametrize(
    "options",
    [{"resize": {"shorter": 9, "crop": 9}}, {"split_file": LISTS}],
    ids=["resize", "list"],
)
def test_they_are_for_folders_only(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is for folder, not digits"):
        datasets.load(DatasetConfig(name="digits", **options), tmp_path)


def test_keys_of_earlier_sweeps_stay() -> None:
    plain = DatasetConfig(name="folder", path="set")
    assert not {"resize", "split_file"} & plain.model_dump(mode="json").keys()
    assert datasets.key(plain) == "folder-b04f05e0"  # as before there were such options
    cut = DatasetConfig(name="folder", path="set", resize={"shorter": 256, "crop": 224})  # type: ignore[arg-type]
    assert cut.model_dump(mode="json")["resize"] == {"shorter": 256, "crop": 224}
    assert DatasetConfig.model_validate(cut.model_dump(mode="json")) == cut
    assert datasets.key(cut) != datasets.key(plain)


# ------------------------------------------------------------------ lists


def write_list(root: Path, part: str, entries: list[tuple[str, Any]]) -> None:
    content = {"data": [image for image, _ in entries], "targets": [t for _, t in entries]}
    (root / "lists").mkdir(exist_ok=True)
    (root / LISTS[part]).write_text(yaml.safe_dump(content))


TRAIN = [("dog/03", 0), ("cat/00", 1), ("dog/01", 0), ("cat/02", 1)]
TEST = [("cat/04", 1), ("dog/00", 0)]


def named(entries: list[tuple[str, int]], start: str = "data/imagenet-r/") -> list[tuple[str, Any]]:
    return [(f"{start}{image}.png", target) for image, target in entries]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    write_tree(tmp_path / "set")
    write_list(tmp_path, "train", named(TRAIN))
    write_list(tmp_path, "test", named(TEST, "other/"))
    return tmp_path


def test_lists_say_which_images_and_classes(listed: Path) -> None:
    data = load(listed, split_file=LISTS)
    assert data.classes == ("dog", "cat")  # as numbered in the lists
    for part, names in (
        (data.train, ["dog/03", "dog/01", "cat/00", "cat/02"]),
        (data.test, ["dog/00", "cat/04"]),
    ):
        assert isinstance(part, Arrays)
        assert part.labels.tolist() == [int(name.startswith("cat")) for name in names]
        for image, name in zip(part.images, names, strict=True):
            pixels = np.asarray(Image.open(listed / f"set/{name}.png")).transpose(2, 0, 1)
            np.testing.assert_array_equal(image, pixels)


def test_lists_of_files_in_a_zip(listed: Path) -> None:
    shutil.make_archive(str(listed / "packed"), "zip", listed, "set")
    loose = load(listed, split_file=LISTS, size=80)
    packed = load(listed, "packed.zip", split_file=LISTS, size=80, limit=1)
    assert isinstance(packed.train, Files)
    assert isinstance(loose.train, Files)
    ends = [re.split("[/!]", name)[-2:] for name in packed.train.paths]
    assert ends == [["dog", "03.png"], ["cat", "00.png"]]
    assert [name.split("/")[-2:] for name in loose.train.paths][::2] == ends


def test_names_with_exclamation_marks(tmp_path: Path) -> None:
    """The mark separates a zip from what is in it; elsewhere it is a letter like any other."""
    images = {"train": "yahoo!/wow!.png", "test": "yahoo!/a!b.png"}
    for part, image in images.items():
        write_image(tmp_path / "set" / image, 8)
        write_image(tmp_path / "set" / image.replace("yahoo!", "!cat"), 8)
        write_list(tmp_path, part, [(image, 0), (image.replace("yahoo!", "!cat"), 1)])
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")
    for path in ("set", "packed.zip"):
        assert load(tmp_path, path, split_file=LISTS).classes == ("yahoo!", "!cat")


def text(root: Path, part: str, content: str) -> None:
    (root / LISTS[part]).write_text(content)


@pytest.mark.parametrize(
    "content, message",
    [
        ("data: [", "is not YAML"),
        ("- a", "has no keys 'data' and 'targets'"),
        ("data: [a/b]", "has no keys 'data' and 'targets'"),
        ("{data: [], targets: []}", "have to be lists that are not empty"),
        ("{data: dog/03.png, targets: 1}", "have to be lists that are not empty"),
        ("{data: [dog/03.png], targets: [0, 1]}", "has 1 images and 2 targets"),
        ("{data: [03.png], targets: [0]}", "lists '03.png', which does not end in class/file"),
        ("{data: [3], targets: [0]}", "lists 3, which does not end in class/file"),
        ("{data: [dog/03.png], targets: [dog]}", "has the target 'dog', which is no class id"),
        ("{data: [dog/03.png], targets: [-1]}", "has the target -1, which is no class id"),
        ("{data: [dog/09.png], targets: [0]}", "lists 'dog/09.png', which is not in"),
    ],
)
def test_files_that_are_no_lists(listed: Path, content: str, message: str) -> None:
    text(listed, "train", content)
    with pytest.raises(UserError) as caught:
        load(listed, split_file=LISTS)
    assert message in str(caught.value)
    assert caught.value.where == "benchmark.dataset.split_file.train"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "train, test, message",
    [
        ([*TRAIN, ("dog/03", 0)], TEST, "image 'dog/03.png' is listed twice"),
        (TRAIN, [*TEST, ("dog/03", 0)], "'dog/03.png' is listed for training and for testing"),
        ([*TRAIN, ("cat/03", 0)], TEST, "class 0 of .* is 'dog' and 'cat'"),
        (TRAIN, [("dog/00", 1), ("cat/04", 0)], "class 1 of .* is 'cat' and 'dog'"),
        ([*TRAIN, ("cat/03", 2)], TEST, "images of the folder 'cat' have several class ids"),
        ([(n, t + 1) for n, t in TRAIN], [(n, t + 1) for n, t in TEST], "0..1, and none is 0"),
        (TRAIN, TEST[:1], "has no image of class 'dog'"),
    ],
)
def test_lists_that_contradict(
    listed: Path, train: list[tuple[str, int]], test: list[tuple[str, int]], message: str
) -> None:
    write_list(listed, "train", named(train))
    write_list(listed, "test", named(test))
    with pytest.raises(UserError, match=message):
        load(listed, split_file=LISTS)


def test_a_list_that_is_missing_and_images_of_one_name(listed: Path) -> None:
    write_tree(listed / "set/more")
    with pytest.raises(UserError, match=r"has several images 'cat/00\.png'"):
        load(listed, split_file=LISTS)
    (listed / LISTS["test"]).unlink()
    shutil.rmtree(listed / "set/more")
    with pytest.raises(UserError, match=r"split_file.test: cannot read .*No such file"):
        load(listed, split_file=LISTS)


def test_the_command_line_says_it_in_one_line(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text(listed, "test", "data: [")
    dataset = {"name": "folder", "path": "set", "split_file": LISTS}
    sweep = {
        "name": "listed",
        "benchmark": {"name": "split", "dataset": dataset, "tasks": 2},
        "methods": ["finetune"],
        "network": {"name": "mlp"},
    }
    (listed / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(listed)
    monkeypatch.setenv("RAYCL_DATA", str(listed))
    monkeypatch.setattr("sys.argv", ["raycl", "run", "s.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "benchmark.dataset.split_file.test" in line
    assert "is not YAML" in line
    assert not (listed / "runs").exists()
