from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from raycl.nn.distillation import soft_cross_entropy


def second_task(build, **options):
    """A run at the start of its second task, the task, and a batch of it."""
    run = build("lwf_seen", **options)
    while run.task_index == 0:
        run.advance()
    task = run._enter_task()
    run.method.eval()
    return run, task, next(iter(task.train.batches(8)))


def test_loss_of_a_task(build):
    run, task, batch = second_task(build)
    before = copy.deepcopy(run.method.network)
    with torch.no_grad():
        run.method.head.bias += torch.arange(4)  # the student moves, the teacher does not
    terms = run.method.objective(task)(batch)
    assert terms.keys() == {"cross_entropy", "distillation"}
    z, q = run.method.network(batch.images), before(batch.images)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy(z, batch.labels))
    expected = soft_cross_entropy(z[:, :2], q[:, :2].detach(), 2.0)
    torch.testing.assert_close(terms["distillation"], expected)
    half = build("lwf_seen", mu=0.25, temperature=1.0).method
    half.add_task(run.stream.info.tasks[1])
    half.load_state_dict(run.method.state_dict())
    half.eval()
    torch.testing.assert_close(
        half.objective(task)(batch)["distillation"],
        0.25 * cross_entropy(z[:, :2], q[:, :2].softmax(1)),
    )


def test_old_classes_share_one_softmax(build):
    run = build("lwf_seen", benchmark={"tasks": 4})
    while run.task_index < 2:
        run.advance()
    task = run._enter_task()
    run.method.eval()
    batch = next(iter(task.train.batches(8)))
    with torch.no_grad():
        run.method.head.bias += torch.tensor([1.0, 0, 0, 0])  # of two old tasks, one has moved
    term = run.method.objective(task)(batch)["distillation"]
    z, q = run.method.network(batch.images), run.method.teacher(batch.images)
    torch.testing.assert_close(term, soft_cross_entropy(z[:, :2], q[:, :2].detach()))


def test_equal_networks_pull_nowhere(build):
    run, task, batch = second_task(build)
    run.method.objective(task)(batch)["distillation"].backward()
    assert all(p.grad.abs().max() < 1e-6 for p in run.method.network.parameters())
    assert all(p.grad is None for p in run.method.teacher.parameters())


@pytest.mark.parametrize("method", ["finetune", "lwf_seen", "lwf_mc"])
def test_unseen_rows_of_the_head_keep_every_bit(build, method):
    """Plain weights get a gradient of exactly zero, and no weight decay here."""
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}  # 4 classes each
    run = build(method, benchmark=stream, train={"momentum": 0.9})
    head = run.method.head
    for seen in (4, 8):
        before = torch.cat([head.weight, head.bias[:, None]], 1).detach().clone()
        run.advance()
        after = torch.cat([head.weight, head.bias[:, None]], 1)
        assert run.task_index == seen // 4
        assert torch.equal(after[seen:], before[seen:])
        assert (after[:seen] != before[:seen]).any(1).all()


def test_weight_decay_moves_unseen_rows(build):
    run = build("lwf_seen", train={"weight_decay": 0.01})
    before = run.method.head.weight[2:].detach().clone()
    run.advance()
    ratio = run.method.head.weight[2:].detach() / before
    assert torch.allclose(ratio, ratio[0, 0])  # they shrink, and nothing else
    assert 0.9 < float(ratio[0, 0]) < 1


@pytest.mark.parametrize("tasks", [1, 2])
def test_teacher_is_the_network_before_the_task_and_stays_in_eval_mode(build, tasks):
    """Also before the third task, when there is a teacher of the second to replace."""
    network = {"name": "mlp", "hidden": [16], "dropout": 0.5}
    run = build("lwf_seen", network=network, benchmark={"tasks": 3})
    assert run.method.teacher is None
    while run.task_index < tasks:
        run.advance()
    before = copy.deepcopy(run.method.network.state_dict())
    run.advance()
    teacher = run.method.teacher
    assert all(torch.equal(teacher.state_dict()[k], v) for k, v in before.items())
    run.method.train()
    assert run.method.training
    assert not any(m.training for m in teacher.modules())
