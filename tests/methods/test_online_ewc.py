from __future__ import annotations

import pytest
import torch

from raycl.methods import base


def flat(run):
    return torch.cat([p.detach().flatten() for p in run.method.protected().values()])


def test_penalty_by_hand(build):
    method = build("online_ewc", lam=5000).method
    parameters = list(method.protected().values())
    method.anchor.copy_(torch.cat([p.detach().flatten() for p in parameters]))
    assert method.penalty()() == 0
    method.fisher[:3] = torch.tensor([0.1, 0.0, 2.0])
    method.anchor[:3] -= torch.tensor([0.1, 5.0, -0.01])
    penalty = method.penalty()()
    assert penalty.item() == pytest.approx(3.0, rel=1e-4)  # 2500 * (0.1 * 0.01 + 2 * 0.0001)
    penalty.backward()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    expected = torch.tensor([5000 * 0.1 * 0.1, 0.0, -5000 * 2 * 0.01])
    torch.testing.assert_close(gradient[:3], expected, rtol=1e-3, atol=0)
    assert not gradient[3:].any()
    assert method.head.weight.grad is None


@pytest.mark.parametrize("gamma, expected", [(1.0, 0.7), (0.9, 0.652), (0.0, 0.4)])
def test_accumulation_by_hand(build, monkeypatch, gamma, expected):
    run = build("online_ewc", gamma=gamma)
    for value in (0.2, 0.1, 0.4):
        monkeypatch.setattr(
            base,
            "fisher_diagonal",
            lambda *_, value=value: torch.full_like(run.method.fisher, value),
        )
        with torch.no_grad():
            run.method.backbone.layers[1].bias += 1
        run.method.eval().end_task(run.stream.open(0, None))
        assert torch.equal(run.method.anchor, flat(run))
    torch.testing.assert_close(run.method.fisher, torch.full_like(run.method.fisher, expected))


def test_first_task_is_fine_tuning(build):
    ewc = build("online_ewc")
    row = ewc.advance()
    assert "train/penalty" not in row
    plain = build("finetune")
    plain.advance()
    for name, value in plain.method.state_dict().items():
        assert torch.equal(ewc.method.state_dict()[name], value)
    assert ewc.method.fisher.gt(0).any()
    assert ewc.method.fisher.ge(0).all()
    assert torch.equal(ewc.method.anchor, flat(ewc))


def test_strength_zero_is_fine_tuning(build):
    plain, ewc = build("finetune"), build("online_ewc", lam=0)
    while not ewc.done:
        plain.advance()
        row = ewc.advance()
    assert row["train/penalty"] == 0
    for name, value in plain.method.state_dict().items():
        assert torch.equal(ewc.method.state_dict()[name], value)


def test_the_penalty_holds_what_matters(build):
    distances = []
    for lam in (0, 100, 1000):
        run = build("online_ewc", lam=lam, train={"lr": 0.02, "epochs": 5})
        while run.task_index == 0:
            run.advance()
        anchor, fisher = run.method.anchor.clone(), run.method.fisher.clone()
        while not run.done:
            row = run.advance()
        distances.append((fisher * (flat(run) - anchor).square()).sum().item())
        assert row["train/loss"] == pytest.approx(row["train/cross_entropy"] + row["train/penalty"])
    assert distances[0] > 1.2 * distances[1]
    assert distances[1] > 1.2 * distances[2]


def test_fisher_is_of_the_outputs_that_were_trained(build, monkeypatch):
    seen = []

    def spy(network, names, batches, outputs, generator):
        seen.append((outputs.tolist(), sum(len(b) for b in batches)))
        assert not network[0].training, "dropout would be on"
        return torch.zeros(())

    monkeypatch.setattr(base, "fisher_diagonal", spy)
    for outputs in ("seen", "task"):
        run = build("online_ewc", outputs=outputs, fisher_samples=20)
        while not run.done:
            run.advance()
    assert [entry[0] for entry in seen] == [[0, 1], [0, 1, 2, 3], [0, 1], [2, 3]]
    assert {entry[1] for entry in seen} == {20}
    run = build("online_ewc", fisher_samples=1000)
    run.advance()
    assert seen[-1][1] == len(run.stream.data[0].train)  # no more than there are


def test_the_head_is_protected_only_where_tasks_share_outputs(build):
    split = build("online_ewc").method
    assert sum(p.numel() for p in split.backbone.parameters()) == split.anchor.numel()
    shared = build("online_ewc", benchmark={"name": "permuted"}).method
    plain = sum(p.numel() for p in shared.parameters())
    assert shared.anchor.numel() == shared.fisher.numel() == plain
    separate = build("online_ewc", benchmark={"name": "permuted", "outputs": "separate"}).method
    assert sum(p.numel() for p in separate.backbone.parameters()) == separate.anchor.numel()


@pytest.mark.parametrize("estimate", ["batch_mean", "per_example"])
def test_is_the_mean_of_ewc_times_the_number_of_tasks(build, estimate):
    stream = {"name": "permuted", "tasks": 3}  # the head is shared, so both cover all parameters
    runs = [
        build(method, benchmark=stream, outputs="task", lam=0, fisher=estimate)
        for method in ("ewc", "online_ewc")
    ]
    for done in (1, 2, 3):
        for run in runs:
            run.advance()
        mean, total = (run.method.fisher for run in runs)
        assert mean.gt(0).any()
        torch.testing.assert_close(total, mean * done)
        assert torch.equal(runs[0].method.anchor, runs[1].method.anchor)
