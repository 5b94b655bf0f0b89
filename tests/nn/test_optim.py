"""The learning rate over the epochs of a phase."""

from __future__ import annotations

import pytest
import torch

from raycl.nn.optim import Schedule, TrainConfig, make_optimizer, make_schedule


def rates(epochs: int, resumed_at: int | None = None) -> list[float]:
    """The rate of each epoch, where training is perhaps interrupted before one."""
    config = TrainConfig(
        epochs=epochs, optimizer="adam", lr=1e-3, schedule=Schedule(name="coda_cosine")
    )

    def start() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
        schedule = make_schedule(optimizer, config)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        return optimizer, schedule

    optimizer, schedule = start()
    found = []
    for epoch in range(epochs):
        if epoch == resumed_at:
            saved = optimizer.state_dict(), schedule.state_dict()
            optimizer, schedule = start()
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_coda_cosine_of_twenty_epochs() -> None:
    found = rates(20)
    assert found[0] == found[1] == 1e-3
    assert found[2:4] == pytest.approx([9.96652e-4, 9.86632e-4], rel=1e-6)
    assert found[-2:] == pytest.approx([1.78441e-4, 9.740006e-5], rel=3e-6)


def test_coda_cosine_of_thirty_five_epochs() -> None:
    found = rates(35)
    assert found[2] == pytest.approx(9.989542e-4, rel=1e-6)
    assert found[-2:] == pytest.approx([1.069786e-4, 6.14072e-5], rel=1e-6)


@pytest.mark.parametrize("epochs", [1, 2])
def test_coda_cosine_of_so_few_epochs_is_constant(epochs: int) -> None:
    assert rates(epochs) == [1e-3] * epochs


def test_coda_cosine_resumes_to_the_bit() -> None:
    assert rates(7, resumed_at=4) == rates(7)


def test_a_schedule_dumps_what_it_always_did() -> None:
    assert Schedule().model_dump(mode="json") == {
        "name": "constant",
        "milestones": [],
        "factor": 0.1,
        "patience": 5,
        "min_lr": 1e-4,
    }
