"""Split: class orders, output ids, sets of a task, and what cannot be split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stream_making import make

from raycl.benchmarks.base import Stream
from raycl.benchmarks.split import Split, class_order
from raycl.datasets import Arrays
from raycl.errors import UserError


def stream(data: object = None, seed: int = 0, **options: object) -> Stream:
    config = Split.Config.model_validate({"name": "split", "dataset": "mnist", **options})
    return Split(config).stream({"mnist": data or make()}, seed)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "count, seed, first",
    [
        (100, 0, [23, 8, 11, 7, 48, 13, 1, 91, 94, 54, 16, 63, 52, 41, 80, 2, 47, 87, 78, 66]),
        (100, 1, [53, 37, 65, 51, 4, 20, 38, 9, 10, 81]),
        (100, 2, [0, 76, 61, 63, 1, 71, 2, 6, 16, 19]),
        (200, 0, [131, 181, 22, 172, 144, 92, 97, 187, 58, 93]),
        (200, 1, [33, 146, 79, 19, 23, 131, 12, 187, 174, 32]),
    ],
)
def test_class_orders_of_the_papers(count: int, seed: int, first: list[int]) -> None:
    """CIFAR-100 and Tiny-ImageNet in data-free class-incremental learning, arXiv 2106.09701."""
    assert class_order("seed", count, seed)[: len(first)] == first


MINI_IMAGENET = """
26 86 2 55 75, 93 16 73 54 95, 53 92 78 13 7, 30 22 24 33 8, 43 62 3 71 45,
48 6 99 82 76, 60 80 90 68 51, 27 18 56 63 74, 1 61 42 41 4, 15 17 40 38 5,
91 59 0 34 28, 50 11 35 23 52, 10 31 66 57 79, 85 32 84 14 89, 19 29 49 97 98,
69 20 94 72 77, 25 37 81 46 39, 65 58 12 88 70, 87 36 21 83 9, 96 67 64 47 44
"""
"""Classes of the twenty tasks of seed 0, as tabled for arXiv 2105.04444."""


def test_class_order_of_mini_imagenet() -> None:
    data = make(classes=100, each=1, shape=(1, 2, 2))
    made = stream(data, tasks=20, class_order="numpy", validation=0)
    tabled = [[int(c) for c in task.split()] for task in MINI_IMAGENET.split(",")]
    names = made.info.class_names
    found = [[int(names[c].removeprefix("toy")) for c in task.classes] for task in made.info.tasks]
    assert found == tabled
    other = np.random.RandomState(3).permutation(100).tolist()
    assert class_order("numpy", 100, 3) == other


IMAGENET_50 = """
54 7 894 512 126 337 988 11 284 493, 133 783 192 979 622 215 240 548 238 419,
274 108 928 856 494 836 473 650 85 262, 508 590 390 174 637 288 658 219 912 142,
852 160 704 289 123 323 600 542 999 634
"""
"""Classes of the five tasks of every trial, as tabled for arXiv 2106.09701."""


def test_class_order_of_imagenet_50() -> None:
    data = make(classes=1000, each=1, shape=(1, 1, 1))
    config = {"tasks": 5, "classes": 50, "class_order": "numpy", "validation": 0}
    made = stream(data, seed=1993, **config)
    tabled = [[int(c) for c in task.split()] for task in IMAGENET_50.split(",")]
    names = made.info.class_names
    found = [[int(names[c].removeprefix("toy")) for c in task.classes] for task in made.info.tasks]
    assert found == tabled
    assert made.info.num_outputs == 50
    for t, task in enumerate(made.data):
        assert sorted(task.train.labels.tolist()) == list(range(10 * t, 10 * t + 10))


def test_the_first_classes_of_the_order() -> None:
    data = make()
    whole, some = stream(data, seed=3), stream(data, seed=3, classes=6, tasks=3)
    assert some.info.class_names == whole.info.class_names[:6]
    assert [task.classes for task in some.info.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert [len(task.test) for task in some.data] == [6, 6, 6]
    assert stream(data, seed=3, classes=10).info == whole.info


def test_each_task_owns_a_range_of_outputs_in_class_order() -> None:
    data = make()
    made = stream(data, seed=3)
    order = class_order("seed", 10, 3)
    assert [task.classes for task in made.info.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert made.info.class_names == tuple(f"toy{c}" for c in order)
    assert made.info.num_outputs == 10
    assert made.info.input_shape == (1, 6, 6)
    assert made.info.readouts == ("class", "task", "domain")
    assert made.info.tasks[1].name == f"2/5 (toy{order[2]}, toy{order[3]})"
    assert made.info.seen(1) == (0, 1, 2, 3)
    for t, task in enumerate(made.data):
        for part, arrays in ((task.train, data.train), (task.validation, data.train),
                             (task.test, data.test)):  # fmt: skip
            raw = part.raw(torch.arange(len(part))).numpy()
            for image, output in zip(raw, part.labels.tolist(), strict=True):
                assert output in made.info.tasks[t].classes
                same = (arrays.images == image).all((1, 2, 3))
                assert arrays.labels[same].tolist() == [order[output]]


def test_train_and_validation_divide_the_tasks_images() -> None:
    data = make()
    made = stream(data, validation=0.25)
    for task in made.data:
        assert (len(task.train), len(task.validation), len(task.test)) == (30, 10, 6)
    rows = torch.cat([part.rows for task in made.data for part in (task.train, task.validation)])
    assert sorted(rows.tolist()) == list(range(200))
    none = stream(data, validation=0)
    assert all(task.validation is None and len(task.train) == 40 for task in none.data)


def test_validation_may_be_the_training_set_itself() -> None:
    data = make()
    made, none = stream(data, validation="train"), stream(data, validation=0)
    for task, alone in zip(made.data, none.data, strict=True):
        assert (len(task.train), len(task.validation), len(task.test)) == (40, 40, 6)
        assert (
            task.validation.rows.tolist() == task.train.rows.tolist() == alone.train.rows.tolist()
        )
        assert task.validation.labels.tolist() == task.train.labels.tolist()
    assert made.info == none.info


@pytest.mark.parametrize(
    "given, text",
    [
        ("trian", "a share below 1, or one of the words train and folder, not 'trian'"),
        ("0.1", "not '0.1'"),
        (None, "a share below 1, or one of the words train and folder"),
        (1, "less than 1"),
        (-0.1, "greater than or equal to 0"),
    ],
)
def test_other_words_and_shares_are_refused(given: object, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        stream(validation=given)


def test_validation_indices_of_the_papers() -> None:
    data = make(classes=10, each=1000, shape=(1, 1, 1))
    made = stream(data, tasks=1, validation=0.1, class_order="none")
    rows = made.data[0].validation.rows
    assert len(rows) == 1000
    assert rows[:5].tolist() == [9394, 898, 2398, 5906, 2343]


def test_validation_is_drawn_from_the_tasks_own_images_in_the_sets_order() -> None:
    data = make()
    made = stream(data, seed=7, class_order="none", validation=0.25)
    own = np.flatnonzero(data.train.labels < 2)
    order = np.random.RandomState(7).permutation(len(own))
    assert made.data[0].validation.rows.tolist() == own[order[:10]].tolist()
    assert made.data[0].train.rows.tolist() == own[order[10:]].tolist()


def test_uneven_split_gives_the_first_tasks_one_more() -> None:
    made = stream(tasks=4, class_order="none")
    assert [task.classes for task in made.info.tasks] == [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    assert made.info.readouts == ("class", "task")


def test_given_and_no_class_order() -> None:
    given = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert stream(class_order=given).info.class_names[0] == "toy9"
    assert stream(class_order="none").info.class_names[0] == "toy0"


def test_the_seed_decides() -> None:
    def rows(made: Stream) -> list[list[int]]:
        return [task.train.rows.tolist() for task in made.data]

    data = make()
    assert rows(stream(data, 1)) == rows(stream(data, 1))
    assert rows(stream(data, 1)) != rows(stream(data, 2))


def test_all_tasks_point_into_one_tensor() -> None:
    data = make()
    made = stream(data)
    assert {task.train.images.data_ptr() for task in made.data} == {data.train.images.ctypes.data}
    assert {task.test.images.data_ptr() for task in made.data} == {data.test.images.ctypes.data}


@pytest.mark.parametrize(
    "options, where, text",
    [
        ({"tasks": 11}, "benchmark.tasks", "11 tasks, but mnist has 10 classes"),
        ({"classes": 11}, "benchmark.classes", "11 classes, but mnist has 10"),
        ({"classes": 4}, "benchmark.tasks", "5 tasks, but there are 4 classes"),
        ({"class_order": [0, 1, 2]}, "benchmark.class_order", r"each of 0..9 once: .*\[3, 4"),
        ({"class_order": [10, *range(9)]}, "benchmark.class_order", r"each of 0..9 once: .*\[10\]"),
        ({"class_order": [*range(10), 0]}, "benchmark.class_order", "has repetitions"),
        ({"validation": 0.01}, "benchmark.validation", "0.01 of 40 images .* is none"),
    ],
)
def test_what_does_not_fit(options: dict[str, object], where: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        stream(**options)
    assert caught.value.where == where


def test_a_task_without_test_images() -> None:
    data = make(classes=4)
    kept = data.test.labels < 3
    test = Arrays(data.test.images[kept], data.test.labels[kept])
    with pytest.raises(UserError, match="toy has no test images of toy3"):
        stream(replace(data, test=test), tasks=4)


def test_label() -> None:
    assert Split(Split.Config(name="split")).label == "split-digits-5"
    assert Split(Split.Config(name="split", label="mine")).label == "mine"
    every = Split.Config(name="split", top_k=2, class_outputs="all")
    assert Split(every).label == "split-digits-5-top2-all-outputs"
    assert Split(every.model_copy(update={"label": "mine"})).label == "mine"
    assert Split(Split.Config(name="split", classes=6)).label == "split-digits-first6-5"
