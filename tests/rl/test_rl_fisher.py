from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from game_playing import first_action, gen, new_policy, rollout, trunk

from raycl.rl.methods import _fisher


@pytest.mark.parametrize("count, batches, size", [(64, 8, 8), (70, 8, 8), (5, 8, 1)])
def test_minibatches_of_the_fisher(count, batches, size):
    obs = torch.arange(count, dtype=torch.uint8)
    parts = list(_fisher._minibatches(obs, batches, gen()))
    assert _fisher.batch_size(obs, batches) == size
    assert [len(part) for part in parts] == [size] * min(batches, count)
    seen = torch.cat(parts).tolist()
    assert len(set(seen)) == len(seen)
    assert seen != sorted(seen)
    assert _fisher.batch_size(torch.empty(2000), 32) == 62


def test_fisher_of_single_observations_is_one_gradient_at_a_time(monkeypatch):
    monkeypatch.setattr(torch, "multinomial", first_action)
    policy, obs = new_policy(), rollout(1, 24)
    expected = torch.zeros_like(trunk(policy))
    for x in obs:
        logits, _ = policy.heads(policy.features(x[None]), 1)
        loss = F.cross_entropy(logits, logits.argmax(1))
        grads = torch.autograd.grad(loss, list(policy.trunk.parameters()))
        expected += torch.cat([g.flatten() for g in grads]).square()
    found = _fisher.per_example(policy, 1, obs, 4, gen())
    torch.testing.assert_close(found, expected / 24)
    assert found.max() > 0


def test_fisher_of_minibatches_squares_mean_gradients(monkeypatch):
    monkeypatch.setattr(torch, "multinomial", first_action)
    policy, obs = new_policy(), rollout(1, 26)
    order = torch.randperm(26, generator=gen())[:24]
    expected = torch.zeros_like(trunk(policy))
    for index in order.split(6):
        logits, _ = policy.heads(policy.features(obs[index]), 1)
        loss = F.cross_entropy(logits, logits.argmax(1))
        grads = torch.autograd.grad(loss, list(policy.trunk.parameters()))
        # as the code has it: times the size, summed, over all observations
        expected += 6 * torch.cat([g.flatten() for g in grads]).square()
    found = _fisher.batch_mean(policy, 1, obs, 4, gen())
    torch.testing.assert_close(found, expected / 24)


def test_minibatches_make_the_fisher_smaller_by_their_size():
    policy, obs = new_policy(), rollout(1, 4096)
    single = _fisher.per_example(policy, 1, obs, 512, gen(1)).sum()
    mean = _fisher.batch_mean(policy, 1, obs, 512, gen(2)).sum()
    assert (single / mean).item() == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("estimate", [_fisher.per_example, _fisher.batch_mean])
def test_actions_are_drawn_from_the_policy(estimate):
    """One observation gives sum_a pi(a) (d log pi(a))^2, whichever action was played."""
    policy = new_policy()
    obs = rollout(2, 1).expand(1500, -1, -1, -1)
    logits, _ = policy.heads(policy.features(obs[:1]), 2)
    p = torch.softmax(logits[0], 0).detach()
    expected = torch.zeros_like(trunk(policy))
    for action, share in enumerate(p):
        loss = F.cross_entropy(logits, torch.tensor([action]))
        grads = torch.autograd.grad(loss, list(policy.trunk.parameters()), retain_graph=True)
        expected += share * torch.cat([g.flatten() for g in grads]).square()
    found = estimate(policy, 2, obs, 1500, gen())  # minibatches of one: the same for both
    largest = expected.argmax()
    assert found[largest].item() == pytest.approx(expected[largest].item(), rel=0.1)
    assert found.sum().item() == pytest.approx(expected.sum().item(), rel=0.1)


@pytest.mark.parametrize("estimate", [_fisher.per_example, _fisher.batch_mean])
def test_a_network_that_has_diverged_has_no_fisher(estimate):
    policy = new_policy()
    policy.actors[0].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="diverged"):
        estimate(policy, 0, rollout(0), 4, gen())
