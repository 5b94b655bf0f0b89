"""Image folders with a validation set of their own, and a budget of images for a whole task."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_making import write_image, write_tree
from PIL import Image
from torchvision.transforms import Resize

from raycl import datasets
from raycl.datasets import Arrays, Dataset, DatasetConfig, Files
from raycl.datasets.base import Budget
from raycl.datasets.listing import has_folder, subfolders
from raycl.datasets.transform import resize_batch
from raycl.errors import UserError


def load(root: Path, path: str = ".", **options: object) -> Dataset:
    return datasets.load(DatasetConfig(name="folder", path=path, **options), root)  # type: ignore[arg-type]


def write_splits(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split, each in (("train", 9), ("val", 3), ("test", 2)):
        write_tree(root / split, classes, each)
    return root


def names(part: Arrays | Files | None) -> list[str]:
    assert isinstance(part, Files)
    return ["/".join(re.split("[/!]", name)[-3:]) for name in part.paths]


def test_val_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    write_splits(tmp_path / "pets")
    plain = load(tmp_path, "pets")
    assert plain.validation is None
    data = load(tmp_path, "pets", validation=True)
    assert isinstance(data.validation, Arrays)
    assert data.validation.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not data.validation.labels.flags.writeable
    assert len(data.train.labels) == 18
    np.testing.assert_array_equal(data.test.images, plain.test.images)
    assert data.mean == plain.mean
    expected = np.asarray(Image.open(tmp_path / "pets/val/dog/02.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.validation.images[5], expected)


@pytest.mark.parametrize("size", [24, 80])
def test_all_three_sets_are_resized(tmp_path: Path, size: int) -> None:
    write_splits(tmp_path)
    shutil.make_archive(str(tmp_path / "lone"), "zip", tmp_path.parent, tmp_path.name)
    data = load(tmp_path, "lone.zip", validation=True, size=size)
    for part in (data.train, data.validation, data.test):
        if size > 64:
            assert isinstance(part, Files)
            assert part.size == size
        else:
            assert isinstance(part, Arrays)
            assert part.images.shape[2:] == (size, size)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_that_is_missing(tmp_path: Path, split: str) -> None:
    shutil.rmtree(write_splits(tmp_path) / split)
    with pytest.raises(UserError, match=f"has no images in a folder '{split}'") as caught:
        load(tmp_path, validation=True)
    assert caught.value.where == "benchmark.validation"


def test_only_a_training_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "train")
    with pytest.raises(UserError, match="has no images in a folder 'val'"):
        load(tmp_path, validation=True)


def test_a_class_needs_training_images_only(tmp_path: Path) -> None:
    write_splits(tmp_path)
    shutil.rmtree(tmp_path / "val" / "cat")
    data = load(tmp_path, validation=True)
    assert data.validation is not None
    assert data.validation.labels.tolist() == [1, 1, 1]
    write_image(tmp_path / "val" / "eel" / "1.png", 12)
    with pytest.raises(UserError, match=r"class 'eel' of .* is in val but not in train"):
        load(tmp_path, validation=True)


def test_per_class() -> None:
    budget = Budget()
    assert budget.per_class(59) == round(2560 / 59)
    assert budget.per_class(60) == round(5120 / 60)
    assert Budget(small=5).per_class(2) == 2  # 2.5
    assert Budget(small=7).per_class(2) == 4  # 3.5
    assert Budget(small=50).per_class(2, held=True) == 2


def test_a_budget_chooses_images(tmp_path: Path) -> None:
    write_splits(tmp_path, ("cat", "dog", "eel"))
    budget = {"small": 8, "max_classes": 2, "seed": 27}
    options = {"size": 80, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(UserError, match="a tenth of the budget, shared by the 2 classes") as caught:
        load(tmp_path, validation=True, budget=budget, **options)
    assert caught.value.where == "benchmark.budget"
    budget |= {"small": 20}
    data = load(tmp_path, validation=True, budget=budget, **options)
    assert data.classes == ("cat", "dog")
    assert [len(names(part)) for part in (data.train, data.validation, data.test)] == [18, 2, 2]
    rng = random.Random(27)
    for k, c in enumerate(("cat", "dog")):
        drawn = [f"train/{c}/{i:02}.png" for i in range(9)]
        rng.shuffle(drawn)
        assert names(data.train)[9 * k : 9 * k + 9] == drawn
    rng = random.Random(27)
    for k, c in enumerate(("cat", "dog")):
        drawn = [f"test/{c}/{i:02}.png" for i in range(2)]
        rng.shuffle(drawn)
        assert names(data.test)[k] == drawn[0]
    other = load(tmp_path, validation=True, budget=budget | {"seed": 1}, **options)
    assert names(other.train) != names(data.train)
    again = load(tmp_path, validation=True, budget=budget, **options)
    assert names(again.train) == names(data.train)


def test_a_budget_without_a_test_folder(tmp_path: Path) -> None:
    write_tree(tmp_path, each=20)
    data = load(tmp_path, budget={"small": 20})
    assert (len(data.train.labels), len(data.test.labels)) == (20, 2)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"name": "digits", "validation": True}, "digits has no validation images of its own"),
        ({"name": "mnist", "budget": {}}, "is for folder, not mnist"),
    ],
)
def test_options_of_folders(options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        datasets.load(DatasetConfig.model_validate(options), Path("nowhere"))


def test_a_budget_and_a_limit() -> None:
    with pytest.raises(ValueError, match="budget and limit both say how many"):
        DatasetConfig(name="folder", path="a", limit=3, budget=Budget())


def test_three_values_of_mean_make_grey_images_colour(tmp_path: Path) -> None:
    write_tree(tmp_path, mode="L")
    data = load(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.shape == (3, 12, 12)
    assert isinstance(data.train, Arrays)
    np.testing.assert_array_equal(data.train.images[:, 0], data.train.images[:, 2])
    assert load(tmp_path, mean=(0.5,)).shape == (1, 12, 12)


@pytest.mark.parametrize("shape", [(500, 375), (100, 100), (32, 48), (640, 224)])
def test_images_are_resized_as_torchvision_resizes_those_of_pillow(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (shape[1] // 8, shape[0] // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize(shape)
    expected = np.asarray(Resize((224, 224))(image)).transpose(2, 0, 1)
    ours = resize_batch(torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()), 224).numpy()
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert ours.shape == (3, 224, 224)
    assert difference.max() <= 1  # which of two nearest numbers
    assert (difference > 0).mean() < 0.02


def test_options_that_came_later_leave_keys_as_they_were() -> None:
    """What these were before there were ``budget`` and ``validation``."""
    config = DatasetConfig(name="folder", path="a", size=32)
    written = {
        "name": "folder",
        "path": "a",
        "size": 32,
        "limit": None,
        "hold_out": None,
        "mean": None,
        "std": None,
    }
    assert config.model_dump(mode="json") == written
    assert list(config.model_dump()) == list(written)
    assert datasets.key(config) == "folder-a52f0e83"
    with_budget = DatasetConfig(name="folder", path="a", size=32, budget=Budget())
    with_val = DatasetConfig(name="folder", path="a", size=32, validation=True)
    keys = {datasets.key(c) for c in (config, with_budget, with_val)}
    assert len(keys) == 3
    for one in (config, with_budget, with_val):
        assert DatasetConfig.model_validate(one.model_dump(mode="json")) == one


def test_subfolders_skip_a_lone_folder_around_trees(tmp_path: Path) -> None:
    write_splits(tmp_path / "outer" / "inner" / "pets")
    assert subfolders(tmp_path / "outer" / "inner") == ["pets"]
    assert subfolders(tmp_path / "outer") == ["inner/pets"]
    write_tree(tmp_path / "outer" / "inner" / "flowers")
    assert subfolders(tmp_path) == ["outer/inner/flowers", "outer/inner/pets"]
    assert subfolders(tmp_path / "outer" / "inner") == ["flowers", "pets"]
    shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path, "outer")
    assert subfolders(tmp_path / "both.zip") == ["outer/inner/flowers", "outer/inner/pets"]
    assert subfolders(tmp_path / "both.zip!outer/inner") == ["flowers", "pets"]
    assert has_folder(tmp_path / "both.zip", "outer/inner/pets")
    assert has_folder(tmp_path / "both.zip!outer", "inner")
    assert has_folder(tmp_path, "outer")
    assert not has_folder(tmp_path / "both.zip", "pets")
    assert not has_folder(tmp_path / "nowhere.zip", "pets")


def test_a_lone_task_is_no_folder_around_tasks(tmp_path: Path) -> None:
    write_splits(tmp_path / "pets")
    assert subfolders(tmp_path) == ["pets"]
    write_tree(tmp_path / "more" / "birds")
    assert subfolders(tmp_path / "more") == ["birds"]
