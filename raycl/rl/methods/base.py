"""The contract of a method on a sequence of games. Plain torch: no RLlib, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raycl import registry
from raycl.methods.base import MethodConfig
from raycl.rl.policy import Policy


class SequenceMethod(nn.Module):
    """What a method adds to PPO. Its whole state is parameters, buffers and extra state.

    The policy is not part of it: every hook is handed the policy. Structure (shapes of buffers)
    depends on the policy only, so that a checkpoint can be loaded into a fresh method.

    Args:
        config: Its ``Config``.
        policy: The policy it will be used with, freshly initialised. It may change the initial
            weights; it may keep references to parameters, but not register them.
    """

    separate: ClassVar[bool] = False
    """Whether every game has weights of its own, so that its score stays what it was."""

    class Config(MethodConfig):
        """Options every method has."""

    config: Any

    def __init__(self, config: Any, policy: Policy) -> None:
        super().__init__()
        self.config = config

    def begin_game(self, policy: Policy, game: int) -> None:
        """Before the first update on a game; also called after a restore in its middle.

        Args:
            policy: May be changed only if ``fresh`` (see ``scratch``); a restore calls with the
                weights of the checkpoint already in place.
            game: Index in the sequence, from 0.
        """

    def start_weights(self, policy: Policy, game: int) -> None:
        """Once, before a game is begun for the first time: change the weights it starts with."""

    def frozen(self, game: int) -> bool:
        """Whether the trunk does not learn during this game."""
        return False

    def penalty(self, policy: Policy, game: int) -> Tensor | None:
        """A scalar that is added to the loss of every minibatch; ``None``: nothing."""
        return None

    def after_step(self, policy: Policy) -> None:
        """After every step of the optimiser."""

    def end_game(
        self, policy: Policy, game: int, observations: Tensor, generator: torch.Generator
    ) -> None:
        """A game has been learnt: estimate, consolidate, anchor.

        Args:
            policy: With the weights after the last update; may be changed in place.
            game: Index in the sequence.
            observations: uint8 (n, C, H, W) on the policy's device: the last rollout, collected
                just before the last update.
            generator: For sampling; on the CPU.
        """

    def diagnostics(self) -> dict[str, float]:
        """Numbers to be logged at a game's end."""
        return {}

    def histograms(self) -> dict[str, list[int]]:
        """Distributions at a game's end: name to counts per bin, the same bins after every game."""
        return {}


def build_method(block: Mapping[str, Any], policy: Policy, where: str = "method") -> SequenceMethod:
    """The method of a configuration block, for a policy that is freshly initialised."""
    cls = registry.find("raycl.rl.methods", SequenceMethod, block["name"], where=where)
    return cls(cls.Config.model_validate(block), policy)
