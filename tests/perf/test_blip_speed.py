"""BLIP and EWC against plain SGD on the same network; the clamp after each step; the Fisher."""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from perf_helpers import fastest, random_data
from torch import nn

from raycl.nn import fisher
from raycl.nn.fisher import fisher_diagonal
from raycl.training.phase import train_one_epoch
from raycl.training.run import Run

pytestmark = pytest.mark.perf

MLP = {"name": "mlp", "hidden": [1200]}
ALEXNET = {"name": "alexnet", "width": 2.0}
SIZES = {
    "mlp of mnist-5, batch 64": ((1, 28, 28), 12_000, MLP, 64),
    "alexnet of alternating cifar, batch 32": ((3, 32, 32), 192, ALEXNET, 32),
}


def started(name: str, method: str) -> tuple[Run, Any]:
    """A run in its second task, where earlier ones count, and an epoch of it."""
    shape, n, network, batch_size = SIZES[name]
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.0},
        "method": {"name": method, "outputs": "task"},
        "network": network,
        "train": {"epochs": 1, "batch_size": batch_size, "lr": 0.01},
    }
    run = Run(config, random_data(shape, 2 * n)[0])
    run.advance()
    phase = run.method.phases(run._enter_task())[0]
    optimizer = phase.optimizer()
    return run, lambda: train_one_epoch(phase, optimizer, run.method)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("method, least", [("blip", 0.8), ("ewc", 0.6), ("online_ewc", 0.6)])
def test_training_speed(
    name: str, method: str, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    run, epoch = started(name, method)
    _, sgd = started(name, "finetune")
    ours_s, sgd_s = fastest(epoch, sgd)
    n, ratio = len(run.stream.data[1].train), sgd_s / ours_s
    with capsys.disabled():
        print(
            f"\n{method}, {name}: {n / ours_s:,.0f} examples/s, plain SGD {n / sgd_s:,.0f}, "
            f"ratio {ratio:.2f} (at least {least:.2f})"
        )
    assert ratio >= least


def test_clamp(capsys: pytest.CaptureFixture[str]) -> None:
    name = "alexnet of alternating cifar, batch 32"
    run, epoch = started(name, "finetune")
    frozen = started(name, "blip")[0].method.frozen
    low, high = frozen.limits()
    step_s, clamp_s = fastest(epoch, lambda: frozen.clamp_(low, high))
    step_s /= len(run.stream.data[1].train) / 32
    share = clamp_s / step_s
    with capsys.disabled():
        print(
            f"\nblip, clamp of {sum(frozen.sizes):,} weights: {1e3 * clamp_s:.1f} ms, {share:.1%} "
            f"of a plain step of {1e3 * step_s:.0f} ms (less than 5 %)"
        )
    assert share < 0.05


def fisher_cost(count: int) -> tuple[float, float]:
    """CPU seconds, and the process's peak memory in MB, of so many of 8,000 examples."""
    torch.set_num_threads(1)
    network, images, names, outputs = fisher_problem()
    begun = time.process_time()
    batches = torch.split(images[:count], 100)
    fisher_diagonal(network, names, batches, outputs, torch.Generator())
    seconds = time.process_time() - begun
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def fisher_problem() -> tuple[nn.Module, torch.Tensor, list[str], torch.Tensor]:
    """One task of MNIST-5: 8,000 examples through 942,000 weights."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 1200), nn.ReLU(), nn.Linear(1200, 10))
    images = torch.randn(8_000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return network, images, ["1.weight", "1.bias"], torch.tensor([0, 1])


def test_fisher(capsys: pytest.CaptureFixture[str]) -> None:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        (_, before), (seconds, after) = pool.map(fisher_cost, (1_000, 8_000))
    network, images, names, outputs = fisher_problem()
    few, labels = images[:200], torch.zeros(200, dtype=torch.int64)
    begun = time.process_time()
    fisher._per_example(network, names, few, labels, outputs)
    slow = (time.process_time() - begun) * len(images) / len(few)
    with capsys.disabled():
        print(
            f"\nblip, Fisher of a task of MNIST-5: {seconds:.2f} CPU-s (at most 2), one gradient "
            f"per example {slow:.0f} CPU-s; memory grows by {after - before:.1f} MB from 1,000 to "
            "8,000 examples (at most 8)"
        )
    assert seconds <= 2
    assert slow > 5 * seconds
    assert after - before <= 8
