from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from raycl.nn.memory import Reservoir


def items(start: int, count: int) -> tuple[Tensor, Tensor]:
    """Images whose two pixels are their number, and labels made of it."""
    number = torch.arange(start, start + count)
    images = torch.stack([number // 256, number % 256], 1).to(torch.uint8)
    return images[:, :, None, None], number % 10


def numbers(memory: Reservoir) -> list[int]:
    """What is in the filled slots; labels must agree with the pixels."""
    n = len(memory)
    rows = memory.images[:n, :, 0, 0].long()
    found = 256 * rows[:, 0] + rows[:, 1]
    assert torch.equal(memory.labels[:n], found % 10)
    assert memory.labels[n:].eq(-1).all()
    assert memory.tasks[n:].eq(-1).all()
    assert not memory.images[n:].any()
    return found.tolist()


def fed(size: int, batches: Iterable[int], seed: int = 0) -> Reservoir:
    """After one batch of each task."""
    memory = Reservoir(size, (2, 1, 1))
    generator = torch.Generator().manual_seed(seed)
    for task, count in enumerate(batches):
        memory.offer(*items(memory.offered, count), task, generator)
    return memory


def test_the_first_offers_fill_the_slots_in_order() -> None:
    memory = fed(7, [])
    assert (len(memory), memory.offered, numbers(memory)) == (0, 0, [])
    memory = fed(7, [3, 2])
    assert (len(memory), memory.offered) == (5, 5)
    assert numbers(memory) == [0, 1, 2, 3, 4]
    assert memory.tasks.tolist() == [0, 0, 0, 1, 1, -1, -1]
    assert numbers(fed(200, [32] * 6 + [8])) == list(range(200))


BATCHES = [1, 5, 3, 1, 20, 8, 8, 1, 64, 30]


@pytest.mark.parametrize("size", [1, 4, 7, 40])
@pytest.mark.parametrize("batches", [BATCHES, [141], [1] * 141])
def test_is_algorithm_r_item_by_item(size: int, batches: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    stored: list[tuple[int, int]] = []
    n = 0
    for task, count in enumerate(batches):
        for uniform in torch.rand(count, generator=generator, dtype=torch.float64).tolist():
            r = int(uniform * (n + 1))
            assert 0 <= r <= n
            if n < size:
                stored.append((task, n))
            elif r < size:
                stored[r] = (task, n)
            n += 1
    memory = fed(size, batches, seed=3)
    assert (memory.offered, len(memory)) == (141, size)
    assert numbers(memory) == [number for _, number in stored]
    assert memory.tasks.tolist() == [task for task, _ in stored]


def test_an_offer_is_taken_with_size_over_n_plus_one() -> None:
    size, runs = 5, 2000
    for before, taken_of in ((size, 6), (9, 10), (49, 50)):
        memory = Reservoir(size, (2, 1, 1))
        generator = torch.Generator().manual_seed(before)
        hits = torch.zeros(size)
        for _ in range(runs):
            memory.offered = before
            memory.tasks.fill_(0)
            memory.offer(*items(before, 1), 1, generator)
            hits += memory.tasks
        p = size / taken_of
        spread = 4 * (runs * p * (1 - p)) ** 0.5
        assert float(hits.sum()) == pytest.approx(runs * p, abs=spread)
        assert float(hits.min()) > runs * p / size - 4 * (runs * p / size) ** 0.5
        assert float(hits.max()) < runs * p / size + 4 * (runs * p / size) ** 0.5


def test_every_item_survives_alike() -> None:
    runs = 1500
    hits = torch.zeros(40)
    for seed in range(runs):
        hits[numbers(fed(8, [16, 3, 21], seed))] += 1
    assert hits.sum() == 8 * runs
    assert hits.min() > 300 - 4.5 * 15.5  # binomial(1500, 1/5): mean 300, deviation 15.5
    assert hits.max() < 300 + 4.5 * 15.5


def test_only_what_is_taken_is_asked_for() -> None:
    plain, lazy = Reservoir(5, (2, 1, 1)), Reservoir(5, (2, 1, 1))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    asked: list[int] = []
    for start in range(0, 400, 4):
        images, labels = items(start, 4)

        def raw(positions: Tensor, images: Tensor = images, start: int = start) -> Tensor:
            asked.extend((start + positions).tolist())
            return images[positions]

        plain.offer(images, labels, 0, generators[0])
        lazy.offer(raw, labels, 0, generators[1])
        assert numbers(lazy) == numbers(plain)
    assert asked[:4] == list(range(4))
    assert set(numbers(lazy)) <= set(asked)
    assert len(asked) < 60  # 5 (1 + ln(400 / 5)) = 27 on the average


def test_logits_stay_with_their_images() -> None:
    memory = Reservoir(6, (2, 1, 1), outputs=3)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 120, 8):
        images, labels = items(start, 8)
        logits = torch.arange(start, start + 8)[:, None] * torch.tensor([1.0, 2.0, -0.5])
        memory.offer(images, labels, 0, generator, logits)
        filled = torch.tensor(numbers(memory)).float()
        assert torch.equal(memory.logits[: len(memory), 0], filled)
        assert torch.equal(memory.logits[: len(memory), 2], -0.5 * filled)
    with pytest.raises(ValueError, match="logits"):
        memory.offer(images, labels, 0, generator)
    with pytest.raises(ValueError, match="logits"):
        Reservoir(6, (2, 1, 1)).offer(images, labels, 0, generator, logits)


@pytest.mark.parametrize("outputs", [0, 4])
def test_state_round_trip(outputs: int) -> None:
    def feed(memory: Reservoir, generator: torch.Generator, batches: int) -> None:
        for _ in range(batches):
            logits = torch.full((5, outputs), float(memory.offered)) if outputs else None
            memory.offer(*items(memory.offered, 5), 2, generator, logits)

    first, generator = Reservoir(6, (2, 1, 1), outputs), torch.Generator().manual_seed(0)
    feed(first, generator, 4)
    buffer = io.BytesIO()
    torch.save([first.state_dict(), generator.get_state()], buffer)
    state, position = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    types = {"images": torch.uint8, "labels": torch.int64, "tasks": torch.int64}
    types |= {"logits": torch.float32} if outputs else {}
    assert {k: v.dtype for k, v in state.items() if isinstance(v, Tensor)} == types
    second, other = Reservoir(6, (2, 1, 1), outputs), torch.Generator()
    second.load_state_dict(state, strict=True)
    other.set_state(position)
    assert second.offered == 20
    feed(first, generator, 4)
    feed(second, other, 4)
    assert numbers(first) == numbers(second)
    assert second.offered == 40
    assert not outputs or torch.equal(first.logits, second.logits)


def test_draws_are_distinct_filled_and_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = fed(20, [])
    assert memory.draw(4, generator).tolist() == []
    memory = fed(20, [9])
    assert sorted(memory.draw(30, generator).tolist()) == list(range(9))
    hits = torch.zeros(9)
    for _ in range(900):
        slots = memory.draw(3, generator)
        assert slots.dtype == torch.int64
        assert len(slots.unique()) == 3
        hits[slots] += 1
    assert hits.min() > 300 - 4.5 * 14.2  # binomial(900, 1/3): deviation 14.1
    assert hits.max() < 300 + 4.5 * 14.2
    twins = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert torch.equal(memory.draw(5, twins[0]), memory.draw(5, twins[1]))
