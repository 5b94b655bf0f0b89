from __future__ import annotations

import pytest
import torch

from raycl.methods.lwf_mc import sigmoid_terms, softmax_terms

OLD, NEW = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])


def test_sigmoids_by_hand():
    """Logits (0, 1, 2), the teacher's (0, 0), label 2."""
    terms = sigmoid_terms(OLD, NEW, torch.zeros(1, 2), torch.tensor([0]))
    assert sum(terms.values()).item() == pytest.approx(1.633337, abs=1e-6)
    first = sigmoid_terms(None, torch.tensor([[0.0, 1.0]]), None, torch.tensor([1]))
    assert first.keys() == {"cross_entropy"}
    p = torch.tensor([0.5, 1 / (1 + torch.e)])  # of what is wrong
    assert first["cross_entropy"].item() == pytest.approx(-p[0].log().item() + 0.313262, abs=1e-6)


def test_the_sum_over_classes_is_not_averaged():
    z, teacher = torch.randn(3, 4), torch.randn(3, 4)
    one = sigmoid_terms(z, z, teacher, torch.zeros(3, dtype=torch.int64))["distillation"]
    twice = torch.cat([z, z], 1), torch.cat([teacher, teacher], 1)
    both = sigmoid_terms(twice[0], z, twice[1], torch.zeros(3, dtype=torch.int64))["distillation"]
    torch.testing.assert_close(both, 2 * one)
    rows = torch.cat([z, z]), torch.cat([teacher, teacher])
    labels = torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(
        sigmoid_terms(rows[0], rows[0], rows[1], labels)["distillation"], one
    )


def test_softmax_by_hand():
    terms = softmax_terms(OLD, NEW, torch.zeros(1, 2), torch.tensor([0]))
    log_p = torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    target = torch.tensor([0.5, 0.5, 1.0])  # of mass 2
    torch.testing.assert_close(sum(terms.values()), -(target * log_p).sum())


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_loss_of_a_task(build, loss):
    run = build("lwf_mc", loss=loss)
    row = run.advance()
    assert "train/distillation" not in row
    while run.task_index == 0:
        run.advance()
    task = run._enter_task()
    run.method.eval()
    batch = next(iter(task.train.batches(8)))
    with torch.no_grad():
        run.method.head.bias += 1 + torch.arange(4)
    z, q = run.method.network(batch.images), run.method.teacher(batch.images)
    hot = torch.nn.functional.one_hot(batch.labels, 4)[:, 2:]
    if loss == "bce":
        target = torch.cat([q[:, :2].sigmoid(), hot], 1)
        expected = torch.nn.BCELoss(reduction="sum")(z.sigmoid(), target.detach()) / 8
    else:
        target = torch.cat([q[:, :2].softmax(1), hot], 1).detach()
        expected = -(target * z.log_softmax(1)).sum(1).mean()
    terms = run.method.objective(task)(batch)
    torch.testing.assert_close(sum(terms.values()), expected)
    sum(terms.values()).backward()
    assert run.method.head.bias.grad.ne(0).all()
    assert all(p.grad is None for p in run.method.teacher.parameters())


def test_first_task_of_the_softmax_form_is_cross_entropy(build):
    run, plain = build("lwf_mc", loss="softmax"), build("finetune")
    assert run.advance()["train/loss"] == plain.advance()["train/loss"]


def test_shared_outputs_are_learnt_from_labels(build):
    """All old classes are the task's own: nothing is distilled."""
    run = build("lwf_mc", benchmark={"name": "permuted"}, train={"epochs": 1})
    first, second = run.advance(), run.advance()
    assert "train/distillation" not in first
    assert second["train/distillation"] == 0
    assert second["train/cross_entropy"] > 0


def test_own_outputs_beside_the_distilled_ones(build):
    """Labels act on the task's outputs with ``outputs: task``, the teacher on the old ones."""
    run = build("lwf_mc", outputs="task", benchmark={"tasks": 3})
    while run.task_index < 2:
        run.advance()
    task = run._enter_task()
    run.method.eval()
    batch = next(iter(task.train.batches(8)))
    z, q = run.method.network(batch.images), run.method.teacher(batch.images)
    terms = run.method.objective(task)(batch)
    bce = torch.nn.BCELoss(reduction="sum")
    own = z[:, 3:].sigmoid()
    torch.testing.assert_close(terms["cross_entropy"], bce(own, torch.ones(8, 1)) / 8)
    old = bce(z[:, :3].sigmoid(), q[:, :3].sigmoid().detach()) / 8
    torch.testing.assert_close(terms["distillation"], old)
