"""Proximal policy optimisation as BLIP's code has it: advantages and losses; options: ``config``.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347; advantages by Schulman
et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv
1506.02438. The constants and the clipped value loss are those of the Atari experiments of arXiv
2105.04444 (BLIP).

With ``precision: bfloat16`` the trunk computes under autocast while it learns, and so does a copy
of it, with weights rounded once per rollout, that plays; heads and all that follows are float32.
``log_probs`` and ``values`` of a rollout stay those it was played with. They belong to the
probabilities that the actions were drawn from, by which the ratio has to divide, and the learner
rounds where the player does, so that the ratio begins at 1: to the last bit on the CPU where it was
measured, where a trunk that plays in float32 would begin up to 0.002 beside it. To compute them
anew would cost a pass over the rollout, and give no better ratio.

Departures from BLIP's code:
    * A game that is cut (preset ``fast``) is not over: what was still to come counts with the value
      of its last observation. There a limit of frames is an end, as in preset ``faithful``.
    * Where ``minibatches`` do not divide a rollout, there are no more of them than that; there, as
      many as fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from raycl.rl.config import PPOConfig
from raycl.rl.policy import Policy

Array = TypeVar("Array", Tensor, NDArray[Any])
ADVANTAGE_EPS = 1e-5


def advantages(rewards: Array, values: Array, continues: Array, gamma: float, lam: float) -> Array:
    """Generalised advantage estimates.

    delta_t = r_t + gamma V_{t+1} m_{t+1} - V_t;  A_t = delta_t + gamma lam m_{t+1} A_{t+1}

    Returns of the value loss are A + V. Where a game was cut, not ended, there is no bootstrap
    here: its caller adds gamma V(last observation) to the reward.

    Args:
        rewards: (T, N), as the learner sees them.
        values: (T+1, N), the last row of the observations after the rollout.
        continues: (T, N), m_{t+1}: 1, and 0 where step t ended an episode. Of the dtype of the
            others.
        gamma: Discount.
        lam: 0 is one-step errors, 1 whole returns.

    Returns:
        (T, N), a new array or tensor.
    """
    result: Array = rewards + gamma * continues * values[1:] - values[:-1]
    decay = gamma * lam * continues
    for t in range(len(result) - 2, -1, -1):
        result[t] += decay[t] * result[t + 1]
    return result


def normalised(advantages: Array) -> Array:
    """(A - mean) / (std + 1e-5), std unbiased: once per rollout, over all of it.

    Args:
        advantages: Any shape, at least two entries.
    """
    if isinstance(advantages, Tensor):
        return (advantages - advantages.mean()) / (advantages.std() + ADVANTAGE_EPS)
    scaled: Array = (advantages - advantages.mean()) / (advantages.std(ddof=1) + ADVANTAGE_EPS)
    return scaled


def losses(
    policy: Policy, game: int, batch: Mapping[str, Tensor], config: PPOConfig
) -> dict[str, Tensor]:
    """Compute the loss of a minibatch and its parts, without reading a value from the device.

    With r = pi(a|s) / pi_old(a|s), A the normalised advantages, R = A_raw + V_old, c the clip:

        policy_loss = -mean(min(r A, clip(r, 1-c, 1+c) A))
        value_loss = 1/2 mean(max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2))
        loss = policy_loss + value_coef value_loss - entropy_coef entropy

    Args:
        policy: The policy, with gradients as far as it is to learn.
        game: The game whose heads are used.
        batch: ``obs`` uint8 (B, C, H, W), ``actions`` int64 (B,); and float32 (B,), from when the
            rollout was played, ``log_probs``, ``values`` (V_old), ``advantages`` (normalised over
            the whole rollout) and ``returns`` (R).
        config: ``clip``, ``value_coef``, ``entropy_coef`` and ``precision`` are used.

    Returns:
        Scalars: ``loss``, ``policy_loss``, ``value_loss``, ``entropy``; without gradient,
        ``approx_kl``, mean(r - 1 - log r), and ``clip_fraction``, the share of |r - 1| > c.
    """
    logits, values = policy.heads(policy.features(batch["obs"], config.precision), game)
    log_probs = torch.log_softmax(logits, 1)
    chosen = log_probs.gather(1, batch["actions"].unsqueeze(1)).squeeze(1)
    log_ratio = chosen - batch["log_probs"]
    ratio, clip = log_ratio.exp(), config.clip
    gain, old, target = batch["advantages"], batch["values"], batch["returns"]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    near = old + (values - old).clamp(-clip, clip)
    errors = torch.maximum((values - target).square(), (near - target).square())
    policy_loss, value_loss = -surrogate.mean(), errors.mean() / 2
    entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return {
        "loss": total,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": approx_kl,
        "clip_fraction": clip_fraction,
    }
