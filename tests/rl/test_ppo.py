from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raycl.networks.atari_cnn import AtariCNN
from raycl.rl.config import PPOConfig
from raycl.rl.policy import Policy
from raycl.rl.ppo import advantages, losses, normalised

CONFIG = PPOConfig()


class Fixed(nn.Module):
    """A policy that says what it is told."""

    def __init__(self, logits, values):
        super().__init__()
        self.logits, self.values = nn.Parameter(logits), nn.Parameter(values)

    def features(self, obs, precision):
        return obs

    def heads(self, features, game):
        return self.logits, self.values


def small_policy(actions=(3, 5)):
    config = AtariCNN.Config(name="atari_cnn", channels=[3], kernels=[3], strides=[2], features=8)
    return Policy(AtariCNN(config, (2, 6, 6)), actions)


def rollout(policy, game, count=40):
    """A minibatch as the env runners collect it."""
    g = torch.Generator().manual_seed(0)
    obs = torch.randint(0, 256, (count, 2, 6, 6), dtype=torch.uint8, generator=g)
    actions, log_probs, values = policy.act(obs, game, g)
    raw = torch.randn(count, generator=g)
    return {
        "obs": obs,
        "actions": actions,
        "log_probs": log_probs,
        "values": values,
        "advantages": normalised(raw),
        "returns": raw + values,
    }


def one(ratio=1.0, advantage=0.0, value=0.0, old=0.0, target=0.0):
    """The losses of a single sample of two actions."""
    policy = Fixed(torch.zeros(1, 2), torch.tensor([value]))
    batch = {
        "obs": torch.zeros(1, 1),
        "actions": torch.tensor([0]),
        "log_probs": torch.tensor([math.log(0.5 / ratio)]),
        "values": torch.tensor([old]),
        "advantages": torch.tensor([advantage]),
        "returns": torch.tensor([target]),
    }
    return policy, losses(policy, 0, batch, CONFIG)


def test_defaults_are_the_published_ones():
    assert (CONFIG.lr, CONFIG.adam_eps, CONFIG.clip, CONFIG.max_grad_norm) == (
        2.5e-4,
        1e-5,
        0.1,
        0.5,
    )
    assert (CONFIG.envs, CONFIG.rollout, CONFIG.minibatches, CONFIG.epochs) == (16, 125, 8, 4)
    assert (CONFIG.gamma, CONFIG.gae_lambda) == (0.99, 0.95)
    assert (CONFIG.value_coef, CONFIG.entropy_coef, CONFIG.anneal) == (0.5, 0.01, True)
    assert CONFIG.batch_size == 2000


