from __future__ import annotations

import pytest
import torch

from raycl.methods._anchored import Anchored
from raycl.testing import finish


def test_penalty_by_hand(build):
    method = build("imm_mode").method
    parameters = list(method.protected().values())
    assert len(parameters) == len(list(method.parameters()))
    method.anchor.copy_(method.position())
    assert method.penalty()() == 0
    method.anchor[:3] -= torch.tensor([0.1, 5.0, -0.01])
    penalty = method.penalty()()
    assert penalty.item() == pytest.approx(0.1250505, rel=1e-5)  # 0.005 * (0.01 + 25 + 0.0001)
    penalty.backward()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    expected = torch.tensor([0.001, 0.05, -0.0001])
    torch.testing.assert_close(gradient[:3], expected, rtol=1e-3, atol=0)
    assert not gradient[3:].any()


def test_merge_by_hand(build, monkeypatch):
    run = build("imm_mode", merge="mode")
    method = run.method.eval()
    trained = torch.tensor([1.0, 9.0, 0.7, 0.3, 0.3, -2.0])
    anchor = torch.tensor([0.0, 4.0, 0.1, 0.1, 0.3, 2.0])
    new = torch.tensor([3.0, 0.0, 0.0, 1e-30, 0.9, 0.5])
    old = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.7, 1.5])
    expected = torch.tensor([0.75, 4.0, 0.7, 0.3, 0.3, 1.0])
    with torch.no_grad():
        method.backbone.layers[1].weight.flatten()[:6] = trained  # parameters come in this order
    before = method.position()
    assert torch.equal(before[:6], trained)
    method.fisher[:6], method.anchor[:6] = old, anchor
    full = torch.zeros_like(before)
    full[:6] = new
    monkeypatch.setattr(method, "estimate_fisher", lambda _: full)
    method.end_task(run.stream.open(1, None))
    torch.testing.assert_close(method.position()[:6], expected)
    exact = [1, 2, 3, 4]  # one solution alone, or none, or both alike: not a bit is lost
    assert torch.equal(method.position()[exact], expected[exact])
    assert torch.equal(method.position()[6:], before[6:])
    assert torch.equal(method.anchor, method.position())
    assert torch.equal(method.fisher[:6], old + new)


def test_the_first_task_is_not_merged(build):
    plain, run = build("finetune", outputs="task"), build("imm_mode", merge="mode")
    plain.advance()
    run.advance()
    assert torch.equal(plain.method.head.weight, run.method.head.weight)
    assert run.method.fisher.gt(0).any()
    assert torch.equal(run.method.anchor, run.method.position())


def test_without_merge_there_is_no_fisher(build, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(Anchored, "estimate_fisher", refuse)
    run = build("imm_mode")
    assert run.method.config.merge == "none"
    trained = []
    end_task = run.method.end_task
    monkeypatch.setattr(
        run.method, "end_task", lambda t: (trained.append(run.method.position()), end_task(t))
    )
    result = finish(run)
    assert torch.equal(run.method.position(), trained[-1])
    assert torch.equal(run.method.anchor, trained[-1])
    plain = sum(p.numel() for p in run.method.parameters())
    assert result["cost"]["extra_parameters"] == plain
    with pytest.raises(AssertionError):
        finish(build("imm_mode", merge="mode"))


def test_the_merge_lies_between_both_solutions_and_costs_two_models(build, monkeypatch):
    run = build("imm_mode", merge="mode", train={"epochs": 3})
    while run.task_index == 0:
        run.advance()
    anchor, summed = run.method.anchor.clone(), run.method.fisher.clone()
    trained = []
    merge = run.method.merge
    monkeypatch.setattr(
        run.method, "merge", lambda new: (trained.append(run.method.position()), merge(new))
    )
    result = finish(run)
    new = run.method.fisher - summed
    theta, after = trained[0], run.method.position()
    low, high = torch.minimum(theta, anchor), torch.maximum(theta, anchor)
    assert ((after >= low - 1e-6) & (after <= high + 1e-6)).all()
    sure = (new > 0.1 * summed) & (summed > 0.1 * new)
    assert sure.sum() > 20
    mode = (new * theta + summed * anchor) / (new + summed)
    torch.testing.assert_close(after[sure], mode[sure], rtol=1e-3, atol=1e-5)
    plain = sum(p.numel() for p in run.method.parameters())
    assert result["cost"]["extra_parameters"] == 2 * plain


def test_the_penalty_holds(build):
    distances = []
    for lam in (0, 0.1, 1):
        run = build("imm_mode", lam=lam, train={"epochs": 5})
        while run.task_index == 0:
            run.advance()
        anchor = run.method.anchor.clone()
        finish(run)
        distances.append((run.method.position() - anchor).square().sum().item())
    assert distances[0] > 1.1 * distances[1]
    assert distances[1] > 1.1 * distances[2]
