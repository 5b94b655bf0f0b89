from __future__ import annotations

import math

import pytest
import torch
from pydantic import Field
from torch import nn

from raycl.errors import UserError
from raycl.networks.atari_cnn import AtariCNN
from raycl.networks.base import Backbone, NetworkConfig
from raycl.rl.benchmarks.base import GamesConfig, GameSequence
from raycl.rl.config import SequenceConfig
from raycl.rl.policy import Policy, build_policy, effective_rank, plasticity

SMALL = {"channels": [3], "kernels": [3], "strides": [2], "features": 8}


class ThreeGames(GameSequence):
    """A sequence of nothing but its sizes."""

    class Config(GamesConfig):
        side: int = Field(6, ge=1)

    def default_label(self):
        return "three"

    games = ("A", "B", "C")
    num_actions = (3, 5, 18)
    frames_per_step = 4
    references = ((0.0, 1.0),) * 3

    @property
    def input_shape(self):
        return (2, self.config.side, self.config.side)

    def make(self, num_envs, *, training, num_threads=1, render=False):
        raise AssertionError("nothing is played")


class Table(Backbone):
    """Features are the first pixels of the first channel; as a trunk, its ReLU is a module."""

    Config = NetworkConfig

    def __init__(self, features):
        super().__init__()
        self.num_features = features
        self.relu = nn.ReLU()

    def forward(self, images):
        return self.relu(images[:, 0].flatten(1)[:, : self.num_features])


def small(actions=(3, 5)):
    return Policy(AtariCNN(AtariCNN.Config(name="atari_cnn", **SMALL), (2, 6, 6)), actions)


def observations(count=10, shape=(2, 6, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=g)


def trial(**blocks):
    given = {
        "benchmark": {"name": f"{__name__}:ThreeGames"},
        "method": {"name": "finetune"},
        "network": {"name": "atari_cnn", **SMALL},
    }
    return SequenceConfig.model_validate(given | blocks)


def test_sizes_of_the_published_network():
    with torch.device("meta"):
        trunk = AtariCNN(AtariCNN.Config(name="atari_cnn"), (4, 84, 84))
        policy = Policy(trunk, (14, 18, 18, 18, 18, 6))
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in policy.named_children()}
    assert count == {"trunk": 6_538_464, "actors": 94_300, "critics": 6_150}
    assert policy.num_actions == (14, 18, 18, 18, 18, 6)


def test_heads_start_orthogonal_and_close_to_uniform():
    torch.manual_seed(0)
    policy = small((4, 4))
    for head, gain in ((policy.actors[1], 0.01), (policy.critics[1], 1.0)):
        rows = head.weight.detach()
        eye = torch.eye(len(rows))
        torch.testing.assert_close(rows @ rows.T, gain**2 * eye, rtol=1e-4, atol=1e-8)
        assert not head.bias.any()
    logits, _ = policy.heads(policy.features(observations()), 0)
    assert torch.softmax(logits, 1).sub(0.25).abs().max() < 0.02


def test_features_are_of_pixels_in_0_to_1():
    policy, obs = small(), observations()
    before = obs.clone()
    features = policy.features(obs)
    torch.testing.assert_close(features, policy.trunk(obs / 255.0))
    assert features.dtype == torch.float32
    assert torch.equal(obs, before)


def test_every_game_has_heads_of_its_own():
    policy, obs = small(), observations()
    features = policy.features(obs)
    for game, actions in enumerate((3, 5)):
        logits, values = policy.heads(features, game)
        assert logits.shape == (10, actions)
        assert values.shape == (10,)
        actor, critic = policy.actors[game], policy.critics[game]
        torch.testing.assert_close(logits, features @ actor.weight.T + actor.bias)
        torch.testing.assert_close(values, (features @ critic.weight.T + critic.bias)[:, 0])
    with pytest.raises(IndexError):
        policy.heads(features, 2)


def test_act_draws_from_the_policy():
    torch.manual_seed(0)
    policy = small()
    nn.init.normal_(policy.actors[1].weight)
    obs = observations(1).expand(20_000, -1, -1, -1)
    logits, values = policy.heads(policy.features(obs[:1]), 1)
    p = torch.softmax(logits[0], 0)
    assert p.max() > 0.3 > 0.1 > p.min()
    actions, log_probs, found = policy.act(obs, 1, torch.Generator().manual_seed(1))
    assert actions.dtype == torch.int64
    shares = torch.bincount(actions, minlength=5) / len(actions)
    torch.testing.assert_close(shares, p.detach(), rtol=0, atol=0.02)
    torch.testing.assert_close(log_probs, p.log()[actions])
    torch.testing.assert_close(found, values.expand(20_000))
    assert not log_probs.requires_grad
    assert not found.requires_grad


