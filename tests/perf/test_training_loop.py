"""The training loop against a bare PyTorch loop over the same batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from perf_helpers import fastest, random_data
from torch import nn

from raycl.training.phase import train_one_epoch
from raycl.training.run import Run

pytestmark = pytest.mark.perf

SHAPES = {
    "mnist-sized, mlp 400-400, batch 64": (
        (1, 28, 28),
        12_000,
        {"name": "mlp", "hidden": [400, 400]},
        64,
    ),
    "digits-sized, mlp 100, batch 32": ((1, 8, 8), 6_000, {"name": "mlp", "hidden": [100]}, 32),
    "cifar-sized, cnn, batch 64": ((3, 32, 32), 2_000, {"name": "cnn"}, 64),
}


@pytest.mark.parametrize("name", SHAPES)
def test_loop(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape, n, network, batch_size = SHAPES[name]
    data, arrays = random_data(shape, n)
    images, labels = arrays.images, arrays.labels
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 1, "validation": 0.0},
        "method": {"name": "finetune"},
        "network": network,
        "train": {"epochs": 1, "batch_size": batch_size, "lr": 0.001, "momentum": 0.9},
    }
    run = Run(config, data)
    method = run.method
    phase = method.phases(run._enter_task())[0]
    optimizer = phase.optimizer()

    model = nn.Sequential(method.backbone, method.head)  # the same network
    bare_optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    tensor, targets = torch.from_numpy(images), torch.from_numpy(labels)
    mean, std = 0.5 * 255, 0.3 * 255

    def bare() -> None:
        model.train()
        order = torch.randperm(n)
        for start in range(0, n, batch_size):
            index = order[start : start + batch_size]
            x = (tensor[index].float() - mean) / std
            loss = F.cross_entropy(model(x), targets[index])
            bare_optimizer.zero_grad()
            loss.backward()
            bare_optimizer.step()

    ours_s, bare_s = fastest(lambda: train_one_epoch(phase, optimizer, method) and None, bare)
    ratio = bare_s / ours_s
    with capsys.disabled():
        print(
            f"\ntraining loop, {name}: {n / ours_s:,.0f} examples/s, bare loop {n / bare_s:,.0f}, "
            f"ratio {ratio:.2f} (at least 0.90)"
        )
    assert ratio >= 0.9
