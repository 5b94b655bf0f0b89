"""How many images are taken at a time where that only decides how much memory it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycl.datasets.base import Arrays
from raycl.datasets.examples import Examples
from raycl.testing import finish, toy_data
from raycl.training.run import Run


def enlarged(arrays: Arrays, times: int) -> Arrays:
    return Arrays(arrays.images.repeat(times, 2).repeat(times, 3), arrays.labels)


@pytest.mark.parametrize(
    "side, sizes",
    [(8, {256, 512, 1024}), (32, {256, 512, 1024}), (64, {64, 128, 256}), (128, {32, 64})],
)
def test_large_images_make_small_batches(
    monkeypatch: pytest.MonkeyPatch, side: int, sizes: set[int]
) -> None:
    asked = set()
    batches = Examples.batches

    def spy(self: Examples, batch_size: int, **options: Any) -> Any:
        asked.add(batch_size)
        return batches(self, batch_size, **options)

    monkeypatch.setattr(Examples, "batches", spy)
    ((key, toy),) = toy_data(train=9, test=3).items()
    large = replace(toy, train=enlarged(toy.train, side // 8), test=enlarged(toy.test, side // 8))
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
        "method": {"name": "linear_probe"},
        "network": {"name": "mlp", "hidden": [4]},
        "train": {"epochs": 1, "batch_size": 7, "lr": 0.1, "select": "validation_accuracy"},
        "evaluate": {"probe": {}},
    }
    finish(Run(config, {key: large}))
    assert asked == {7} | sizes


@pytest.mark.parametrize(
    "side, most, expected",
    [(32, 512, 512), (33, 512, 481), (64, 512, 128), (224, 512, 32), (224, 20, 20), (1, 1, 1)],
)
def test_the_rule(side: int, most: int, expected: int) -> None:
    stream = Run(
        {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
            "method": {"name": "finetune"},
            "network": {"name": "mlp", "hidden": [4]},
        },
        toy_data(),
    ).stream.info
    assert replace(stream, input_shape=(3, side, side)).at_once(most) == expected
