"""The contract of a method on a sequence of games, in plain PyTorch without RLlib or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raycl import registry
from raycl.errors import UserError
from raycl.methods.base import MethodConfig
from raycl.rl.config import SequenceConfig
from raycl.rl.policy import Policy, build_policy
from raycl.trial.sharing import from_end_of_task as from_end_of_task
from raycl.trial.sharing import from_task as from_task


class SequenceMethod(nn.Module):
    """A method on games: what it adds to PPO; its state is parameters, buffers and extra state.

    The policy is not part of it: every hook is handed the policy. Structure (shapes of buffers)
    depends on the policy only, so that a checkpoint can be loaded into a fresh method.

    Args:
        config: Its ``Config``.
        policy: The policy it will be used with, freshly initialised. It may change the initial
            weights; it may keep references to parameters, but not register them.
    """

    separate: ClassVar[bool] = False
    """Whether every game has weights of its own, so that its score stays what it was."""

    first_task_of: ClassVar[str | None] = None
    """Name of another method to which this one is equal until its first game has been trained.

    See ``raycl.methods.base.Method.first_task_of``.
    """

    class Config(MethodConfig):
        """Options of every method on games."""

    config: Any

    def __init__(self, config: Any, policy: Policy) -> None:
        super().__init__()
        self.config = config

    def begin_game(self, policy: Policy, game: int) -> None:
        """Prepare for a game, before its first update and after a restore in its middle.

        Args:
            policy: To be read only: after a restore it has the weights of the checkpoint already.
                Weights that a game starts with are set in ``start_weights``.
            game: Index in the sequence, from 0.
        """

    def start_weights(self, policy: Policy, game: int) -> None:
        """Change the weights that a game starts with; called once, before the game begins."""

    def frozen(self, game: int) -> bool:
        """Whether the trunk stays as it is during this game."""
        return False

    def penalty(self, policy: Policy, game: int) -> Tensor | None:
        """Penalty, a scalar that is added to the loss of every minibatch; ``None``: none."""
        return None

    def after_step(self, policy: Policy) -> None:
        """Change the policy after a step of the optimiser, e.g. project it."""

    def end_game(
        self, policy: Policy, game: int, observations: Tensor, generator: torch.Generator
    ) -> None:
        """Estimate, consolidate or anchor, when a game has been learnt.

        Args:
            policy: With the weights after the last update; may be changed in place.
            game: Index in the sequence.
            observations: uint8 (n, C, H, W) on the policy's device: those after each step of the
                last rollout, which was played just before the last update.
            generator: For sampling; on the CPU.
        """

    def diagnostics(self) -> dict[str, float]:
        """Numbers of the method's own that are logged at a game's end."""
        return {}

    def histograms(self) -> dict[str, list[int]]:
        """Distributions at a game's end: name to counts per bin, the same bins after every game."""
        return {}


def find_method(name: str, where: str = "method") -> type[SequenceMethod]:
    """Find the class of a method by its name."""
    return registry.find("raycl.rl.methods", SequenceMethod, name, where=where)


def build_method(block: Mapping[str, Any], policy: Policy, where: str = "method") -> SequenceMethod:
    """Build the method of a configuration block, for a policy that is freshly initialised."""
    cls = find_method(block["name"], where)
    return cls(cls.Config.model_validate(block), policy)


def try_out(config: Mapping[str, Any]) -> None:
    """Build a trial's policy and its method once, so that what does not fit is found early.

    The twin of ``raycl.training.check.try_out``: first without memory (PyTorch's device ``meta``),
    and if that fails on the CPU, whose error counts. Weights to start from are not read.

    Args:
        config: A finished configuration.

    Raises:
        UserError: The network does not take the games' images, or the method refuses its options or
            the network.
    """
    trial = SequenceConfig.model_validate(config)

    def build(device: str) -> None:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            build_method(trial.method, build_policy(trial, random=True))

    try:
        build("meta")
    except (UserError, NotImplementedError, RuntimeError, TypeError, ValueError):
        build("cpu")
