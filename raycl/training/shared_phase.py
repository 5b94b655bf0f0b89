"""What a phase has trained, as one trial leaves it for others that would train the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from raycl.trial.costs import Costs
from raycl.trial.randomness import Randomness
from raycl.trial.run import Row


class Watch:
    """Watches a phase with a result, from its beginning, when the clock has just been started.

    Args:
        costs: Costs of the run.
        random: Its generators.
    """

    def __init__(self, costs: Costs, random: Randomness) -> None:
        costs.begin_part()
        self.costs, self.random = costs, random
        self.before = costs.seconds, costs.examples, random.of_process()

    def result(self, module: nn.Module, row: Row) -> dict[str, Any] | None:
        """Everything that the phase has changed; the clock has been stopped.

        Args:
            module: ``Phase.result``.
            row: The row of the last epoch.

        Returns:
            Plain values and tensors; ``None`` where it has drawn from the process's generators: it
            would not be the same in another trial.
        """
        seconds, examples, process = self.before
        if self.random.of_process() != process:
            return None
        return {
            "module": module.state_dict(),
            "own": self.random.own(),
            "row": row,
            "seconds": self.costs.seconds - seconds,
            "examples": self.costs.examples - examples,
            "peak_memory_mb": self.costs.part_peak_mb,
        }


def load_result(
    module: nn.Module, found: Mapping[str, Any], costs: Costs, random: Randomness
) -> int:
    """Go on as if the phase had been trained here.

    Args:
        module: ``Phase.result``.
        found: What ``Watch.result`` gave.
        costs: Costs of the run.
        random: Its generators.

    Returns:
        Epochs of the phase before its last one.
    """
    module.load_state_dict(found["module"])
    random.load_own(found["own"])
    costs.seconds += found["seconds"]
    costs.examples += found["examples"]
    costs.peak_memory_mb = max(costs.peak_memory_mb, found["peak_memory_mb"])
    return int(found["row"]["epoch"])
