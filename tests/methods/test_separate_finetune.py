"""A network per task: nothing shared, nothing forgotten, a whole network as cost."""

from __future__ import annotations

import pytest
import torch

from raycl.testing import finish

CNN = {"name": "cnn", "channels": [8], "features": 16, "batch_norm": True}


def test_each_task_has_a_network_of_its_own(build):
    run = build("separate_finetune", network=CNN, train={"epochs": 2})
    result = finish(run)
    first, second = (list(n.parameters()) for n in run.method.networks)
    assert not {p.data_ptr() for p in first} & {p.data_ptr() for p in second}
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a.dim() > 1)
    assert result["metrics"]["task"]["forgetting"] == 0
    parameters = sum(p.numel() for p in first)
    cost = result["cost"]
    assert cost["task_percent"] == pytest.approx(100 * (parameters - 16) / parameters)
    assert cost["task_percent_affine"] == pytest.approx(100)
    assert cost["task_percent_statistics"] == pytest.approx(100 * (parameters + 16) / parameters)


def test_each_task_reads_its_own_network(build):
    run = build("separate_finetune", network=CNN)
    for info in run.stream.info.tasks:
        run.method.add_task(info)
    method, images = run.method.eval(), torch.randn(3, 1, 8, 8)
    for task, network in enumerate(method.networks):
        assert torch.equal(method.embed(images, task), network(images))
    assert not torch.equal(method.embed(images, 0), method.embed(images, 1))


def test_all_of_the_tasks_network_is_trained(build):
    run = build("separate_finetune", network=CNN)
    run.method.add_task(run.stream.info.tasks[0])
    network = sum(p.numel() for p in run.method.networks[0].parameters())
    assert sum(p.numel() for p in run.method.trainable()) == network + 17 * 2
