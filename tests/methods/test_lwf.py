from __future__ import annotations

import pytest
import torch
from torch import nn

from raycl.methods.lwf import by_size, distillation
from raycl.testing import finish

HEAD = [torch.tensor([[0, 1]])]


@pytest.mark.parametrize(
    "student, teacher, temperature, expected",
    [
        ((2.0, 0.0), (1.0, 0.0), 1.0, 0.664805),
        ((2.0, 0.0), (1.0, 0.0), 2.0, 0.690801),
        ((1.0, 0.0), (1.0, 0.0), 1.0, 0.582203),  # the entropy of the teacher
    ],
)
def test_by_hand(student, teacher, temperature, expected):
    z, target = torch.tensor([student]), torch.tensor([teacher])
    assert distillation(z, target, HEAD, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_only_the_student_is_smoothed():
    z, target = torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]])
    value = distillation(z, target, HEAD, 1.0).item()  # -log(eps / 2 / (1 + eps))
    assert value == pytest.approx(12.20608, abs=1e-4)
    assert distillation(target, target, HEAD, 1.0).item() == pytest.approx(5e-6, abs=1e-6)


def test_heads_of_many_sizes_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(2, 6, 9, generator=generator).double()
    heads = [(0, 1), (4, 2, 3), (7, 8), (2, 3, 4), (5, 6), (0, 1), (5,)]
    groups = by_size(heads)
    assert [group.tolist() for group in groups] == [
        [[0, 1], [7, 8], [5, 6]],
        [[2, 3, 4]],
        [[5]],
    ]
    expected = 0.0
    for head in [(0, 1), (2, 3, 4), (7, 8), (5, 6), (5,)]:
        for row in range(6):
            p, q = (x[row, list(head)].exp() ** (1 / 3) for x in (z, target))
            p, q = p / p.sum(), q / q.sum()
            p = p + 1e-5 / len(head)
            expected += -(q * (p / p.sum()).log()).sum() / 6
    torch.testing.assert_close(distillation(z, target, groups, 3.0), expected)


def test_loss_of_a_task(build):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    network = {"name": "mlp", "hidden": [16], "dropout": 0.5}
    run = build("lwf", benchmark=stream, network=network)
    while run.task_index < 2:
        run.advance()
    old = nn.Sequential(run.method.backbone, run.method.head)
    old = {k: v.clone() for k, v in old.state_dict().items()}
    task = run._enter_task()
    loss = run.method.objective(task)
    with torch.no_grad():
        run.method.head.bias += torch.arange(12)  # the student moves, the teacher does not
    batch = next(iter(task.train.batches(8)))
    run.method.eval()
    with torch.no_grad():
        z = run.method.logits(batch.images, None)
        target = torch.func.functional_call(run.method.network, old, (batch.images,))
    expected = sum(
        nn.functional.cross_entropy(z[:, u : u + 4], target[:, u : u + 4].softmax(1))
        for u in (0, 4)
    )
    terms = loss(batch)
    assert terms.keys() == {"cross_entropy", "distillation"}
    torch.testing.assert_close(terms["distillation"], 2 * expected, rtol=1e-3, atol=0)
    own = nn.functional.cross_entropy(z[:, 8:], batch.labels - 8)
    torch.testing.assert_close(terms["cross_entropy"], own)
    terms["distillation"].backward()
    assert run.method.head.weight.grad[:8].any()
    assert not run.method.head.weight.grad[8:].any()
    assert all(p.grad is None for p in run.method.teacher.parameters())


def test_tasks_that_share_outputs_have_one_term(build):
    run = build("lwf", benchmark={"name": "permuted", "tasks": 3})
    while run.task_index < 2:
        run.advance()
    task = run._enter_task()
    (batch,) = task.train.batches(1000)
    with torch.no_grad():
        q = run.method.logits(batch.images, None).softmax(1)
    entropy = -(q * q.log()).sum(1).mean()
    found = run.method.objective(task)(batch)["distillation"]
    torch.testing.assert_close(found, 2 * entropy, rtol=1e-3, atol=0)


def test_the_teacher_is_the_last_solution_and_stays_as_it_is(build):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    network = {"name": "resnet32"}
    run = build("lwf", benchmark=stream, network=network, train={"batch_size": 64})
    run.advance()
    assert run.method.teacher is None
    sizes = []
    for _ in range(2):
        last = {k: v.clone() for k, v in run.method.network.state_dict().items()}
        row = run.advance()
        sizes.append(row["cost/extra_parameters"])
        for name, value in run.method.teacher.state_dict().items():
            assert torch.equal(value, last[name])
        assert any(not torch.equal(v, last[k]) for k, v in run.method.network.state_dict().items())
        assert all(p.grad is None for p in run.method.teacher.parameters())
    state = run.method.network.state_dict().values()
    assert sizes == [sum(v.numel() for v in state if v.is_floating_point())] * 2


def test_the_teacher_is_always_in_eval_mode_and_not_trained(build):
    network = {"name": "mlp", "hidden": [16], "dropout": 0.5}
    run = build("lwf", network=network)
    run.advance()
    run._enter_task()
    method = run.method
    method.train()
    assert method.backbone.training
    assert not any(module.training for module in method.teacher.modules())
    trained = {id(p) for p in method.trainable()}
    assert trained == {id(p) for p in [*method.backbone.parameters(), *method.head.parameters()]}


def test_first_task_is_fine_tuning(build):
    plain, run = build("finetune", outputs="task"), build("lwf")
    assert plain.advance()["train/loss"] == run.advance()["train/loss"]
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)


def test_distillation_keeps_old_outputs_on_new_images(build):
    moved = []
    for lam in (0, 2):
        run = build("lwf", lam=lam, train={"epochs": 5})
        while run.task_index == 0:
            run.advance()
        images = next(run.stream.data[1].test.batches(1000)).images
        before = run.method.logits(images, None)[:, :2].softmax(1)
        finish(run)
        after = run.method.logits(images, None)[:, :2].softmax(1)
        moved.append((after - before).abs().mean().item())
    assert moved[1] < 0.5 * moved[0]
