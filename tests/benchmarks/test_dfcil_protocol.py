"""The protocol of Always Be Dreaming (arXiv 2106.09701): remapping, steps, learning rates."""

from __future__ import annotations

import pytest
import torch
from stream_making import make

from raycl.benchmarks.base import Stream
from raycl.benchmarks.split import Split
from raycl.nn.optim import TrainConfig, make_optimizer, make_schedule


def stream(tasks: int, each: int = 1, **options: object) -> Stream:
    config = Split.Config.model_validate(
        {"name": "split", "dataset": "cifar100", "tasks": tasks, "validation": 0, **options}
    )
    return Split(config).stream({"cifar100": make(classes=100, each=each, shape=(1, 1, 1))}, 0)


def test_labels_are_remapped_to_one_range_per_task() -> None:
    made = stream(5)
    names = made.info.class_names
    assert (names.index("toy23"), names.index("toy8")) == (0, 1)
    for t, task in enumerate(made.info.tasks):
        assert task.classes == tuple(range(20 * t, 20 * (t + 1)))
        for part in (made.data[t].train, made.data[t].test):
            assert set(part.labels.tolist()) == set(task.classes)
        assert made.info.seen(t) == tuple(range(20 * (t + 1)))


@pytest.mark.parametrize("tasks, steps", [(5, 78), (10, 39), (20, 19)])
def test_steps_per_epoch(tasks: int, steps: int) -> None:
    train = stream(tasks, each=500).data[0].train
    assert sum(1 for _ in train.batches(128, drop_last=True)) == steps
    assert sum(1 for _ in train.batches(128)) == steps + 1


def test_learning_rate() -> None:
    def rates(lr: float) -> list[float]:
        schedule = {"name": "step", "milestones": [100, 150, 200]}
        config = TrainConfig.model_validate({"epochs": 250, "lr": lr, "schedule": schedule})
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
        steps = make_schedule(optimizer, config)
        assert isinstance(steps, torch.optim.lr_scheduler.LRScheduler)
        found = []
        for _ in range(config.epochs):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            steps.step()
        return found

    lr = rates(0.1)
    assert [lr[e] for e in (0, 99, 100, 150, 200, 249)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.001, 0.0001, 0.0001]
    )
    assert sum(rates(0.001)) == pytest.approx(0.10555)
