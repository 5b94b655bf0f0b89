"""Generators of a run, saved on one kind of device and restored on another; no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raycl.trial.randomness import Randomness, Seeds

CPU = torch.device("cpu")


def begun() -> Randomness:
    found = Randomness(Seeds.derive(3), CPU, 1)
    for generator in found._own:
        torch.rand(5, generator=generator)
    return found


def of_another_device(made_on: str) -> tuple[Randomness, dict[str, Any]]:
    """Generators, and a state that was made on a device of another kind."""
    state, found = begun().state_dict(), begun()
    small = torch.arange(16, dtype=torch.uint8)  # the size of a state of CUDA
    if made_on == "cuda":
        return found, state | {"cuda": small, "own": [*state["own"][:2], small]}
    found.device = torch.device("cuda")  # its generators are the CPU's, which is not asked
    return found, state


@pytest.mark.parametrize("made_on", ["cpu", "cuda"])
def test_a_run_goes_on_on_a_device_of_another_kind(made_on: str) -> None:
    numbers = []
    for _ in range(2):
        found, state = of_another_device(made_on)
        found.load_state_dict(state)
        assert torch.equal(torch.get_rng_state(), state["torch"])
        assert all(map(torch.equal, found.own()[:2], state["own"][:2]))
        numbers.append(torch.rand(4, generator=found.augment))
    assert torch.equal(*numbers), "the same ones whenever it goes on from there"
    fresh = Randomness(Seeds.derive(3), CPU, 1)
    assert not torch.equal(numbers[0], torch.rand(4, generator=fresh.augment)), "new ones"


def test_a_run_goes_on_with_its_numbers_on_the_same_device() -> None:
    state = begun().state_dict()
    expected = torch.rand(4, generator=begun().augment)
    other = Randomness(Seeds.derive(4), CPU, 1)
    other.load_state_dict(state)
    assert torch.equal(torch.rand(4, generator=other.augment), expected)
