from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from distilled_making import (
    CHANGING,
    CONSTANT,
    NORMED,
    SELECT,
    float64,
    follows,
    scripted,
    three_tasks,
)
from replay_making import UNIT, enter, make, numbered, split, who
from stepping import until

from raycl.errors import UserError
from raycl.testing import MethodConformance, finish
from raycl.training.phase import train_one_epoch


class TestWithLittleRoom(MethodConformance):
    """The reservoir is full, and stored images are augmented."""

    method = "distilbuf"
    options = {"memory_size": 12, "replay_augment": "flip"}
    network = NORMED
    second = {"name": "mlp", "hidden": [16]}
    train = {"epochs": 3, "batch_size": 8, "lr": 0.1}


@pytest.mark.parametrize(
    "options, augment",
    [
        ({"memory_size": 30, "replay_augment": "flip", "replay_weight": 0.6}, "none"),
        ({"memory_size": 30, "alpha": 2.0, "temperature": 0.5}, "flip"),
        ({"memory_size": 10}, "crop_flip"),  # fewer than a batch
    ],
)
def test_is_the_method_written_out(options, augment):
    with float64():
        kept = follows(three_tasks({"name": "distilbuf", **options}, augment=augment))
    if options.get("replay_weight") == 0.6:  # the case that matters, see test_distil.py
        assert not kept[1]


def first_task(build, **options):
    """A run at its start, the task, its phase, and the terms of every step of one epoch."""
    run = build("distilbuf", **options)
    task = until(run, 0)
    (phase,) = run.method.phases(task)
    steps = []

    def loss(batch):
        terms = phase.loss(batch)
        steps.append({name: value.item() for name, value in terms.items()})
        return terms

    train_one_epoch(dataclasses.replace(phase, loss=loss), phase.optimizer(), run.method)
    return run, steps


def test_replay_from_the_second_step_of_the_first_task_on(build):
    _, steps = first_task(build)
    assert steps[0].keys() == {"cross_entropy"}
    assert len(steps) > 5
    assert all(terms.keys() == {"cross_entropy", "replay"} for terms in steps[1:])
    assert all(0.1 < terms["replay"] < 0.6 for terms in steps[1:3])  # 0.3 ln 4 is 0.42


def test_the_weight_of_what_is_replayed(build):
    run = build("distilbuf")
    plain = build("distilbuf", replay_weight=1.0)
    for one in (run, plain):
        task = until(one, 0)
        one.method.reservoir.offer(
            task.train.raw(torch.arange(20)), task.train.labels[:20], 0, torch.Generator()
        )
        one.method.train()
    batch = next(iter(task.train.batches(8)))
    found, expected = (one.method.objective(task)(batch)["replay"].item() for one in (run, plain))
    assert found == pytest.approx(0.3 * expected, rel=1e-6)


def test_weights_of_zero_are_distil(build):
    plain = build("distil", alpha=2.0, train={"augment": "flip"})
    finish(plain)
    run = build("distilbuf", alpha=2.0, replay_weight=0, replay_augment="none",
                train={"augment": "flip"})  # fmt: skip
    finish(run)
    for name, value in plain.method.network.state_dict().items():
        assert torch.equal(run.method.network.state_dict()[name], value)


def test_two_passes_of_the_network(build):
    """Statistics of normalisation are those of the batch, then those of what is replayed."""
    run = build("distilbuf", network=CONSTANT)
    task = until(run, 1)
    run.method.train()
    sizes = []
    run.method.head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    batch = next(iter(task.train.batches(5)))
    run.method.objective(task)(batch)
    assert sizes == [5, 8]
    assert len(run.method.reservoir) >= 8


# ---------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("own, other", [("none", "crop_flip"), ("flip", "none"), ("hcl", "none")])
def test_stored_images_have_an_augmentation_of_their_own(own, other):
    """Asked for by name; the training augmentation changes the batch alone."""
    made = make(
        "distilbuf",
        split(4, 2),
        memory_size=40,
        std=[UNIT, UNIT / 2],
        train={"batch_size": 4, "lr": 1e-9, "augment": other},
        replay_augment=own,
    )
    asked = []

    def augmentation(name):
        asked.append(name)
        return lambda images: 255 - images

    made.context = dataclasses.replace(
        made.context, augmentation=augmentation, augment=lambda images: images // 2
    )
    seen = []
    made.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for index in range(2):
        task = enter(made, numbered(made, index, 10))
        (phase,) = made.phases(task)
        train_one_epoch(phase, phase.optimizer(), made)
    assert set(asked) == {own}
    assert sorted(who(made.reservoir.images)) == [(c, n) for c in range(4) for n in range(10)]
    assert made.reservoir.labels.tolist() == [c for c, _ in who(made.reservoir.images)]
    batch, replayed = seen[-2] / 2, seen[-1]
    assert (batch[:, 0] == 1).all()  # half of class 2 or 3
    first = replayed[:, 0]  # of a task whose pixels count twice, or once
    assert set(first.tolist()) <= {255.0, 254.0, 2 * 253.0, 2 * 252.0}
    assert (first < 256).any()
    assert (first > 256).any()


