"""Steps of inversion and of ABD against the forward and backward passes they consist of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from perf_helpers import least_cpu, random_data, void

from raycl.methods._dreaming import Dreaming
from raycl.training.run import Run, train_one_epoch

pytestmark = pytest.mark.perf

BATCH = 64
SIZES = {
    "resnet32, 32 pixels": ({"name": "resnet32"}, 32),
    "resnet14, 16 pixels": ({"name": "resnet32", "blocks": 2}, 16),
}


def started(name: str, phase: int) -> tuple[Run, Dreaming, Callable[[], None]]:
    """A run of ABD in its second task, and an epoch of two steps of one of its phases."""
    network, size = SIZES[name]
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.0},
        "method": {"name": "abd", "power_iterations": 2},
        "network": network,
        "train": {"epochs": 1, "batch_size": BATCH, "lr": 0.01, "drop_last": True},
    }
    run = Run(config, random_data((3, size, size), 5 * BATCH)[0])
    run.advance()
    assert len(run.stream.data[1].train) // BATCH == 2
    run.advance()
    method = run.method
    assert isinstance(method, Dreaming)
    chosen = method.phases(run._enter_task())[phase]
    optimizer = chosen.optimizer()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return run, method, lambda: void(train_one_epoch(chosen, optimizer, method))


def bare_inversion(method: Dreaming) -> Callable[[], None]:
    """Two passes through generator and solver, forward and backward; no term of the loss."""
    generator, teacher = method.generator, method.teacher
    assert teacher is not None

    def epoch() -> None:
        generator.train()
        for _ in range(2):
            generator.zero_grad()
            teacher(generator(torch.randn(BATCH, 1000))).square().mean().backward()

    return epoch


def bare_training(run: Run, method: Dreaming) -> Callable[[], None]:
    """Generator on B, teacher on 2B without gradients; student on 2B forward and backward."""
    generator, teacher, network = method.generator, method.teacher, method.network
    assert teacher is not None
    channels, height, width = run.stream.info.input_shape
    real = torch.randn(BATCH, channels, height, width)
    labels = torch.randint(10, (2 * BATCH,))

    def epoch() -> None:
        method.train()
        for _ in range(2):
            with torch.no_grad():
                images = torch.cat([real, generator(torch.randn(BATCH, 1000))])
                teacher(images)
            network.zero_grad()
            F.cross_entropy(network(images), labels).backward()

    return epoch


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("what, least", [("inversion", 0.85), ("training", 0.9)])
def test_steps(name: str, what: str, least: float, capsys: pytest.CaptureFixture[str]) -> None:
    run, method, epoch = started(name, ("inversion", "training").index(what))
    bare = bare_inversion(method) if what == "inversion" else bare_training(run, method)
    ours_s, bare_s = least_cpu(epoch, bare)
    ratio = bare_s / ours_s
    with capsys.disabled():
        print(
            f"\n{what} of abd, {name}, batch {BATCH}: {1e3 * ours_s / 2:,.0f} CPU-ms a step, "
            f"{2 * BATCH / ours_s:,.0f} images/s, bare passes {2 * BATCH / bare_s:,.0f}, "
            f"ratio {ratio:.2f} (at least {least:.2f})"
        )
    assert ratio >= least