def test_act_is_repeatable_and_leaves_the_global_generator_alone():
    policy, obs = small(), observations(50)
    state = torch.get_rng_state()
    first = policy.act(obs, 1, torch.Generator().manual_seed(3))
    again = policy.act(obs, 1, torch.Generator().manual_seed(3))
    other = policy.act(obs, 1, torch.Generator().manual_seed(4))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(state, torch.get_rng_state())
    policy.act(obs, 1)
    assert not torch.equal(state, torch.get_rng_state())


def test_greedy_takes_the_most_probable_action():
    policy, obs = small(), observations()
    logits, _ = policy.heads(policy.features(obs), 1)
    assert torch.equal(policy.greedy(obs, 1), logits.argmax(1))
    nn.init.zeros_(policy.actors[1].weight)
    assert not policy.greedy(obs, 1).any()
    policy.actors[1].bias.data[3] = 0.1
    assert policy.greedy(obs, 1).tolist() == [3] * 10


def test_a_network_that_has_diverged_does_not_act():
    policy = small()
    policy.actors[0].weight.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match="nan"):
        policy.act(observations(), 0)


def test_it_is_in_eval_mode_for_ever():
    policy = small()
    modules = list(policy.modules())
    policy.train()
    nn.ModuleList([policy]).train()
    assert not any(module.training for module in modules)


def test_build_policy():
    torch.manual_seed(0)
    policy = build_policy(trial())
    assert policy.num_actions == (3, 5, 18)
    assert policy.features(observations()).shape == (10, 8)
    torch.manual_seed(0)
    again = build_policy(trial())
    assert all(map(torch.equal, policy.parameters(), again.parameters()))
    other = build_policy(trial())
    assert not torch.equal(other.actors[0].weight, policy.actors[0].weight)
    other.load_state_dict(policy.state_dict(), strict=True)
    assert torch.equal(other.greedy(observations(), 2), policy.greedy(observations(), 2))
    assert build_policy(trial(tasks=2)).num_actions == (3, 5)


def test_build_policy_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="did you mean 'atari_cnn'"):
        build_policy(trial(network={"name": "atari_cn"}))
    with pytest.raises(UserError, match="kernel of 8"):
        build_policy(trial(network={"name": "atari_cnn"}))
    with pytest.raises(UserError, match="no GameSequence 'ThreGames'; did you mean 'ThreeGames'"):
        build_policy(trial(benchmark={"name": f"{__name__}:ThreGames"}))


def test_plasticity_by_hand():
    policy = Policy(Table(4), [2])
    obs = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    obs[:, 0] = torch.tensor([[[255, 2], [0, 255]], [[255, 0], [0, 255]]])
    found = plasticity(policy, obs)
    assert found["dead_units"] == 0.25
    assert found["dormant_units"] == 0.5  # 1/255 is less than 0.025 times the mean, 0.501
    assert found["active_features"] == 5 / 8
    assert found["feature_norm"] == pytest.approx(math.sqrt(2), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(1, abs=0.03)


def test_plasticity_does_not_depend_on_chunks(monkeypatch):
    torch.manual_seed(0)
    policy, obs = small(), observations(70)
    whole = plasticity(policy, obs)
    monkeypatch.setattr("raycl.rl.policy.CHUNK", 32)
    assert plasticity(policy, obs) == pytest.approx(whole, rel=1e-5)
    assert 0 < whole["active_features"] < 1
    assert not any(m._forward_hooks for m in policy.modules())
    policy.trunk.layers[0].weight.data.zero_()
    assert plasticity(policy, obs) == {
        "dead_units": 1.0,
        "dormant_units": 1.0,
        "active_features": 0.0,
        "effective_rank": 0.0,
        "feature_norm": 0.0,
    }


def test_effective_rank():
    assert effective_rank(3 * torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(7, 4)) == pytest.approx(1, rel=1e-3)
    assert effective_rank(torch.zeros(3, 4)) == 0
    # singular values 3 and 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    matrix = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(matrix) == pytest.approx(math.exp(entropy))
