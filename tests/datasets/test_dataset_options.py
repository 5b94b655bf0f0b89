"""Classes by name, fewer test images, black for white: options that make tasks of one data set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raycl import datasets
from raycl.datasets.base import Arrays, DatasetConfig
from raycl.errors import UserError


def load(tmp_path, **options):
    return datasets.load(DatasetConfig(name="digits", **options), tmp_path)


def test_classes_are_taken_in_the_order_named(tmp_path):
    whole = load(tmp_path)
    some = load(tmp_path, classes=["7", 2, "9"])
    assert some.classes == ("7", "2", "9")
    for part, all_of in ((some.train, whole.train), (some.test, whole.test)):
        assert isinstance(part, Arrays)
        for label, digit in enumerate((7, 2, 9)):
            assert np.array_equal(
                part.images[part.labels == label], all_of.images[all_of.labels == digit]
            )
        assert len(part.labels) == sum((all_of.labels == digit).sum() for digit in (7, 2, 9))


def test_statistics_are_those_of_the_classes(tmp_path):
    some = load(tmp_path, classes=["1", "0"])
    assert isinstance(some.train, Arrays)
    assert some.mean[0] == pytest.approx(some.train.images.mean() / 255, abs=1e-4)
    assert some.mean != load(tmp_path).mean


def test_limits(tmp_path):
    some = load(tmp_path, limit=5, test_limit=3)
    whole = load(tmp_path)
    assert np.bincount(some.train.labels).tolist() == [5] * 10
    assert np.bincount(some.test.labels).tolist() == [3] * 10
    first = whole.test.images[whole.test.labels == 4][:3]
    assert np.array_equal(some.test.images[some.test.labels == 4], first)


def test_inverted(tmp_path):
    plain, inverted = load(tmp_path), load(tmp_path, invert=True)
    assert np.array_equal(inverted.train.images, 255 - plain.train.images)
    assert np.array_equal(inverted.test.images, 255 - plain.test.images)
    assert inverted.mean[0] == pytest.approx(1 - plain.mean[0], abs=1e-4)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"classes": ["1", "eleven"]}, r"classes: digits has no class 'eleven'"),
        ({"classes": ["1", "1"]}, r"classes: names a class twice"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        DatasetConfig(name="digits", classes=["1"])


def test_keys_of_earlier_sweeps_stay():
    dumped = DatasetConfig(name="digits", limit=3).model_dump(mode="json")
    assert not {"classes", "test_limit", "invert"} & dumped.keys()
    assert json.loads(DatasetConfig(name="digits", invert=True).model_dump_json())["invert"] is True
    keys = {datasets.key(DatasetConfig(name="digits", invert=value)) for value in (True, False)}
    assert len(keys) == 2
