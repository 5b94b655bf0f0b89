"""A small policy, made-up rollouts, and games "played" on them as the learner does it."""

from __future__ import annotations

import torch
from torch import nn

from raycl.networks.atari_cnn import AtariCNN
from raycl.rl.config import PPOConfig
from raycl.rl.methods.base import build_method
from raycl.rl.policy import Policy
from raycl.rl.ppo import losses, normalised

CONFIG = PPOConfig(lr=0.003)
COUNT = 64
QUICK = {"blip": {"f_prior": 1e-9}, "online_ewc": {"lam": 3000.0}}
"""Options under which a short run freezes bits, and pulls."""


def new_policy(seed=0):
    torch.manual_seed(seed)
    config = AtariCNN.Config(
        name="atari_cnn", channels=[3, 4], kernels=[3, 2], strides=[1, 1], features=12
    )
    policy = Policy(AtariCNN(config, (2, 6, 6)), (3, 5, 4))
    for head in policy.actors:  # policies that are far from uniform
        nn.init.normal_(head.weight, std=0.5)
    return policy


def rollout(game, count=COUNT):
    g = torch.Generator().manual_seed(game)
    return torch.randint(0, 256, (count, 2, 6, 6), dtype=torch.uint8, generator=g)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def train(policy, method, game, optimizer, steps=8):
    """Updates on one rollout, as the learner makes them."""
    obs, g = rollout(game), gen(game)
    actions, log_probs, values = policy.act(obs, game, g)
    raw = torch.randn(COUNT, generator=g)
    columns = {"log_probs": log_probs, "values": values, "returns": raw + values}
    batch = {"obs": obs, "actions": actions, "advantages": normalised(raw)} | columns
    for _ in range(steps):
        optimizer.zero_grad()
        loss = losses(policy, game, batch, CONFIG)["loss"]
        penalty = method.penalty(policy, game)
        (loss if penalty is None else loss + penalty).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
        method.after_step(policy)


def adam(policy):
    return torch.optim.Adam(policy.parameters(), lr=CONFIG.lr, eps=CONFIG.adam_eps)


def start(policy, method, game):
    method.start_weights(policy, game)
    policy.trunk.requires_grad_(not method.frozen(game))
    method.begin_game(policy, game)
    return adam(policy)


def play(policy, method, game):
    train(policy, method, game, start(policy, method, game))
    method.end_game(policy, game, rollout(game), gen(game))


def pair(name, /, seed=0, **options):
    policy = new_policy(seed)
    return policy, build_method({"name": name} | QUICK.get(name, {}) | options, policy)


def trunk(policy):
    return torch.cat([p.detach().flatten() for p in policy.trunk.parameters()])


def same(a, b):
    return all(map(torch.equal, a.values(), b.values()))


def first_action(p, count, generator=None):
    """Draws that a test can repeat, in place of ``torch.multinomial``."""
    return p.argmax(1, keepdim=True)
