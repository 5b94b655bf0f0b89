from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from replay_making import enter, make, numbered
from reservoir_making import STREAMS, cross_entropy, follows

from raycl.datasets.examples import Batch
from raycl.training.phase import train_one_epoch


def batch_of(images):
    """Two images of class 0, which nothing but the logits' shape depends on."""
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def answering(method, logits, stored, **options):
    """A method that answers the same to every image, with one image in its memory."""
    made = make(method, [[0, 1]], memory_size=5, **options)
    torch.nn.init.zeros_(made.head.weight)
    made.head.bias.data.copy_(torch.tensor(logits))
    task = enter(made, numbered(made, 0, 4))
    image = torch.full((1, 3, 1, 1), 9, dtype=torch.uint8)
    label = torch.tensor([0])
    made.reservoir.offer(image, label, 0, torch.Generator(), torch.tensor([stored]))
    (phase,) = made.phases(task)
    made.train()
    return phase.loss(batch_of(torch.randn(2, 3, 1, 1)))


def test_the_distance_by_hand():
    terms = answering("der", [1.0, 2.0], [0.0, 0.0])
    assert terms["logits"].item() == pytest.approx(0.75)  # 0.3 * (1 + 4) / 2
    assert answering("der", [1.0, 2.0], [0.0, 0.0], alpha=1.0)["logits"].item() == 2.5
    assert answering("der", [1.0, 2.0], [1.0, 2.0])["logits"].item() == 0.0
    assert terms["cross_entropy"].item() == pytest.approx(1.3132617)  # log(1 + e)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("memory_size", [12, 500])
def test_is_the_method_written_out(build, stream, memory_size):
    def loss(reference, x, y):
        z = reference.network(x)
        value = cross_entropy(z, y)
        if reference.memory:
            old = reference.draw()
            moved = reference.network(reference.images(old)) - torch.stack([i.logits for i in old])
            value = value + 0.3 * (moved**2).sum() / moved.numel()
        return value, z

    run = build("der", memory_size=memory_size, benchmark=STREAMS[stream], train={"epochs": 2})
    follows(run, loss)


def test_logits_are_those_of_the_step_that_stored_them(build):
    run = build("der", memory_size=1000, train={"batch_size": 1000})
    network = copy.deepcopy(run.method.network)
    run.advance()
    memory, n = run.method.reservoir, len(run.stream.data[0].train)
    assert len(memory) == n
    images = run.stream.data[0].train.prepare(memory.images[:n])
    torch.testing.assert_close(memory.logits[:n], network(images))
    assert (memory.logits[:n] - run.method.logits(images, None)).abs().max() > 1e-3
    assert not memory.logits.requires_grad


def test_logits_are_those_of_the_augmented_image():
    made = make("der", [[0, 1]], memory_size=40, train={"batch_size": 4, "lr": 1e-9})
    made.context = dataclasses.replace(made.context, augment=lambda images: 255 - images)
    task = enter(made, numbered(made, 0, 10))
    (phase,) = made.phases(task)
    train_one_epoch(phase, phase.optimizer(), made)
    raw = made.reservoir.images[:20]
    torch.testing.assert_close(
        made.reservoir.logits[:20], made.logits((255 - raw).float(), None), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("method, weights", [("der", ["alpha"]), ("derpp", ["alpha", "beta"])])
def test_strength_zero_is_fine_tuning(build, method, weights):
    plain = build("finetune", outputs="all", train={"epochs": 2})
    run = build(method, memory_size=20, train={"epochs": 2}, **dict.fromkeys(weights, 0))
    while not run.done:
        plain.advance()
        row = run.advance()
    assert row["train/logits"] == 0
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)


def test_answers_to_old_images_stay(build):
    moved = []
    for alpha in (0, 1):
        run = build("der", alpha=alpha, memory_size=60, train={"epochs": 4})
        while run.task_index == 0:
            run.advance()
        images = run.stream.data[0].train.prepare(run.method.reservoir.images)
        before = run.method.logits(images, None)
        while not run.done:
            run.advance()
        moved.append((run.method.logits(images, None) - before).square().mean().item())
    assert moved[0] > 3 * moved[1]
