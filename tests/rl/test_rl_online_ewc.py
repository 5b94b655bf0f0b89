from __future__ import annotations

import pytest
import torch
from game_playing import gen, new_policy, pair, play, rollout, start, train, trunk

from raycl.rl.methods import _fisher
from raycl.rl.methods.base import build_method


def test_ewc_defaults_are_the_published_ones():
    config = build_method({"name": "online_ewc"}, new_policy()).config
    assert (config.lam, config.fisher_batches) == (5000, 32)
    assert (config.gamma, config.fisher) == (1.0, "batch_mean")


def test_the_worked_penalty():
    policy, method = pair("online_ewc", lam=5000)
    method.anchor.copy_(trunk(policy))
    assert method.penalty(policy, 1) == 0
    method.fisher[:3] = torch.tensor([0.5, 0.0, 2.0])
    with torch.no_grad():
        policy.trunk.layers[0].weight.view(-1)[:3] = torch.tensor([1.0, 2.0, 3.0])
    method.anchor[:3] = torch.tensor([0.9, 5.0, 3.0])
    assert method.penalty(policy, 0) is None  # the first game has no penalty
    penalty = method.penalty(policy, 1)
    assert penalty.item() == pytest.approx(12.5, rel=1e-5)
    (3 * penalty).backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.trunk.parameters()])
    torch.testing.assert_close(gradient[:3], torch.tensor([750.0, 0, 0]), rtol=1e-5, atol=0)
    assert not gradient[3:].any()
    assert all(p.grad is None for p in policy.actors.parameters())


def test_the_penalty_is_the_plain_formula():
    policy, method = pair("online_ewc", lam=7.0)
    g = gen(5)
    for buffer in (method.anchor, method.fisher):
        buffer.copy_(torch.rand(buffer.shape, generator=g))
    parameters = list(policy.trunk.parameters())
    penalty = method.penalty(policy, 2)
    theta = torch.cat([p.flatten() for p in parameters])
    plain = 7 / 2 * (method.fisher * (theta - method.anchor).square()).sum()
    torch.testing.assert_close(penalty, plain)
    found = torch.autograd.grad(penalty, parameters)
    for mine, expected in zip(found, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(mine, expected)
    method.fisher.mul_(2)
    torch.testing.assert_close(method.penalty(policy, 2), 2 * plain)


@pytest.mark.parametrize("gamma, expected", [(1.0, 0.7), (0.5, 0.5), (0.0, 0.4)])
def test_the_fisher_adds_up_and_the_anchor_moves(monkeypatch, gamma, expected):
    policy, method = pair("online_ewc", gamma=gamma)
    for value in (0.2, 0.1, 0.4):
        fisher = torch.full_like(method.fisher, value)
        monkeypatch.setattr(_fisher, "batch_mean", lambda *_, f=fisher: f)
        with torch.no_grad():
            policy.trunk.layers[0].bias += 1
        method.end_game(policy, 0, rollout(0), gen())
        assert torch.equal(method.anchor, trunk(policy))
    torch.testing.assert_close(method.fisher, torch.full_like(method.fisher, expected))
    assert method.diagnostics() == pytest.approx({"fisher_mean": expected, "fisher_max": expected})


def test_both_estimates_can_be_asked_for():
    found = {}
    for kind in ("batch_mean", "per_example"):
        policy, method = pair("online_ewc", fisher=kind, fisher_batches=8)
        method.end_game(policy, 1, rollout(1), gen(3))
        found[kind] = method.fisher
        expected = getattr(_fisher, kind)(policy, 1, rollout(1), 8, gen(3))
        assert torch.equal(method.fisher, expected)
    assert found["per_example"].sum() > 2 * found["batch_mean"].sum()


def test_the_penalty_holds_what_matters():
    moved = []
    for lam in (0.0, 1e3, 1e5):
        policy, method = pair("online_ewc", lam=lam)
        play(policy, method, 0)
        anchor, fisher = method.anchor.clone(), method.fisher.clone()
        train(policy, method, 1, start(policy, method, 1), steps=30)
        moved.append((fisher * (trunk(policy) - anchor).square()).sum().item())
    assert moved[0] > 1.2 * moved[1]
    assert moved[1] > 1.2 * moved[2]