def test_what_is_offered_is_raw(build):
    run = build("distilbuf", memory_size=1000, train={"augment": "crop_flip"})
    finish(run)
    memory = run.method.reservoir
    for index, data in enumerate(run.stream.data):
        everything = data.train.raw(torch.arange(len(data.train))).flatten(1)
        stored = memory.images[memory.tasks == index].flatten(1)
        assert len(stored) == len(everything)
        assert torch.equal(stored.unique(dim=0), everything.unique(dim=0))


# ---------------------------------------------------------------------- the reservoir


def test_presentations_count(build):
    """The first offers fill the slots in their order; every epoch offers again."""
    run = build("distilbuf", memory_size=25, train={"epochs": 3})
    task = until(run, 0)
    offered = []
    offer = run.method.reservoir.offer

    def note(raw, labels, *rest):
        before = run.method.reservoir.images.clone()
        offer(raw, labels, *rest)
        offered.append((before, raw(torch.arange(len(labels)))))

    run.method.reservoir.offer = note
    run.advance()
    assert run.method.reservoir.offered == len(task.train)
    assert not offered[0][0].any(), "the first step has nothing to replay"
    filled = offered[3][0]
    assert torch.equal(filled[:24], torch.cat([images for _, images in offered[:3]]))
    assert not filled[24:].any()
    finish(run)
    assert run.method.reservoir.offered == 3 * sum(len(d.train) for d in run.stream.data)
    assert len(run.method.reservoir) == 25


def test_every_presentation_survives_alike():
    """Each of 40 images offered to 10 slots is kept with probability 10 / 40."""
    found = torch.zeros(40)
    runs = 250
    for seed in range(runs):
        made = make("distilbuf", split(4, 2), memory_size=10, train={"batch_size": 8, "lr": 1e-9})
        made.context.method_generator.manual_seed(seed)
        task = enter(made, numbered(made, 0, 20))
        for batch in task.train.batches(8):
            made.train()
            made.remember(batch, torch.zeros(8, 4))
            (phase,) = made.phases(task)
            phase.after_step()
        for label, number in who(made.reservoir.images):
            found[20 * label + number] += 1
    assert found.sum() == 10 * runs
    assert (found / runs - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / runs) ** 0.5


@pytest.mark.parametrize("network", [CONSTANT, CHANGING], ids=["constant", "changing"])
def test_the_reservoir_goes_on_when_an_earlier_epoch_is_kept(build, network):
    options = {"benchmark": {"validation": 0.2}, "network": network, "memory_size": 20}
    run = build("distilbuf", train=SELECT, **options)
    epochs = scripted(run, [9.0, 1.0, 1.0, 9.0, 1.0, 1.0])
    memories = []
    while not run.done:
        run.advance()
        memories.append(run.method.reservoir.images.clone())
        assert run.method.reservoir.offered == sum(
            len(run.stream.data[i // 3].train) for i in range(len(memories))
        )
        if run.task_index == 1 and len(memories) == 3:
            for value, kept in zip(
                run.method.network.state_dict().values(), epochs[0], strict=True
            ):
                assert torch.equal(value, kept)
    assert not torch.equal(memories[2], memories[0])
    other = build("distilbuf", train={**SELECT, "select": "last", "select_tolerance": None},
                  **options)  # fmt: skip
    while other.task_index == 0:
        other.advance()
    assert torch.equal(other.method.reservoir.images, memories[2]), "whatever was kept"


def test_scoring_neither_offers_nor_draws(build):
    run = build(
        "distilbuf", benchmark={"validation": 0.2}, train={"select": "validation_loss", "epochs": 2}
    )
    task = until(run, 1)
    (phase,) = run.method.phases(task)
    run.method.eval()
    before = run.method.reservoir.offered, run.random.method.get_state()
    (batch,) = task.validation.batches(1000)
    assert phase.loss(batch).keys() == {"cross_entropy", "distillation"}
    phase.score()
    assert run.method.reservoir.offered == before[0]
    assert torch.equal(run.random.method.get_state(), before[1])


# ---------------------------------------------------------------------- outputs that compete


def test_a_stored_image_competes_in_its_own_task(build):
    """Labels of old tasks are not among the outputs of the current one (``outputs: task``)."""
    run = build("distilbuf", outputs="task", replay_augment="none")
    task = until(run, 1)
    run.method.train()
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    found = run.method.objective(task)(batch)
    run.random.method.set_state(state)
    old = run.method.replayer(None)()
    z = run.method.network(old.images)
    own = [
        F.cross_entropy(row[2 * (y // 2) :][:2][None], (y % 2)[None], label_smoothing=0.1)
        for row, y in zip(z, old.labels, strict=True)
    ]
    assert old.labels.max() < 2
    torch.testing.assert_close(found["replay"], 0.3 * torch.stack(own).mean())
    found["replay"].backward()
    assert run.method.head.weight.grad[:2].any()
    assert not run.method.head.weight.grad[2:].any()


def test_ambiguous_outputs_are_refused():
    with pytest.raises(UserError, match="'task' is ambiguous"):
        make("distilbuf", [[0, 1], [1, 2]], outputs="task")
