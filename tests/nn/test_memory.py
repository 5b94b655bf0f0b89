from __future__ import annotations

import pytest
import torch

from raycl.nn.memory import ExemplarMemory, Order, herding, nearest, quotas


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


FEATURES = torch.tensor([0, 1, 1.2, 5])[:, None]  # their mean is 1.8


def test_orders() -> None:
    assert nearest(FEATURES, 4).tolist() == [2, 1, 0, 3]
    assert herding(FEATURES, 4).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("order", [nearest, herding])
def test_fewer_are_the_first_of_more(order: Order) -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    every = order(features, 30).tolist()
    assert sorted(every) == list(range(30))
    for count in (0, 1, 7, 29):
        assert order(features, count).tolist() == every[:count]
    assert order(features[:0], 0).tolist() == []


def test_herding_is_greedy() -> None:
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    mean, chosen = features.mean(0), herding(features, 12).tolist()
    for k in range(12):
        distance = {
            i: float((features[[*chosen[:k], i]].mean(0) - mean).norm())
            for i in range(12)
            if i not in chosen[:k]
        }
        assert min(distance, key=distance.__getitem__) == chosen[k]


@pytest.mark.parametrize("order", [nearest, herding])
def test_a_later_memory_is_a_prefix(order: Order) -> None:
    memory = ExemplarMemory(13, (2, 1, 1))
    generator = torch.Generator().manual_seed(0)
    first: dict[int, list[int]] = {}
    for task in range(4):
        labels = torch.tensor([2 * task, 2 * task + 1]).repeat(9)
        features = torch.randn(18, 3, generator=generator)
        images = torch.stack([labels, torch.arange(18)], 1).to(torch.uint8)[:, :, None, None]
        classes = [(c // 2, c) for c in range(2 * task + 2)]
        memory.update_in_order(classes, labels, images.__getitem__, features, order)
        for c in (2 * task, 2 * task + 1):
            own = (labels == c).nonzero()[:, 0]
            first[c] = own[order(features[own], 9)].tolist()
        rows = memory.images[:, :, 0, 0].tolist()
        for c, ranked in first.items():
            kept = [number for label, number in rows if label == c]
            assert kept == ranked[: len(kept)]
        kept = quotas([9] * len(classes), 13)
        assert [memory.labels.tolist().count(c) for c in first] == kept
    assert kept == [1, 1, 1, 2, 2, 2, 2, 2]


def test_old_images_come_from_the_slots_given() -> None:
    fed = Fed(6)
    fed.feed(0, {0: 20, 1: 20})
    kept = fed.memory.images.clone()
    classes, labels = [*fed.classes, (1, 2)], torch.full((20,), 2)
    images = torch.full((20, 3, 1, 1), 9, dtype=torch.uint8)
    slots = torch.tensor([1, 1, 1, 4, 5])
    fed.memory.update(classes, labels, images.__getitem__, fed.generator, slots)
    assert fed.memory.labels.tolist() == [0, 0, 1, 1, 2, 2]
    old = fed.memory.images[:4]
    assert torch.equal(old[:2], kept[[1, 1]])  # twice the same
    assert sorted(old[2:, 2, 0, 0].tolist()) == sorted(kept[[4, 5], 2, 0, 0].tolist())
