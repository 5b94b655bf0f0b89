"""Steps of quick deep inversion against the passes they consist of, and against slower ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from perf_helpers import least_cpu, random_data, void

from raycl.methods.base import Phase
from raycl.methods.deep_inversion import DeepInversion
from raycl.methods.qdi import QDI, Synthetic
from raycl.training.phase import PhaseState, train_one_epoch
from raycl.training.run import Run

pytestmark = pytest.mark.perf

BATCH = 32
SYNTHETIC = 200
STEPS = 2
"""Steps of an epoch that is measured."""
LENET = {"name": "cifar", "model": "lenet"}
CNN = {"name": "cnn", "channels": [16, 32], "features": 64, "batch_norm": True}
RESNET8, RESNET14 = ({"name": "resnet32", "blocks": blocks} for blocks in (1, 2))
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "resnet14 after resnet8": (RESNET8, RESNET14, 0.65),
    "resnet8 after resnet14": (RESNET14, RESNET8, 0.65),
    "resnet8 after a CNN": (CNN, RESNET8, 0.65),
    "resnet8 after lenet": (LENET, RESNET8, 0.5),
}
"""Old network, new network, least ratio of a step of inversion. Statistics cost as much per value
of a map as ever, while the convolutions of networks with few channels cost little."""


def started(
    name: str, method: dict[str, Any], of: list[Any] | None = None, side: int = 16
) -> tuple[Run, Any]:
    """A run in its second task, and its method."""
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.0},
        "method": method,
        "network": {"name": "sequence", "of": of or list(NETWORKS[name][:2])},
        "train": {"epochs": 1, "batch_size": BATCH, "lr": 0.01, "drop_last": True},
    }
    run = Run(config, random_data((3, side, side), 5 * BATCH)[0])
    run.advance()
    run._enter_task()
    return run, run.method


def phase_of(run: Run, position: int) -> tuple[Phase, PhaseState]:
    phase = run._phases[position]
    if phase.before is not None:
        run.method.eval()
        phase.before()
    return phase, PhaseState(phase, run.method)


def report(
    capsys: pytest.CaptureFixture[str], what: str, ours: float, other: float, least: float
) -> None:
    with capsys.disabled():
        print(
            f"\n{what}: {1e3 * ours:,.1f} CPU-ms, the other {1e3 * other:,.1f}, "
            f"ratio {other / ours:.2f} (at least {least:.2f})"
        )
    assert other / ours >= least


@pytest.mark.parametrize("name", NETWORKS)
def test_inversion_step(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the teacher's forward pass and its backward pass to the images, and nothing else."""
    run, method = started(name, {"name": "qdi", "inversion_steps": STEPS})
    phase, state = phase_of(run, 0)
    teacher, images = method.teacher, torch.randn(SYNTHETIC, 3, 16, 16, requires_grad=True)

    def ours() -> None:
        train_one_epoch(phase, state.optimizer, method, state.schedule)

    def bare() -> None:
        method.eval()
        for _ in range(STEPS):
            images.grad = None
            teacher(images).square().mean().backward()

    ours_s, bare_s = least_cpu(ours, bare, 9)
    least = NETWORKS[name][2]
    report(capsys, f"inversion of qdi, {name}, {SYNTHETIC} images", ours_s, bare_s, least)


def test_inversion_step_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    """The same for a network of HCL, its ResNet-18 at 32 pixels, on few images."""
    resnet18 = {"name": "cifar", "model": "resnet18"}
    options = {"name": "qdi", "inversion_steps": 1, "synthetic_images": 20}
    run, method = started("", options, [resnet18, LENET], side=32)
    phase, state = phase_of(run, 0)
    teacher, images = method.teacher, torch.randn(20, 3, 32, 32, requires_grad=True)

    def ours() -> None:
        train_one_epoch(phase, state.optimizer, method, state.schedule)

    def bare() -> None:
        method.eval()
        images.grad = None
        teacher(images).square().mean().backward()

    ours_s, bare_s = least_cpu(ours, bare)
    report(capsys, "inversion of qdi, ResNet-18 of HCL, 20 images", ours_s, bare_s, 0.85)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_step(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the student's two passes forward and backward and the teacher's one."""
    run, method = started(name, {"name": "qdi", "inversion_steps": STEPS})
    phase, state = phase_of(run, 1)
    steps = len(run.stream.data[1].train) // BATCH
    teacher, network = method.teacher, method.network
    real, synthetic = torch.randn(BATCH, 3, 16, 16), torch.randn(SYNTHETIC, 3, 16, 16)
    labels, others = torch.randint(10, (BATCH,)), torch.randint(10, (SYNTHETIC,))

    def bare() -> None:
        method.train()
        for _ in range(steps):
            with torch.no_grad():
                teacher(real)
            network.zero_grad()
            loss = F.cross_entropy(network(real), labels)
            (loss + F.cross_entropy(network(synthetic), others)).backward()

    ours_s, bare_s = least_cpu(lambda: void(train_one_epoch(phase, state.optimizer, method)), bare)
    report(capsys, f"training of qdi, {name}", ours_s, bare_s, 0.9)


@pytest.mark.parametrize("name", ["same size", "teacher larger"])
def test_answers_are_computed_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against asking the teacher for its logits of the synthetic images in every step."""
    of = [RESNET8, RESNET8] if name == "same size" else [RESNET14, RESNET8]
    run, method = started(name, {"name": "qdi", "inversion_steps": STEPS}, of)
    phase, state = phase_of(run, 1)
    once = method.replayed

    def anew(synthetic: Synthetic) -> tuple[torch.Tensor, torch.Tensor]:
        images, _ = once(synthetic)
        return images, method.taught(images)

    def ours() -> None:
        method.replayed = once
        train_one_epoch(phase, state.optimizer, method)

    def again() -> None:
        method.replayed = anew
        train_one_epoch(phase, state.optimizer, method)

    ours_s, again_s = least_cpu(ours, again)
    report(capsys, f"training of qdi with stored answers, {name}", ours_s, again_s, 1.2)


def test_against_inversion_from_noise(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it: 500 steps on 200 images, against 2,000 steps of a generator that starts as noise.

    Both invert the same ResNet-8. Measured on a twentieth of the steps of each.
    """
    quick, method = started("", {"name": "qdi", "inversion_steps": 25}, [RESNET8, RESNET8])
    phase, state = phase_of(quick, 0)
    slow, other = started("", {"name": "deep_inversion", "power_iterations": 100,
                               "inversion_batch_size": SYNTHETIC}, [RESNET8, RESNET8])  # fmt: skip
    assert isinstance(method, QDI)
    assert isinstance(other, DeepInversion)
    long, long_state = phase_of(slow, 0)

    def short() -> None:
        train_one_epoch(phase, state.optimizer, method, state.schedule)

    def full() -> None:
        train_one_epoch(long, long_state.optimizer, other)

    ours_s, other_s = least_cpu(short, full, 2)
    report(capsys, "25 steps of qdi, 100 of inversion from noise", ours_s, other_s, 4.0)
