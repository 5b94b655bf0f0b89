"""Fisher diagonals of a game's policy from the last rollout, as BLIP's Atari code has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.nn.fisher import fisher_diagonal
from raycl.rl.policy import Policy

_TRUNK = "policy.trunk."


class _Actor(nn.Module):
    """A module from observations to the logits of one game, without the values."""

    def __init__(self, policy: Policy, game: int) -> None:
        super().__init__()
        self.policy, self.game = policy, game
        self.training = policy.training

    def forward(self, observations: Tensor) -> Tensor:
        logits, _ = self.policy.heads(self.policy.features(observations), self.game)
        return logits


def batch_size(observations: Tensor, batches: int) -> int:
    """Number of observations in each minibatch, at least one; the rest is dropped."""
    return max(1, len(observations) // batches)


def per_example(
    policy: Policy, game: int, observations: Tensor, batches: int, generator: torch.Generator
) -> Tensor:
    """F = mean_n (d log pi(a_n | s_n) / d theta)^2, actions drawn anew from the policy.

    Args:
        policy: theta is its trunk.
        game: The game whose actor is used.
        observations: uint8 (n, C, H, W).
        batches: Minibatches they are divided into; for one-example gradients only their number
            times their size matters.
        generator: On the CPU: order of the observations, actions.

    Returns:
        (P,): the trunk's parameters in order, flattened and concatenated.

    Raises:
        ValueError: Logits are not finite.
    """
    names = [_TRUNK + name for name, _ in policy.trunk.named_parameters()]
    actions = torch.arange(policy.num_actions[game], device=observations.device)
    parts = _minibatches(observations, batches, generator)
    return fisher_diagonal(_Actor(policy, game), names, parts, actions, generator)


def batch_mean(
    policy: Policy, game: int, observations: Tensor, batches: int, generator: torch.Generator
) -> Tensor:
    """F = mean_b (d mean_n log pi(a_n | s_n) / d theta)^2, b minibatches, n in them.

    About ``per_example`` over the size of a minibatch; arguments, result and errors are its.
    """
    parameters = list(policy.trunk.parameters())
    actor, count = _Actor(policy, game), 0
    sums = [torch.zeros_like(p) for p in parameters]
    for part in _minibatches(observations, batches, generator):
        with torch.enable_grad():
            logits = actor(part)
            p = F.softmax(logits.detach(), 1).cpu()
            if not p.isfinite().all():
                raise ValueError("logits are not finite: the network has diverged")
            actions = torch.multinomial(p, 1, generator=generator).squeeze(1).to(logits.device)
            loss = F.cross_entropy(logits, actions)
        for sum_, g in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            sum_.addcmul_(g, g)
        count += 1
    return torch.cat([sum_.flatten() for sum_ in sums]).div_(count)


def _minibatches(
    observations: Tensor, batches: int, generator: torch.Generator
) -> Iterator[Tensor]:
    size = batch_size(observations, batches)
    order = torch.randperm(len(observations), generator=generator)[: size * batches]
    for index in torch.split(order, size):
        yield observations[index.to(observations.device)]
