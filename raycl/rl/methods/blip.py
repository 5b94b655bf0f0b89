"""BLIP on games: the bits of a weight that a game has determined are frozen for the next ones."""

from __future__ import annotations

import logging
import math

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.nn.quantised import LIMIT, Drift, FrozenBits, Quantised, ZeroBits
from raycl.rl.methods import _fisher
from raycl.rl.methods.base import SequenceMethod, from_end_of_task, from_task
from raycl.rl.policy import Policy

BIAS_BOUND = 1.0
ZEROED = 0.5
"""Share of weights set to 0 at a game's end above which a warning is logged."""

log = logging.getLogger(__name__)


class BLIP(SequenceMethod):
    """Plain PPO; at a game's end the trunk is rounded to the bits its rollouts have determined.

    Paper:
        Shi et al., "Continual Learning via Bit-Level Information Preserving", CVPR 2021, arXiv
        2105.04444.

    Loss of every game, and what happens at its end:
        L = PPO, and after every step of the optimiser, for each scalar of the trunk,
            w <- clip(w, p - B 2^-b, p + B 2^-b), then clip(w, -B (1 - 2^-K), B (1 - 2^-K))
        F = mean_n (d log pi(a_n|s_n) / d w)^2 / N^2, s_n the observations after the steps of the
        last rollout, at the weights after the last update: ``fisher_batches`` minibatches of N in
        random order, actions drawn anew from the policy; neither critic nor entropy is in it;
            b <- min(b + max(0, ceil(IG)), K),  IG = 1/2 log2((F + (t+1) Fbar) / ((t+2) Fbar))
            w <- p <- B round(2^b w / B) / 2^b, and 0 where b = 0
            Fbar <- ((t+1) Fbar + F) / (t+2)
        with t counted from 0, b = p = 0 and Fbar = F_0 at the start.

    Symbols:
        K: ``max_bits``. B: ``bound`` / sqrt(d) for weights, 1 for biases; d is the larger of a
        layer's inputs per output and its outputs. F_0: ``f_prior`` d, for weights and biases; a
        quarter of it is about one more bit for what the first game determines. N: observations //
        ``fisher_batches``, 62 by default. b, p and Fbar: ``bits``, ``previous`` and ``fisher`` of
        ``frozen_bits``. Quantised is the whole trunk, never a head.

    Traps:
        * ``f_prior`` is relative to the Fisher information over N^2. Another ``train.rollout``,
          ``train.envs`` or ``fisher_batches`` changes N, and so the bits: a factor of 2 is one bit.
          It was tuned for 10 million steps per game; short runs want another one. With F over N^2
          undone, 5e-18 at N = 62 is 1.92e-14.
        * A frozen bit may change by a carry: a weight can move a step of its grid in every game
          (``drift: full_step``). ``drift: cell`` freezes bits.
        * Weights without bits are set to 0 at a game's end (``zero_bits: reset``); a unit that was
          dead in the first game stays dead. A policy that has become deterministic has F = 0, and
          would lose its whole trunk: above half of it, a warning is logged.
        * Adam is not told of the limits: a weight sits on the edge of its range until the mean of
          its gradients changes sign; its gradient counts in the bound on the norm.

    Departures from the paper, all taken from its code:
        * No quantisation in the forward pass: weights are rounded at games' ends only.
    Departures from the code:
        * The clip is exact: the code's p + clip(w - p) may change the last bit of any weight.
        * 13 bytes per weight, the weight included, and 8 more while a game is learnt, where the
          code has 24.
        * Where the classification part takes the inputs per output for d, and normal initial
          weights, this part takes the maximum, and the network's own; both as in the code.
        * Fisher squares come in closed form, not from one backward pass for each observation.
    """

    class Config(SequenceMethod.Config):
        """Options of BLIP."""

        f_prior: float = Field(
            5e-18, gt=1e-30, description="prior of the Fisher diagonal, per unit of fan"
        )
        max_bits: int = Field(20, ge=1, le=LIMIT, description="bits of a weight")
        bound: float = Field(6.0, gt=0, description="weights lie within this / sqrt(fan)")
        fisher_batches: int = Field(
            32,
            ge=1,
            description="minibatches that the last rollout is divided into",
            json_schema_extra=from_end_of_task(1),
        )
        drift: Drift = Field(
            "full_step",
            description="how far rounded weights may move: see raycl.nn.quantised",
            json_schema_extra=from_task(2),
        )
        zero_bits: ZeroBits = Field(
            "reset",
            description="weights without bits at a game's end: set to 0, or kept",
            json_schema_extra=from_end_of_task(1),
        )

    def __init__(self, config: Config, policy: Policy) -> None:
        super().__init__(config, policy)
        parameters: dict[str, Quantised] = {}
        for name, layer in policy.trunk.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            fan = max(layer.weight[0].numel(), len(layer.weight))
            bounds = {"weight": config.bound / math.sqrt(fan), "bias": BIAS_BOUND}
            for kind, parameter in layer.named_parameters(name, recurse=False):
                bound = bounds[kind.rpartition(".")[2]]
                parameters[kind] = Quantised(parameter, bound, config.f_prior * fan)
        found = dict(policy.trunk.named_parameters())
        if others := found.keys() - parameters.keys():
            what = f"blip quantises linear layers and convolutions; {min(others)} is of another"
            raise UserError("network", what)
        with torch.no_grad():
            for q in parameters.values():
                q.parameter.clamp_(-q.bound, q.bound)
        ordered = {name: parameters[name] for name in found}  # the order of the Fisher
        self.frozen_bits = FrozenBits(ordered, config.max_bits, config.drift, config.zero_bits)
        self._limits: tuple[list[Tensor], list[Tensor]] | None = None

    def begin_game(self, policy: Policy, game: int) -> None:
        """See ``SequenceMethod.begin_game``: limits follow from the bits of the games before."""
        self._limits = self.frozen_bits.limits()

    def after_step(self, policy: Policy) -> None:
        """Project the weights into the limits of their bits, after every step."""
        if self._limits is None:
            raise RuntimeError("begin_game comes before the first step")
        self.frozen_bits.clamp_(*self._limits)

    def end_game(
        self, policy: Policy, game: int, observations: Tensor, generator: torch.Generator
    ) -> None:
        """Estimate the Fisher information, freeze bits, and round the weights."""
        batches = self.config.fisher_batches
        fisher = _fisher.per_example(policy, game, observations, batches, generator)
        fisher /= _fisher.batch_size(observations, batches) ** 2
        self.frozen_bits.consolidate(fisher, game)
        self._limits = None
        share = self._share_of_zero_bits()
        if share > ZEROED and self.config.zero_bits == "reset":
            log.warning(
                "blip: %.0f %% of the trunk's weights have no bit after game %d and are 0 now; "
                "a smaller f_prior gives bits",
                100 * share,
                game + 1,
            )

    def diagnostics(self) -> dict[str, float]:
        """Bits in use, by layer, and units whose weights are all 0."""
        kept, zero, units = self.frozen_bits, 0, 0
        bits = dict(zip(kept.names, torch.split(kept.bits, kept.sizes), strict=True))
        values = dict(zip(kept.names, torch.split(kept.previous, kept.sizes), strict=True))
        found = {
            "capacity": kept.capacity(),
            "share_of_zero_bits": self._share_of_zero_bits(),
            "share_of_all_bits": float((kept.bits == kept.max_bits).float().mean()),
        }
        for name, q in zip(kept.names, kept.of, strict=True):
            layer, _, kind = name.rpartition(".")
            if kind == "weight":
                used = values[name].view(len(q.parameter), -1).any(1)
                if (bias := values.get(f"{layer}.bias")) is not None:
                    used |= bias != 0
                zero, units = zero + int((~used).sum()), units + len(used)
                found[f"mean_bits/{layer}"] = float(bits[name].float().mean())
        found["share_of_zero_units"] = zero / units
        return found

    def histograms(self) -> dict[str, list[int]]:
        """Number of scalars with 0, 1, ... bits, for each parameter."""
        return {f"bits/{name}": counts for name, counts in self.frozen_bits.counts().items()}

    def _share_of_zero_bits(self) -> float:
        return float((self.frozen_bits.bits == 0).float().mean())
