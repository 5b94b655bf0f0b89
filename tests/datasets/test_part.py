"""Parts of the training images that have no image in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from raycl import datasets
from raycl.datasets.base import Arrays, Dataset, DatasetConfig, Files
from raycl.datasets.ids import image_ids, unit
from raycl.errors import UserError


def load(root: Path, **options: object) -> Dataset:
    return datasets.load(DatasetConfig.model_validate({"name": "digits", **options}), root)


@pytest.mark.parametrize("of", [2, 3])
def test_parts_are_disjoint_and_make_the_whole(tmp_path: Path, of: int) -> None:
    whole = load(tmp_path)
    parts = [load(tmp_path, part={"of": of, "take": take}) for take in range(of)]
    rows = [tuple(image.tobytes() for image in part.train.images) for part in parts]
    assert sorted(sum(rows, ())) == sorted(image.tobytes() for image in whole.train.images)
    for part in parts:
        counts = np.bincount(part.train.labels) - np.bincount(whole.train.labels) / of
        assert np.abs(counts).max() < 1
        assert np.array_equal(part.test.images, whole.test.images)


def test_a_part_comes_before_a_limit_and_after_classes(tmp_path: Path) -> None:
    whole, options = load(tmp_path), {"part": {"of": 2, "take": 1}}
    some = load(tmp_path, limit=3, classes=["7", "2"], **options)
    expected = whole.train.images[whole.train.labels == 7][1:6:2]
    assert np.array_equal(some.train.images[some.train.labels == 0], expected)


def test_it_is_in_the_key_only_where_it_is_given() -> None:
    plain = DatasetConfig(name="mnist")
    part = DatasetConfig.model_validate({"name": "mnist", "part": {"of": 2, "take": 0}})
    assert datasets.key(plain) == "mnist"
    assert datasets.key(part) != datasets.key(plain)
    assert "part" not in plain.model_dump()


@pytest.mark.parametrize("part", [{"of": 1, "take": 0}, {"of": 2, "take": 2}, {"of": 2}, "half"])
def test_refused(part: object) -> None:
    with pytest.raises(ValidationError, match="part"):
        DatasetConfig.model_validate({"name": "digits", "part": part})


def test_a_part_without_images_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"part: 500 parts are too many: digits has a class of \d+"):
        load(tmp_path, part={"of": 500, "take": 499})


def test_ids_are_of_bytes(tmp_path: Path) -> None:
    data = load(tmp_path, limit=4)
    assert isinstance(data.train, Arrays)
    ids = image_ids(data.train)
    assert len(set(ids)) == len(ids) == 40
    assert all(len(one) == 16 for one in ids)
    assert set(ids) <= set(image_ids(load(tmp_path).train))
    assert unit(data.train) == "pixels of 1x8x8"
    names = [str(tmp_path / f"{i}.png") for i in range(2)]
    for name in names:
        Path(name).write_bytes(b"the same")
    files = Files(tuple(names), np.zeros(2, np.int64), 224)
    assert len(set(image_ids(files))) == 1
    assert unit(files) == "files"
