"""Accuracy where the right class has to be among the k best."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.benchmarks.base import StreamInfo, TaskInfo
from raycl.benchmarks.split import Split
from raycl.datasets.examples import ImageSet
from raycl.testing import finish, toy_data
from raycl.training.evaluation import Evaluator
from raycl.training.run import Run

TASKS = (TaskInfo(0, "a", (0, 1, 2)), TaskInfo(1, "b", (3, 4, 5)))
STREAM = StreamInfo(
    TASKS, (1, 1, 1), 6, tuple("abcdef"), ((0.0,),) * 2, ((1.0,),) * 2, ("class", "task", "domain")
)


class Fixed:
    """Image i has the logits of row i."""

    uses_task_id = False

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = torch.tensor(rows)

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        return self.rows[(255 * images).round().long().flatten()]


def accuracy(rows: list[list[float]], labels: list[int], task: int, seen: int, k: int) -> Any:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    rows_of = torch.arange(len(labels))
    examples = ImageSet(images, rows_of, torch.tensor(labels), (0.0,), (1.0,))
    evaluator = Evaluator(STREAM, STREAM.readouts, torch.device("cpu"), k)
    return evaluator.accuracy(Fixed(rows), examples, task, seen)  # type: ignore[arg-type]


ROWS = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    "k, expected",
    [
        (1, {"class": 0.0, "task": 50.0, "domain": 50.0}),
        (2, {"class": 50.0, "task": 100.0, "domain": 100.0}),
        (3, {"class": 50.0, "task": 100.0, "domain": 100.0}),
        (4, {"class": 100.0, "task": 100.0, "domain": 100.0}),
    ],
)
def test_by_hand(k: int, expected: dict[str, float]) -> None:
    """Outputs 5, 4, ... are the best of the first image, 0, 1, ... those of the second."""
    assert accuracy(ROWS, [4, 3], 1, 2, k) == expected


def test_no_more_than_all_that_compete() -> None:
    found = accuracy(ROWS, [1, 0], 0, 1, 5)  # three outputs are seen, each task has three
    assert found == {"class": 100.0, "task": 100.0, "domain": 100.0}
    assert accuracy(ROWS, [1, 0], 0, 2, 5) == {"class": 100.0, "task": 100.0, "domain": 100.0}
    assert accuracy(ROWS, [0, 5], 0, 2, 5)["class"] == 0.0


def test_the_benchmark_says_so() -> None:
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "top_k": 2},
        "method": {"name": "finetune"},
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1},
    }
    matrices = finish(Run(config, toy_data()))["matrices"]
    assert matrices["task"] == [[100.0, 100.0], [100.0, 100.0]]  # two classes in each
    assert matrices["class"][1][0] < 100
    assert Split(Split.Config(name="split", top_k=5)).label == "split-digits-5-top5"
    assert Split(Split.Config(name="split", top_k=5, label="mine")).label == "mine"
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Split.Config(name="split", top_k=0)
