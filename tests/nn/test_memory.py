from __future__ import annotations

import pytest
import torch

from raycl.nn.memory import ExemplarMemory, quotas


class Fed:
    """A memory and the classes it was fed.

    Image number k of class c of task t has the pixels (t, c, k).
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.memory = ExemplarMemory(size, (3, 1, 1))
        self.generator = torch.Generator().manual_seed(seed)
        self.classes: list[tuple[int, int]] = []

    def feed(self, task: int, sizes: dict[int, int]) -> None:
        labels = torch.cat([torch.full((n,), c) for c, n in sizes.items()])
        number = torch.cat([torch.arange(n) for n in sizes.values()])
        images = torch.stack([torch.full_like(labels, task), labels, number], 1).to(torch.uint8)
        images = images[:, :, None, None]
        self.classes += [(task, c) for c in sizes]
        self.memory.update(self.classes, labels, lambda index: images[index], self.generator)

    def stored(self) -> list[tuple[int, ...]]:
        """(task, class, number) of every stored image; the slots must agree with the pixels."""
        n = len(self.memory)
        rows = [tuple(row) for row in self.memory.images[:n, :, 0, 0].tolist()]
        assert self.memory.tasks[:n].tolist() == [row[0] for row in rows]
        assert self.memory.labels[:n].tolist() == [row[1] for row in rows]
        assert self.memory.labels[n:].eq(-1).all()
        assert self.memory.tasks[n:].eq(-1).all()
        assert not self.memory.images[n:].any()
        assert len(set(rows)) == len(rows), "an image is stored twice"
        return rows

    def per_class(self) -> list[int]:
        rows = self.stored()
        return [sum(row[:2] == one for row in rows) for one in self.classes]


@pytest.mark.parametrize(
    "candidates, size, kept",
    [
        ([500] * 60, 2000, [33] * 40 + [34] * 20),  # arXiv 2106.09701
        ([500] * 30, 2000, [66] * 10 + [67] * 20),
        ([9, 9, 9], 10, [3, 3, 4]),  # the remainder goes to the newest
        ([9, 9, 3, 9], 14, [3, 4, 3, 4]),  # passed on by a class that has no more
        ([9, 2, 9], 10, [3, 2, 4]),  # what a class leaves free stays free
        ([1, 1], 10, [1, 1]),
        ([9, 9, 9], 2, [0, 1, 1]),
        ([0, 5], 4, [0, 2]),
        ([], 4, []),
    ],
)
def test_quotas(candidates: list[int], size: int, kept: list[int]) -> None:
    assert quotas(candidates, size) == kept


def test_shrinks_as_classes_come() -> None:
    fed = Fed(10)
    assert len(fed.memory) == 0
    fed.feed(0, {4: 20, 1: 20})
    assert fed.per_class() == [5, 5]
    first = set(fed.stored())
    fed.feed(1, {0: 20, 2: 20})
    assert fed.per_class() == [2, 2, 3, 3]
    kept = {row for row in fed.stored() if row[0] == 0}
    assert kept < first
    fed.feed(2, {3: 1, 5: 20, 6: 20})
    # one for each of 7 classes; the other 3 go to the newest classes with more than one: 6, 5 and,
    # as class 3 has a single image, 2 of the task before
    assert fed.per_class() == [1, 1, 1, 2, 1, 2, 2]
    assert {row for row in fed.stored() if row[0] == 0} < kept


def test_tasks_that_share_classes_share_the_room() -> None:
    fed = Fed(12)
    for task in range(3):
        fed.feed(task, {0: 50, 1: 50})
    assert fed.per_class() == [2] * 6


def test_too_small_for_all_classes() -> None:
    fed = Fed(3)
    for task in range(4):
        fed.feed(task, {2 * task: 5, 2 * task + 1: 5})
    assert fed.per_class() == [0] * 5 + [1] * 3


def test_the_generator_decides() -> None:
    def result(seed: int) -> list[tuple[int, ...]]:
        fed = Fed(10, seed)
        for task in range(3):
            fed.feed(task, {task: 30})
        return fed.stored()

    assert result(0) == result(0)
    assert result(0) != result(1)


def test_choice_is_uniform_within_a_class() -> None:
    hits = torch.zeros(8)
    for seed in range(400):
        fed = Fed(4, seed)
        fed.feed(0, {0: 8})
        fed.feed(1, {1: 8})
        for task, _, number in fed.stored():
            hits[number] += task == 0
    assert hits.sum() == 800
    assert hits.min() > 70  # each of 8 images: binomial(400, 1/4), mean 100, deviation 8.7
    assert hits.max() < 130


def test_size_is_fixed_by_the_configuration() -> None:
    full, other = Fed(6), Fed(6)
    full.feed(0, {0: 9, 1: 9})
    other.memory.load_state_dict(full.memory.state_dict(), strict=True)
    assert other.stored() == full.stored()
    assert {k: v.dtype for k, v in full.memory.state_dict().items()} == {
        "images": torch.uint8,
        "labels": torch.int64,
        "tasks": torch.int64,
    }
