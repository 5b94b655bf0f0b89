"""Evaluation of a long stream: its cost per task with ``evaluate``, and beside the whole matrix."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from raycl import datasets
from raycl.datasets.base import Arrays, Dataset, DatasetConfig
from raycl.testing import tensors
from raycl.training.run import Run

pytestmark = pytest.mark.perf

TASKS, TRAIN, TEST, SHAPE = 50, 10_000, 10_000, (1, 28, 28)
EVERY = 10


def a_stream() -> dict[str, Dataset]:
    """Random images of the size of MNIST, as many as it has to test on."""
    generator = np.random.default_rng(0)
    parts = [
        Arrays(
            generator.integers(0, 256, size=(n, *SHAPE), dtype=np.uint8),
            generator.integers(0, 10, size=n),
        )
        for n in (TRAIN, TEST)
    ]
    one = Dataset("random", *parts, tuple("0123456789"), (0.5,), (0.3,))
    return {datasets.key(DatasetConfig(name="digits")): one}


def cpu_of_tasks(data: dict[str, Dataset], evaluate: dict[str, int]) -> tuple[list[float], Run]:
    """CPU seconds of each task: training, evaluation and everything else of a step."""
    config = {
        "benchmark": {"name": "permuted", "dataset": "digits", "tasks": TASKS, "validation": 0.0},
        "method": {"name": "finetune"},
        "network": {"name": "mlp", "hidden": [100]},
        "train": {"epochs": 1, "batch_size": 64, "lr": 0.01},
        "evaluate": evaluate,
    }
    run, found = Run(config, data), []
    while not run.done:
        begun = time.process_time()
        run.advance()
        found.append(time.process_time() - begun)
    return found, run


def test_cost_per_task_is_flat(capsys: pytest.CaptureFixture[str]) -> None:
    data = a_stream()
    cheap, one = cpu_of_tasks(data, {"limit": 500, "every": EVERY})
    rows, two = cpu_of_tasks(data, {"limit": 500})
    whole, three = cpu_of_tasks(data, {})
    states = [list(tensors(run.method.state_dict())) for run in (one, two, three)]
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], other, strict=True))
    # as many rows in the first ten tasks from the second on as in the last ten before the last one,
    # which is always whole
    first, last = slice(1, 1 + EVERY), slice(TASKS - 1 - EVERY, TASKS - 1)
    flat, each, today = (sum(t[last]) / sum(t[first]) for t in (cheap, rows, whole))
    span = f"tasks {last.start + 1}-{last.stop} to tasks {first.start + 1}-{first.stop}"
    totals, ends = ((sum(t) for t in (cheap, rows, whole)), (t[-1] for t in (cheap, rows, whole)))
    seconds, of_which = (", ".join(f"{value:.1f}" for value in part) for part in (totals, ends))
    with capsys.disabled():
        print(
            f"\nmlp 100, finetune, {TASKS} tasks of {TRAIN:,} images and {TEST:,} to test on, one "
            f"epoch: CPU-s per task, {span}: {flat:.2f} with limit 500 and every {EVERY} (at most "
            f"1.3), {each:.2f} with limit 500, {today:.2f} with neither; the runs {seconds} CPU-s, "
            f"of which the last task, whose row is whole, {of_which}"
        )
    assert flat <= 1.3
    assert sum(cheap) <= 0.5 * sum(whole)
