from __future__ import annotations

import dataclasses

import pytest
import torch
from replay_making import UNIT, enter, make, numbered, split, who
from reservoir_making import STREAMS, cross_entropy, follows
from stepping import until

from raycl import datasets
from raycl.datasets.base import DatasetConfig
from raycl.testing import finish
from raycl.training.phase import train_one_epoch
from raycl.training.run import Run

RESERVOIR = ["er", "der", "derpp"]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("memory_size", [12, 500])
def test_is_the_method_written_out(build, stream, memory_size):
    def loss(reference, x, y):
        old = reference.draw() if reference.memory else []
        images = torch.cat([x, reference.images(old)]) if old else x
        labels = torch.cat([y, torch.tensor([i.label for i in old], dtype=torch.int64)])
        z = reference.network(images)
        return cross_entropy(z, labels), z[: len(x)]

    run = build("er", memory_size=memory_size, benchmark=STREAMS[stream], train={"epochs": 2})
    reference = follows(run, loss)
    sizes = [len(data.train) for data in run.stream.data]
    assert reference.offered == 2 * sum(sizes)
    assert {item.task for item in reference.memory} == set(range(len(sizes)))


def test_one_pass_over_the_batch_and_as_many_stored_images(build):
    run = build("er", memory_size=1000)
    sizes = []
    run.method.head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    task = until(run, 0)
    (phase,) = run.method.phases(task)
    train_one_epoch(phase, phase.optimizer(), run.method)
    last = len(task.train) % 8
    assert sizes == [8] + [16] * (len(task.train) // 8 - 1) + [last + 8]  # no replay in step one


@pytest.mark.parametrize("method", RESERVOIR)
def test_fewer_are_replayed_while_fewer_are_stored(build, method):
    run = build(method, memory_size=5)
    drawn = []
    draw = run.method.reservoir.draw

    def spy(count, generator):
        slots = draw(count, generator)
        drawn.append((count, len(slots.unique()), len(slots)))
        return slots

    run.method.reservoir.draw = spy
    run.advance()
    per_step = 2 if method == "derpp" else 1
    steps = -(-len(run.stream.data[0].train) // 8)
    assert drawn == [(8, 5, 5)] * (per_step * (steps - 1))


@pytest.mark.parametrize("method", RESERVOIR)
def test_the_first_step_is_fine_tuning(build, method):
    train = {"batch_size": 1000, "epochs": 2}
    run, plain = (build(name, outputs="all", train=train) for name in (method, "finetune"))
    run.advance()
    plain.advance()
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)
    assert len(run.method.reservoir) == len(run.stream.data[0].train)
    run.advance()
    plain.advance()
    assert not torch.equal(run.method.head.weight, plain.method.head.weight)


@pytest.mark.parametrize("method", RESERVOIR)
def test_scoring_neither_offers_nor_draws(build, method):
    run = build(
        method,
        memory_size=20,
        benchmark={"validation": 0.2},
        train={"select": "validation_loss", "epochs": 2},
    )
    task = until(run, 1)
    (phase,) = run.method.phases(task)
    run.method.eval()
    before = run.method.reservoir.offered, run.random.method.get_state()
    (batch,) = task.validation.batches(1000)
    with torch.no_grad():
        loss = phase.loss(batch)
        plain = cross_entropy(run.method.logits(batch.images, None), batch.labels)
    loss = loss if method == "er" else loss.pop("cross_entropy")
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    assert phase.score() == pytest.approx(-float(plain), rel=1e-5)
    assert run.method._learnt is None
    assert run.method.reservoir.offered == before[0]
    assert torch.equal(run.random.method.get_state(), before[1])


@pytest.mark.parametrize("method", RESERVOIR)
def test_the_memory_goes_on_when_an_epoch_is_selected(build, method, monkeypatch):
    train = {"select": "validation_loss", "epochs": 3}
    run = build(method, memory_size=20, benchmark={"validation": 0.2}, train=train)
    scores = iter([2.0, 1.0, 0.0])
    monkeypatch.setattr(type(run.method), "score", lambda *_: next(scores))
    run.advance()
    weights = run.method.head.weight.clone()
    run.advance()
    assert not torch.equal(run.method.head.weight, weights)
    run.advance()
    assert run.task_index == 1
    assert torch.equal(run.method.head.weight, weights)
    assert run.method.reservoir.offered == 3 * len(run.stream.data[0].train)


@pytest.mark.parametrize("method", RESERVOIR)
def test_stored_images_are_raw_and_augmented_when_replayed(method):
    made = make(
        method,
        split(4, 2),
        memory_size=40,
        std=[UNIT, UNIT / 2],
        train={"batch_size": 4, "lr": 1e-9},
    )
    made.context = dataclasses.replace(made.context, augment=lambda images: 255 - images)
    for index in range(2):
        task = enter(made, numbered(made, index, 10))
        (phase,) = made.phases(task)
        train_one_epoch(phase, phase.optimizer(), made)
    assert sorted(who(made.reservoir.images)) == [(c, n) for c in range(4) for n in range(10)]
    assert made.reservoir.labels.tolist() == [c for c, _ in who(made.reservoir.images)]
    made.train()
    replayed = made.replayer(made.context.augment)()
    pixels = (255 - replayed.labels) * torch.where(replayed.labels < 2, 1.0, 2.0)
    torch.testing.assert_close(replayed.images[:, 0, 0, 0], pixels)


def test_raw_images_are_those_of_the_benchmark(build):
    run = build("er", memory_size=1000, benchmark={"name": "permuted", "tasks": 2})
    while not run.done:
        run.advance()
    memory = run.method.reservoir
    for index, data in enumerate(run.stream.data):
        everything = data.train.raw(torch.arange(len(data.train))).flatten(1)
        stored = memory.images[memory.tasks == index].flatten(1)
        assert len(stored) == len(everything)
        assert torch.equal(stored.unique(dim=0), everything.unique(dim=0))


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    digits = DatasetConfig(name="digits")
    data = {datasets.key(digits): datasets.load(digits, tmp_path_factory.mktemp("none"))}

    def average(method, **options):
        config = {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
            "method": {"name": method, "outputs": "all", **options},
            "network": {"name": "mlp", "hidden": [50]},
            "train": {"epochs": 5, "batch_size": 32, "lr": 0.1},
            "readouts": ["class"],
        }
        return finish(Run(config, data))["metrics"]["class"]["average_accuracy"]

    return average


@pytest.mark.parametrize("method", RESERVOIR)
def test_remembers(on_digits, method):
    assert on_digits("finetune") < 30
    assert on_digits(method, memory_size=50) > 70


@pytest.mark.parametrize("method", RESERVOIR)
def test_another_network_learns_old_tasks_from_the_memory_alone(build, method):
    each = [{"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [24]}]
    networks = {"name": "sequence", "of": each}
    run = build(method, memory_size=24, network=networks, train={"epochs": 5})
    result = finish(run)
    assert run.method.head.in_features == 24
    assert result["matrices"]["class"][-1][0] > 80
    assert run.method.diagnostics() == {"exemplars": 24.0}


def test_what_is_stored_is_counted(build):
    sizes = {}
    for method in ("finetune", *RESERVOIR):
        options = {} if method == "finetune" else {"memory_size": 24}
        sizes[method] = finish(build(method, **options))["cost"]["stored_bytes"]
    images = 24 * (64 + 2 * 8)
    assert sizes["er"] == sizes["finetune"] + images
    assert sizes["der"] == sizes["derpp"] == sizes["er"] + 24 * 4 * 4
