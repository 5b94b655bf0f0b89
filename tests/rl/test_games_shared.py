"""Games: what methods and options say of sharing is true, and a run goes on from what it shares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sequence_making import Make, tiny

from raycl import registry
from raycl.rl.methods.base import find_method
from raycl.testing_claims import SharingConformance, differences
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.sharing import base_name
from tests.sweep.sharing_making import Killed, Lab, lab, measured, seconds, text, without

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


@pytest.mark.parametrize("name", [pytest.param(m, marks=SLOW[m]) for m in METHODS])
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


@pytest.mark.slow
def test_every_matrix_of_a_sweep_is_the_same_also_under_kills(tmp_path: Path) -> None:
    """Trials die when a game is over, where their state is kept, and while they repeat rows."""
    evaluation = {"episodes": 1, "max_frames": 400, "validation_episodes": 1}
    small = tiny().model_dump(mode="json")
    spec = text(
        benchmark=small["benchmark"] | {"evaluation": evaluation},
        methods=[
            {"name": "online_ewc", "label": "weak", "lam": 1.0},
            {"name": "online_ewc", "label": "strong", "lam": 1e6},
            "scratch",
        ],
        network=small["network"],
        train=small["train"],
    )
    one = lab(tmp_path, spec)
    plans = one.plans()
    assert {plan.name: plan.points for plan in plans} == {
        "weak-s0": [1, 2],
        "strong-s0": [1, 2],
        "scratch-s0": [1],
    }
    killed: list[str] = []

    def kill(name: str, row: dict[str, Any]) -> None:
        if row.get("at_task_end") and not row["finished"] and name not in killed:
            killed.append(name)
            raise Killed

    one.kill = kill
    shared = one.run(plans)
    other = Lab(one.sweep, one.data, str(tmp_path / "alone"))
    alone = other.run(without(plans))
    assert len(killed) == 3
    assert {n: measured(rows) for n, rows in shared.items()} == {
        n: measured(rows) for n, rows in alone.items()
    }
    took = [name for name, rows in shared.items() if seconds(rows)]
    assert sorted(took) == ["scratch-s0", "strong-s0"]
    for plan in plans:
        stores = (CheckpointStore(f"{where}/{plan.key}") for where in (one.storage, other.storage))
        first, second = (store.get("after-00") for store in stores)
        assert first is not None
        assert second is not None
        assert first["config"]["method"] == second["config"]["method"] == plan.config["method"]
        assert not (found := differences(first, second)), found
