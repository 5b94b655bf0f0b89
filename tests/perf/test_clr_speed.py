"""A step of CLR against its passes and against fine-tuning, and a probe that remembers features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from perf_helpers import least_cpu, random_data, void
from torch import nn

from raycl.nn.optim import make_optimizer
from raycl.nn.reprogramming import add_kernels
from raycl.training.phase import PhaseState, train_one_epoch
from raycl.training.run import Run
from raycl.trial.checkpoint import CheckpointStore

pytestmark = pytest.mark.perf

BATCH = 32
STEPS = 4
SIDE = 64
NETWORK = {"name": "torchvision", "model": "resnet18"}


def started(method: str, network: dict[str, Any] = NETWORK, images: int = STEPS * BATCH) -> Run:
    """A run whose first task has begun."""
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 1, "validation": 0.0},
        "method": {"name": method},
        "network": network,
        "train": {"epochs": 9, "batch_size": BATCH, "lr": 0.001, "optimizer": "adam"},
    }
    run = Run(config, random_data((3, SIDE, SIDE), images)[0])
    run._enter_task()
    return run


def epoch_of(run: Run) -> Any:
    phase = run._phases[0]
    state = PhaseState(phase, run.method)
    return lambda: train_one_epoch(phase, state.optimizer, run.method)


def bare_epoch(run: Run) -> Any:
    """Forward and backward of the wrapped network with kernels of its own, and Adam; no more."""
    network = run.method.context.build_network()
    add_kernels(network, "reduced_v1")
    model = nn.Sequential(network, nn.Linear(network.num_features, 10))
    frozen = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    for layer in frozen:
        layer.requires_grad_(False)
    optimizer = make_optimizer((p for p in model.parameters() if p.requires_grad), run.config.train)
    data = run.stream.data[0].train
    batches = list(data.batches(BATCH))

    def epoch() -> None:
        model.train()
        for batch in batches:
            loss = F.cross_entropy(model(batch.images), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def test_a_step_is_hardly_more_than_its_passes() -> None:
    run = started("clr")
    ours, bare = least_cpu(epoch_of(run), bare_epoch(run))
    print(f"bare forward and backward / step of clr: {bare / ours:.2f}")
    assert bare / ours >= 0.9


def test_a_step_is_cheaper_than_one_of_fine_tuning() -> None:
    ours, full = least_cpu(epoch_of(started("clr")), epoch_of(started("separate_finetune")))
    print(f"step of separate_finetune / step of clr: {full / ours:.2f}")
    assert full / ours >= 1.15


def test_the_probe_remembers_features() -> None:
    run = started("linear_probe", images=20 * BATCH)
    first, _ = least_cpu(lambda: void(run.advance()), lambda: None, rounds=1)
    second, _ = least_cpu(lambda: void(run.advance()), lambda: None, rounds=3)
    print(f"first epoch of linear_probe / later ones: {first / second:.0f}")
    assert first / second >= 20


def test_a_checkpoint_holds_what_the_task_added(tmp_path: Path) -> None:
    run = started("clr")
    run.advance()
    state = run.state_dict()
    added = [*run.method.own(0).state_dict().values(), *run.method.heads.state_dict().values()]
    moments = [v for one in state["phase"]["optimizer"]["state"].values() for v in one.values()]
    size = sum(t.numel() * t.element_size() for t in (*added, *moments))
    written = Path(CheckpointStore(str(tmp_path)).save(state, 1)).stat().st_size
    print(f"checkpoint / what the task added and its optimiser: {written / size:.2f}")
    assert written <= 1.1 * size
