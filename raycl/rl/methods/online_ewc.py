"""Online elastic weight consolidation on games: one anchor, and a Fisher diagonal that adds up."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.rl.methods import _fisher
from raycl.rl.methods.base import SequenceMethod, from_end_of_task, from_task
from raycl.rl.policy import Policy


class OnlineEWC(SequenceMethod):
    """The trunk is pulled to where it was at the last game's end, as the Fisher weighs it.

    Paper:
        The baseline "online EWC" of Shi et al., "Continual Learning via Bit-Level Information
        Preserving", CVPR 2021, arXiv 2105.04444. After Schwarz et al., "Progress & Compress", ICML
        2018, arXiv 1805.06370, and Huszar, "On Quadratic Penalties in Elastic Weight
        Consolidation", arXiv 1712.03847, whose sum over tasks it is.

    Loss of game t > 1, and what happens at a game's end:
        L = PPO + lam / 2 sum_i F*_i (theta_i - theta*_i)^2
        F* <- gamma F* + F;   theta* <- theta

        F is taken from the last rollout, played just before the last update: the n observations
        after its steps, at the weights after that update, in ``fisher_batches`` minibatches of
        n // ``fisher_batches`` in random order (the rest is dropped), actions drawn anew from the
        policy, g_b the gradient of the minibatch's mean log pi(a|s), F = mean_b g_b^2. Neither
        critic nor entropy is in it.

    Symbols:
        lambda: ``lam``. F*: the buffer ``fisher``. theta*: the buffer ``anchor``. theta: the trunk;
        heads are never protected, as each belongs to one game.

    Traps:
        * Minibatch means make F smaller than the Fisher information of one example by the size of
          the minibatch, 62 by default: ``lam`` = 5000 acts like 81 with ``fisher: per_example``.
          Another ``train.rollout``, ``train.envs`` or ``fisher_batches`` changes the strength.
        * The penalty's gradient is inside PPO's bound on the norm: where it is large, it takes the
          step from PPO.

    Departures from the papers:
        * gamma = 1 is no decay, unlike arXiv 1805.06370, and F is not normalised for each game.
    Departures from the code:
        * The string "False" counts as true there: it has always been online. Its other variant, one
          penalty for each game, is not here.
        * The Fisher is part of a game's checkpoint, which is written after this estimate.
        * ``fisher: per_example`` and ``gamma`` are ours.
    """

    class Config(SequenceMethod.Config):
        """Options of online EWC."""

        lam: float = Field(
            5000.0, ge=0, description="strength of the penalty", json_schema_extra=from_task(2)
        )
        gamma: float = Field(
            1.0,
            ge=0,
            le=1,
            description="what each game leaves of the old Fisher",
            json_schema_extra=from_end_of_task(2),
        )
        fisher: Literal["batch_mean", "per_example"] = Field(
            "batch_mean",
            description="mean of squared gradients: of minibatches, as published, or of single "
            "observations, which is larger by the size of a minibatch",
            json_schema_extra=from_end_of_task(1),
        )
        fisher_batches: int = Field(
            32,
            ge=1,
            description="minibatches that the last rollout is divided into",
            json_schema_extra=from_end_of_task(1),
        )

    first_task_of = "finetune"
    anchor: Tensor
    fisher: Tensor

    def __init__(self, config: Config, policy: Policy) -> None:
        super().__init__(config, policy)
        self.register_buffer("anchor", torch.zeros_like(_position(policy)))
        self.register_buffer("fisher", torch.zeros_like(self.anchor))

    def penalty(self, policy: Policy, game: int) -> Tensor | None:
        """See ``SequenceMethod.penalty``; the first game has none."""
        if game == 0:
            return None
        parameters = list(policy.trunk.parameters())
        sizes = [p.numel() for p in parameters]
        parts = [torch.split(flat, sizes) for flat in (self.anchor, self.fisher)]
        anchors, weights = (
            [part.view_as(p) for part, p in zip(split, parameters, strict=True)] for split in parts
        )
        pull: Tensor = _Pull.apply(self.config.lam, anchors, weights, *parameters)  # type: ignore[no-untyped-call]
        return pull

    def end_game(
        self, policy: Policy, game: int, observations: Tensor, generator: torch.Generator
    ) -> None:
        """Add the game's Fisher and move the anchor."""
        estimate = _fisher.batch_mean
        if self.config.fisher == "per_example":
            estimate = _fisher.per_example
        new = estimate(policy, game, observations, self.config.fisher_batches, generator)
        self.fisher.mul_(self.config.gamma).add_(new)
        self.anchor.copy_(_position(policy))

    def diagnostics(self) -> dict[str, float]:
        """Scale of the Fisher of all games so far."""
        return {"fisher_mean": float(self.fisher.mean()), "fisher_max": float(self.fisher.max())}


class _Pull(torch.autograd.Function):
    """lam / 2 sum w (theta - theta*)^2. By hand, as its gradient is at hand when its value is.

    ``raycl.nn.quadratic`` has the same sum, with lam w rounded first: runs would get other bits.
    """

    @staticmethod
    def forward(
        ctx: Any, lam: float, anchors: list[Tensor], weights: list[Tensor], *theta: Tensor
    ) -> Tensor:
        moved = torch._foreach_sub(theta, anchors)
        forces = torch._foreach_mul(moved, weights)
        ctx.lam = lam
        ctx.save_for_backward(*forces)
        terms = [torch.dot(f.flatten(), m.flatten()) for f, m in zip(forces, moved, strict=True)]
        return torch.stack(terms).sum() * (lam / 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None, *torch._foreach_mul(ctx.saved_tensors, grads[0] * ctx.lam)


def _position(policy: Policy) -> Tensor:
    """The trunk, flattened and concatenated."""
    return torch.cat([p.detach().flatten() for p in policy.trunk.parameters()])