def test_the_learning_rate_falls_to_almost_nothing():
    assert CONFIG.learning_rate(0, 5000) == 2.5e-4
    assert CONFIG.learning_rate(2500, 5000) == pytest.approx(1.25e-4)
    assert CONFIG.learning_rate(4999, 5000) == pytest.approx(5e-8)
    assert PPOConfig(anneal=False).learning_rate(4999, 5000) == 2.5e-4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"envs": 2, "rollout": 3, "minibatches": 7}, "7 minibatches of 6 steps"),
        ({"envs": 1, "rollout": 1, "minibatches": 1}, "single step"),
        ({"clip": 0}, "greater than 0"),
        ({"gamma": 1.1}, "less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValidationError, match=message):
        PPOConfig(**options)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_the_worked_example_of_advantages(kind):
    def column(*numbers):
        array = np.array(numbers, np.float32)[:, None]
        return kind(np.hstack([array, 0 * array]))  # beside it an environment of zeros

    values = column(0.5, 0.4, 0.3, 0.2)
    found = advantages(column(1, 0, -1), values, column(1, 0, 1), 0.99, 0.95)
    np.testing.assert_allclose(found[:, 0], [0.5198, -0.4, -1.102], rtol=1e-5)
    np.testing.assert_allclose((found + values[:-1])[:, 0], [1.0198, 0, -0.802], atol=1e-6)
    assert not found[:, 1].any()
    assert found.dtype == values.dtype


def test_advantages_are_sums_of_discounted_errors():
    rng = np.random.default_rng(0)
    steps, envs, gamma, lam = 9, 4, 0.9, 0.8
    rewards, values = rng.normal(size=(steps, envs)), rng.normal(size=(steps + 1, envs))
    continues = (rng.random((steps, envs)) > 0.3).astype(float)
    expected = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                ahead = gamma * values[k + 1, n] * continues[k, n]
                expected[t, n] += weight * (rewards[k, n] + ahead - values[k, n])
                weight *= gamma * lam * continues[k, n]
    before = rewards.copy(), values.copy(), continues.copy()
    np.testing.assert_allclose(advantages(rewards, values, continues, gamma, lam), expected)
    assert all(map(np.array_equal, before, (rewards, values, continues)))
    tensors = (torch.from_numpy(a) for a in before)
    np.testing.assert_allclose(advantages(*tensors, gamma, lam), expected)


def test_the_ends_of_lambda():
    rewards, continues = np.ones((3, 1)), np.ones((3, 1))
    values = np.array([[5.0], [6.0], [7.0], [8.0]])
    one_step = rewards + 0.5 * values[1:] - values[:-1]
    np.testing.assert_allclose(advantages(rewards, values, continues, 0.5, 0.0), one_step)
    whole = 1 + 0.5 + 0.25 + 0.125 * 8 - 5
    assert advantages(rewards, values, continues, 0.5, 1.0)[0, 0] == pytest.approx(whole)


def test_normalised():
    # mean 2, unbiased variance (1 + 0 + 1) / 2
    expected = np.array([-1, 0, 1]) / (1 + 1e-5)
    np.testing.assert_allclose(normalised(np.array([1.0, 2.0, 3.0])), expected)
    np.testing.assert_allclose(normalised(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0], expected)
    assert not normalised(torch.full((4,), 3.0)).any()


@pytest.mark.parametrize(
    "ratio, advantage, term, slope",
    [
        (1.2, 1.0, -1.1, False),
        (0.8, -1.0, 0.9, False),
        (1.2, -1.0, 1.2, True),
        (0.8, 1.0, -0.8, True),
        (1.05, 2.0, -2.1, True),
    ],
)
def test_the_worked_policy_terms(ratio, advantage, term, slope):
    policy, found = one(ratio, advantage)
    assert found["policy_loss"].item() == pytest.approx(term, rel=1e-5)
    assert found["clip_fraction"].item() == (abs(ratio - 1) > 0.1)
    assert found["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)
    found["policy_loss"].backward()
    assert policy.logits.grad.any() == slope  # what is clipped has no gradient


@pytest.mark.parametrize("value, loss", [(1.3, 0.08), (1.05, 0.10125)])
def test_the_worked_value_losses(value, loss):
    _, found = one(value=value, old=1.0, target=1.5)
    assert found["value_loss"].item() == pytest.approx(loss, rel=1e-4)
    assert found["loss"].item() == pytest.approx(0.5 * loss - 0.01 * math.log(2), rel=1e-4)


def test_the_total():
    config = PPOConfig(value_coef=0.3, entropy_coef=0.2)
    policy = small_policy()
    batch = rollout(policy, 1)
    batch["log_probs"] = batch["log_probs"] - 0.05
    found = losses(policy, 1, batch, config)
    parts = found["policy_loss"] + 0.3 * found["value_loss"] - 0.2 * found["entropy"]
    torch.testing.assert_close(found["loss"], parts)
    assert all(value.shape == () for value in found.values())
    assert not found["approx_kl"].requires_grad
    assert not found["clip_fraction"].requires_grad


def test_the_first_pass_over_a_rollout():
    policy = small_policy()
    batch = rollout(policy, 0)
    found = losses(policy, 0, batch, CONFIG)
    assert found["policy_loss"].item() == pytest.approx(0, abs=1e-6)  # the mean of the advantages
    assert found["approx_kl"].item() == pytest.approx(0, abs=1e-6)
    assert found["clip_fraction"] == 0
    squares = (batch["returns"] - batch["values"]).square().mean() / 2
    torch.testing.assert_close(found["value_loss"], squares)


def test_entropy_of_a_head_of_zeros():
    policy = small_policy((14, 6))
    for game, actions in enumerate((14, 6)):
        nn.init.zeros_(policy.actors[game].weight)
        found = losses(policy, game, rollout(policy, game), CONFIG)
        assert found["entropy"].item() == pytest.approx(math.log(actions), rel=1e-6)


def test_gradients_reach_the_game_s_heads_only():
    policy = small_policy()
    losses(policy, 1, rollout(policy, 1), CONFIG)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.trunk.parameters())
    assert policy.actors[1].weight.grad.any()
    assert policy.critics[1].weight.grad.any()
    assert policy.actors[0].weight.grad is policy.critics[0].bias.grad is None


def test_nothing_is_read_from_the_device():
    """Any read of a value fails on the meta device."""
    policy = small_policy()
    batch = {name: value.to("meta") for name, value in rollout(policy, 0).items()}
    losses(policy.to("meta"), 0, batch, CONFIG)["loss"].backward()
    with pytest.raises(RuntimeError, match="meta"):
        float(batch["returns"][0])
