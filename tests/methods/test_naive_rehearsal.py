from __future__ import annotations

import dataclasses

import pytest
import torch

from raycl.errors import UserError


@pytest.fixture
def run(build):
    """After its first task."""
    run = build("naive_rehearsal", memory_size=6)
    run.advance()
    assert run.task_index == 1
    return run


def test_stores_raw_training_images_of_every_class(run):
    memory, train = run.method.exemplars, run.stream.data[0].train
    assert memory.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert memory.tasks.tolist() == [0] * 6
    everything = train.raw(torch.arange(len(train)))
    found = [(everything == image).flatten(1).all(1).nonzero().flatten() for image in memory.images]
    assert [train.labels[i].tolist() for i in found] == [[c] for c in memory.labels.tolist()]
    assert len({int(i) for i in found}) == 6
    run.advance()
    assert memory.labels.tolist() == [0, 1, 2, 2, 3, 3]
    assert run.method.diagnostics() == {"exemplars": 6.0}


def test_first_task_sees_no_memory(build):
    run = build("naive_rehearsal")
    plain = build("finetune")
    ours, theirs = run.advance(), plain.advance()
    assert ours["train/loss"] == theirs["train/loss"]
    assert ours["cost/examples"] == theirs["cost/examples"]


def test_batches_are_half_old(run):
    task = run.stream.open(1, "exemplars")
    sizes = []
    for batch in run.method.train_batches(task):
        half = len(batch) // 2
        sizes.append(half)
        assert torch.isin(batch.labels[:half], torch.tensor([2, 3])).all()
        assert torch.isin(batch.labels[half:], torch.tensor([0, 1])).all()
        assert torch.equal(task.train.labels[batch.index[:half]], batch.labels[:half])
        assert batch.index[half:].eq(-1).all()
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (2 * half, 1, 8, 8)
    assert sum(sizes) == len(task.train)
    assert sizes[-1] < 8  # a short last batch


def test_every_exemplar_comes_by_and_draws_are_fresh(run):
    task = run.stream.open(1, "exemplars")
    epochs = [
        torch.cat([b.images[len(b) // 2 :] for b in run.method.train_batches(task)])
        for _ in range(3)
    ]
    assert not epochs[0].equal(epochs[1])
    assert len(torch.cat(epochs).unique(dim=0)) == 6


def test_old_images_are_normalised_like_their_own_task_and_augmented(run):
    method = run.method
    stream = dataclasses.replace(
        method.context.stream, mean=((0.25,), (0.9,)), std=((0.5,), (0.1,))
    )
    method.context = dataclasses.replace(
        method.context, stream=stream, augment=lambda images: 255 - images
    )
    task = run.stream.open(1, "exemplars")
    batch = next(iter(method.train_batches(task)))
    half = len(batch) // 2
    expected = ((255 - method.exemplars.images) / 255 - 0.25) / 0.5
    distance = (batch.images[half:, None] - expected).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-5
    assert torch.equal(method.exemplars.labels[distance.argmin(1)], batch.labels[half:])
    raw = task.train.raw(batch.index[:half])
    torch.testing.assert_close(batch.images[:half], task.train.prepare(255 - raw))


def test_ambiguous_outputs_are_refused_before_training(build):
    build("naive_rehearsal", outputs="task", benchmark={"name": "permuted"})  # all shared: clear
    run = build("naive_rehearsal")
    tasks = run.stream.info.tasks
    overlapping = (tasks[0], dataclasses.replace(tasks[1], classes=(1, 2)))
    stream = dataclasses.replace(run.stream.info, tasks=overlapping)
    context = dataclasses.replace(run.method.context, stream=stream)
    config = run.method.config.model_copy(update={"outputs": "task"})
    with pytest.raises(UserError, match="ambiguous"):
        type(run.method)(config, context)
    type(run.method)(run.method.config, context)


def test_remembers(build):
    def final(method, **options):
        run = build(method, train={"epochs": 5}, **options)
        while not run.done:
            row = run.advance()
        return row["result"]["matrices"]["class"][-1]

    assert final("finetune")[0] <= 50
    assert final("naive_rehearsal", memory_size=8)[0] > 80
