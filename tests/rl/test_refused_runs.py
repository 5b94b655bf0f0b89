"""A run on games that cannot begin, or cannot go on, says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sequence_making import Make, tiny

from raycl.errors import UserError
from raycl.rl import sequence
from raycl.rl.algorithm import RunnersLostError
from raycl.rl.sequence import SequenceRun

FAILING = '''
"""Games that only one process can make, or none."""

from pathlib import Path

from raycl.rl.benchmarks.atari import Atari


class Failing(Atari):
    """Games of Atari."""

    def make(self, *args, **kwargs):
        try:
            Path(__file__).with_suffix(".made").touch(exist_ok=False)
        except FileExistsError:
            raise OSError("no emulator here") from None
        return super().make(*args, **kwargs)
'''


class Begun(Exception):
    """Raised where RLlib would begin."""


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The state of torch's random numbers where RLlib would begin."""
    found: list[torch.Tensor] = []

    def begin(_: Any) -> None:
        found.append(torch.get_rng_state())
        raise Begun

    monkeypatch.setattr(sequence, "SequencePPO", begin)
    return found


def test_weights_that_are_missing_are_named_before_runners_start(
    states: list[torch.Tensor],
) -> None:
    config = tiny(network={"weights": {"file": "/nowhere/start.pt"}})
    with pytest.raises(UserError, match=r"network.weights.file: there is no file '/nowhere/start"):
        SequenceRun(config, "cpu", 2)
    assert not states


def test_the_early_look_at_the_network_draws_no_random_number(states: list[torch.Tensor]) -> None:
    for runners in (0, 2):
        with pytest.raises(Begun):
            SequenceRun(tiny(), "cpu", runners)
    assert torch.equal(*states)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "none, which", [pytest.param(True, "1, 2", marks=pytest.mark.slow), (False, "[12]")]
)
def test_a_runner_that_does_not_start_is_named(
    make: Make, tmp_path: Path, none: bool, which: str
) -> None:
    """RLlib only logs it, and plays on with the others, or fails elsewhere."""
    file = tmp_path / "failing.py"
    file.write_text(FAILING)
    if none:
        file.with_suffix(".made").touch()
    with pytest.raises(RunnersLostError, match=rf"start: {which} of 2: OSError: no emulator here$"):
        make(tiny(benchmark={"name": f"{file}:Failing"}), 2)
