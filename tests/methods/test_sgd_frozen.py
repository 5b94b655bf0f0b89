from __future__ import annotations

import pytest
import torch
from torch import nn

from raycl.testing import finish

SEPARATE = {"name": "permuted", "outputs": "separate", "tasks": 3}


def features(run):
    return {k: v.clone() for k, v in run.method.backbone.state_dict().items()}


@pytest.mark.parametrize(
    "network",
    [{"name": "mlp", "hidden": [16], "dropout": 0.3}, {"name": "resnet32"}],
    ids=["dropout", "batch norm"],
)
def test_nothing_is_forgotten(build, network):
    run = build("sgd_frozen", benchmark=SEPARATE, network=network, train={"batch_size": 16})
    images = next(run.stream.data[0].test.batches(1000)).images
    fresh = features(run)
    run.advance()
    frozen = features(run)
    assert all(not torch.equal(v, fresh[k]) for k, v in frozen.items() if v.is_floating_point())
    first = run.method.logits(images, None)[:, :4]
    matrices = finish(run)["matrices"]["task"]
    assert all(torch.equal(v, frozen[k]) for k, v in run.method.backbone.state_dict().items())
    assert torch.equal(run.method.logits(images, None)[:, :4], first)
    for t, row in enumerate(matrices):
        assert row[: t + 1] == [matrices[u][u] for u in range(t + 1)]


def test_first_task_is_fine_tuning(build):
    plain, run = build("finetune", outputs="task"), build("sgd_frozen")
    plain.advance()
    run.advance()
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)


def test_later_tasks_train_the_head_alone(build):
    run = build("sgd_frozen", network={"name": "resnet32"})
    method = run.method
    assert len(method.trainable()) == len(list(method.parameters()))
    run.advance()
    run._enter_task()
    assert [id(p) for p in method.trainable()] == [id(p) for p in method.head.parameters()]
    before = method.head.weight.detach().clone()
    run.advance()
    assert (method.head.weight != before).any()


def test_dropout_stays_active_and_batch_norm_does_not(build):
    run = build("sgd_frozen", network={"name": "mlp", "hidden": [16], "dropout": 0.3})
    tasks = run.stream.info.tasks
    method = run.method
    method.backbone.layers.append(nn.BatchNorm1d(16))
    dropout, norm = method.backbone.layers[-2:]
    for task, learning in zip(tasks, (True, False), strict=True):
        method.add_task(task)
        method.train()
        assert (dropout.training, norm.training) == (True, learning)
        method.eval()
        assert not dropout.training
