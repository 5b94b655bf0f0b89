"""The scenarios of BLIP, arXiv 2105.04444: classes, sets and sizes as tabled for its code."""

from __future__ import annotations

import numpy as np
import pytest

from raycl import datasets
from raycl.benchmarks.alternating import Alternating
from raycl.benchmarks.base import Benchmark, Stream
from raycl.benchmarks.mixture import Mixture
from raycl.benchmarks.permuted import Permuted
from raycl.benchmarks.split import Split
from raycl.datasets import Arrays, Dataset, DatasetConfig

ORDER = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
"""The class order of ten tasks with seed 0."""


def stream(kind: type[Benchmark], data: dict[str, Dataset], **options: object) -> Stream:
    config = kind.Config.model_validate({"name": "x", **options})
    return kind(config).stream(data, 0)


def sizes(made: Stream) -> list[tuple[int, ...]]:
    """Images for training, validation and testing of each task."""
    parts = [(task.train, task.validation, task.test) for task in made.data]
    return [tuple(len(part) for part in task if part is not None) for task in parts]


def black(name: str, train: int, test: int, classes: int, channels: int = 3) -> Dataset:
    """Images of one pixel, as many as asked for; classes take turns."""
    parts = [
        Arrays(np.zeros((n, channels, 1, 1), np.uint8), np.arange(n) % classes)
        for n in (train, test)
    ]
    names = tuple(f"{name}{i}" for i in range(classes))
    return Dataset(name, *parts, names, (0.5,) * channels, (0.5,) * channels)


@pytest.fixture(scope="module")
def mnist() -> dict[str, Dataset]:
    config = DatasetConfig(name="mnist")
    if missing := datasets.present(config, datasets.data_root()):
        pytest.skip(f"{missing}; set RAYCL_DATA to a folder that has it")
    return {"mnist": datasets.load(config, datasets.data_root())}


@pytest.mark.parametrize(
    "tasks, train, test",
    [
        (2, [30596, 29404], [5139, 4861]),
        (5, [12665, 12089, 11263, 12183, 11800], [2115, 2042, 1874, 1986, 1983]),
    ],
)
def test_split_mnist(
    mnist: dict[str, Dataset], tasks: int, train: list[int], test: list[int]
) -> None:
    options = {"dataset": "mnist", "tasks": tasks, "class_order": "none"}
    made = stream(Split, mnist, **options, validation="train")
    assert sizes(made) == list(zip(train, train, test, strict=True))
    assert made.info.class_names == tuple("0123456789")
    assert made.info.mean == ((0.1307,),) * tasks
    assert made.info.std == ((0.3081,),) * tasks


def test_permuted_mnist(mnist: dict[str, Dataset]) -> None:
    options = {"dataset": "mnist", "outputs": "separate", "validation": "train"}
    made = stream(Permuted, mnist, **options)
    assert sizes(made) == [(60000, 60000, 10000)] * 10
    assert [task.classes for task in made.info.tasks] == [
        tuple(range(10 * t, 10 * t + 10)) for t in range(10)
    ]
    assert made.info.mean == ((0.1307,),) * 10
    first, permuted = mnist["mnist"].train.images[0].ravel(), made.data[3].train
    order = np.random.RandomState(903).permutation(784)
    assert permuted.raw(permuted.labels.new_zeros(1)).numpy().ravel().tolist() == (
        first[order].tolist()
    )


def test_cifar() -> None:
    ten, hundred = (datasets.key(part.dataset) for part in Alternating.Config(name="x").parts)
    data = {
        ten: black("ten", 50000, 10000, 10),
        hundred: black("hundred", 50000, 10000, 100),
    }
    made = stream(Alternating, data)
    assert sizes(made) == [(9000, 1000, 2000)] * 10
    assert [len(task.classes) for task in made.info.tasks] == [2 if i < 5 else 20 for i in ORDER]
    drawn = np.random.RandomState(0).permutation(10000)
    assert drawn[:5].tolist() == [9394, 898, 2398, 5906, 2343]
    for part, task in zip(ORDER, made.data, strict=True):
        classes = [2 * part, 2 * part + 1] if part < 5 else range(20 * part - 100, 20 * part - 80)
        labels = np.arange(50000) % (10 if part < 5 else 100)
        own = np.flatnonzero(np.isin(labels, classes))
        assert task.validation.rows.tolist() == own[drawn[:1000]].tolist()  # type: ignore[union-attr]


def test_mixture5() -> None:
    tabled = {  # all training images, of these for training and validation; test images
        "mnist": (60000, 51000, 9000, 10000),
        "cifar10": (50000, 42500, 7500, 10000),
        "notmnist": (16853, 14326, 2527, 1873),
        "svhn": (73257, 62269, 10988, 26032),
        "fashion_mnist": (60000, 51000, 9000, 10000),
    }
    listed = ["cifar10", "notmnist", "mnist", "svhn", "fashion_mnist"]
    configs = [{"name": "folder", "path": n} if n == "notmnist" else n for n in listed]
    data = {
        datasets.key(DatasetConfig.model_validate(config)): black(
            n, tabled[n][0], tabled[n][3], 10, 3 if n in ("cifar10", "svhn") else 1
        )
        for n, config in zip(listed, configs, strict=True)
    }
    made = stream(Mixture, data, datasets=configs, size=4, validation=0.15)
    assert sizes(made) == [numbers[1:] for numbers in tabled.values()]
    assert [task.name.split("(")[1].split(":")[0] for task in made.info.tasks] == list(tabled)
    assert made.info.num_outputs == 50


def test_mini_imagenet() -> None:
    data = {"mnist": black("mini", 50000, 10000, 100)}
    options = {"dataset": "mnist", "tasks": 20, "class_order": "numpy", "validation": 0.02}
    made = stream(Split, data, **options)
    assert sizes(made) == [(2450, 50, 500)] * 20
    assert made.info.readouts == ("class", "task", "domain")
