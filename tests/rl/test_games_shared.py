"""Games: what methods and options say of sharing is true, and a run goes on from what it shares."""

from __future__ import annotations

import io
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from sequence_making import Make, tiny

from raycl import registry
from raycl.rl.methods.base import find_method
from raycl.testing_claims import SharingConformance, differences
from raycl.trial.sharing import base_name

pytestmark = pytest.mark.usefixtures("cluster")
METHODS = registry.names("raycl.rl.methods")
SLOW = {name: [pytest.mark.slow] if name in ("blip", "online_ewc") else [] for name in METHODS}
"""Each option is two runs more, and these methods have three or four."""


class Claims(SharingConformance):
    """The suite for games.

    Args:
        name: Name of the method.
        make: Makes runs.
    """

    def __init__(self, name: str, make: Make) -> None:
        self.name, self.make = name, make

    def block(self) -> dict[str, Any]:
        return {"name": self.name}

    def find(self, name: str) -> Any:
        return find_method(name)

    def run_of(self, block: Mapping[str, Any]) -> Any:
        config = tiny(benchmark={"evaluation": {"episodes": 1, "max_frames": 400}})
        return self.make(config.model_copy(update={"method": dict(block)}))

    def check(self, block: Mapping[str, Any]) -> None:
        find_method(block["name"]).Config.model_validate(block)  # a run takes long to be built


@pytest.mark.parametrize("name", [pytest.param(m, marks=SLOW[m]) for m in METHODS])
def test_options_matter_when_they_say(make: Make, name: str) -> None:
    Claims(name, make).test_options_matter_when_they_say()


@pytest.mark.parametrize("name", METHODS)
def test_the_first_game_is_that_of(make: Make, name: str) -> None:
    Claims(name, make).test_first_task_is_that_of()


def test_what_is_claimed() -> None:
    claims = {name: base_name(find_method(name)) for name in METHODS}
    assert claims == {
        "blip": None,
        "finetune": None,
        "online_ewc": "finetune",
        "scratch": "finetune",
    }


def test_a_run_goes_on_from_the_end_of_a_game(make: Make) -> None:
    """The state is written and read as a file, and is of a trial with another strength."""
    weak = tiny("online_ewc")
    strong = weak.model_copy(update={"method": {"name": "online_ewc", "lam": 1e6}})
    first = make(weak)
    while not first.last_row.get("at_task_end"):
        first.advance()
    file = io.BytesIO()
    torch.save(first.shared_state(), file)
    file.seek(0)
    alone = make(strong)
    while not alone.last_row.get("at_task_end"):
        alone.advance()
    before = deepcopy(alone.state_dict())
    while not alone.done:  # now, for some random numbers are those of the process
        alone.advance()
    other = make(strong)
    other.load_shared_state(torch.load(file, weights_only=True))
    assert other.last_row["tasks_done"] == 1
    assert not (found := differences(before, other.state_dict())), found
    while not other.done:
        other.advance()
    assert not (found := differences(alone.state_dict(), other.state_dict())), found
