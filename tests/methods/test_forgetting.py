"""Real digits, five tasks of two: what is there against forgetting works against it."""

from __future__ import annotations

from typing import Any

import pytest

from raycl import datasets
from raycl.datasets.base import DatasetConfig
from raycl.testing import finish
from raycl.training import metrics
from raycl.training.run import Run
from raycl.trial.matrix import backward_transfer

DIGITS = DatasetConfig(name="digits")


@pytest.fixture(scope="module")
def train_on_digits(tmp_path_factory):
    data = {datasets.key(DIGITS): datasets.load(DIGITS, tmp_path_factory.mktemp("none"))}

    def average_and_transfer(
        method: str, clip_norm: float | None = None, **options: Any
    ) -> tuple[float, float]:
        config = {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
            "method": {"name": method, "outputs": "task", **options},
            "network": {"name": "mlp", "hidden": [100, 100]},
            "train": {"epochs": 20, "batch_size": 32, "lr": 0.05, "clip_norm": clip_norm},
            "readouts": ["task"],
        }
        matrix = finish(Run(config, data))["matrices"]["task"]
        return metrics.average_accuracy(matrix), backward_transfer(matrix)

    return average_and_transfer


@pytest.fixture(scope="module")
def finetune(train_on_digits):
    average, transfer = train_on_digits("finetune")
    assert transfer < -2, "there is something to forget"
    return average, transfer


@pytest.mark.parametrize(
    "method, clip_norm, options",
    [
        ("blip", None, {}),
        ("ewc", 100, {"lam": 5000}),
        ("ewc", 100, {"fisher": "per_example", "lam": 500}),
        ("imm_mode", 1000, {"merge": "mode", "lam": 0.1}),
        ("lwf", 100, {}),
        ("online_ewc", None, {"lam": 100}),
        ("si", None, {"c": 200}),
    ],
)
def test_forgets_less_than_fine_tuning(train_on_digits, finetune, method, clip_norm, options):
    average, transfer = train_on_digits(method, clip_norm, **options)
    assert transfer > finetune[1] / 2
    assert average > finetune[0]


def test_blip_forgets_nothing_and_goes_on_learning(train_on_digits, finetune):
    average, transfer = train_on_digits("blip")
    frozen, _ = train_on_digits("sgd_frozen")
    assert abs(transfer) < 0.6, "an image or two of some 70 per task"
    assert average > frozen + 1
