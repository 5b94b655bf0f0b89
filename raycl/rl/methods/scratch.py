"""Every game from fresh weights: what a sequence is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from raycl.rl.methods.base import SequenceMethod
from raycl.rl.policy import Policy


class Scratch(SequenceMethod):
    """PPO with a trunk that starts afresh in every game: the single-task reference of transfer.

    Paper:
        The reference of forward transfer in Wolczyk et al., "Continual World: A Robotic Benchmark
        For Continual Reinforcement Learning", NeurIPS 2021, arXiv 2105.10919; runs with
        ``--single-task`` in the code of arXiv 2105.04444.

    Loss of every game:
        The loss of PPO. Before a game, the trunk is set to the initial weights of the run, which a
        seed's other methods start with, too: in the first game it is ``finetune``, and what differs
        in later ones is what the games before have done.

    Symbols:
        The initial weights: the buffer ``start``, 4 bytes per weight.

    Departures from the papers: one seed draws one set of initial weights, not one for each game.
    The weights of each game are its own (``separate``): a score stays what it was right after the
    game, and what is still to come scores as the untrained network does. They are in the trial's
    checkpoints of the games' ends; what it stores for a game is one network, not all of them.
    """

    separate = True
    first_task_of = "finetune"
    start: Tensor

    def __init__(self, config: SequenceMethod.Config, policy: Policy) -> None:
        super().__init__(config, policy)
        weights = [p.detach().flatten() for p in policy.trunk.parameters()]
        self.register_buffer("start", torch.cat(weights))

    @torch.no_grad()
    def start_weights(self, policy: Policy, game: int) -> None:
        """See ``SequenceMethod.start_weights``: the trunk forgets all."""
        parameters = list(policy.trunk.parameters())
        parts = torch.split(self.start, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
