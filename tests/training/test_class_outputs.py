"""Which outputs compete where the task is unknown: those of tasks seen, or all of the stream."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from raycl.benchmarks.base import StreamInfo, TaskInfo
from raycl.benchmarks.split import Split
from raycl.datasets.examples import ImageSet
from raycl.testing import finish, toy_data
from raycl.training.evaluation import Evaluator
from raycl.training.run import Run

TASKS = tuple(TaskInfo(i, str(i), (2 * i, 2 * i + 1)) for i in range(3))
STREAM = StreamInfo(
    TASKS, (1, 1, 1), 6, tuple("abcdef"), ((0.0,),) * 3, ((1.0,),) * 3, ("class", "task", "domain")
)
LOGITS = [3.0, 1.0, 2.5, 2.0, 0.0, 1.0]
"""The worked value of the specification of HCL: in task 1 of two classes each, class-incremental
learning answers 0 and task-incremental learning 2."""


class Fixed:
    """The same logits for every image."""

    uses_task_id = False

    def __init__(self, logits: list[float]) -> None:
        self.row = torch.tensor(logits)

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        return self.row.expand(len(images), -1)


def accuracy(
    logits: list[float], label: int, seen: int, outputs: Literal["seen", "all"], k: int = 1
) -> dict[str, float]:
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    examples = ImageSet(image, torch.zeros(1).long(), torch.tensor([label]), (0.0,), (1.0,))
    evaluator = Evaluator(STREAM, STREAM.readouts, torch.device("cpu"), k, outputs)
    return evaluator.accuracy(Fixed(logits), examples, label // 2, seen)  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", ["seen", "all"])
def test_the_worked_value(outputs: Literal["seen", "all"]) -> None:
    assert accuracy(LOGITS, 2, 2, outputs) == {"class": 0.0, "task": 100.0, "domain": 100.0}
    assert accuracy(LOGITS, 3, 2, outputs) == {"class": 0.0, "task": 0.0, "domain": 0.0}
    assert accuracy(LOGITS, 0, 2, outputs) == {"class": 100.0, "task": 100.0, "domain": 100.0}


def test_an_output_of_a_later_task_wins_only_where_all_compete() -> None:
    logits = [3.0, 1.0, 2.5, 2.0, 0.0, 9.0]  # 5 belongs to task 2, and is the second there
    seen = accuracy(logits, 0, 2, "seen")
    assert seen == {"class": 100.0, "task": 100.0, "domain": 100.0}
    assert accuracy(logits, 0, 2, "all") == {"class": 0.0, "task": 100.0, "domain": 0.0}
    assert accuracy(logits, 1, 2, "all") == {"class": 0.0, "task": 0.0, "domain": 100.0}
    assert accuracy(logits, 0, 2, "all", k=2)["class"] == 100.0
    for label in range(6):  # after the last task there is no difference
        assert accuracy(logits, label, 3, "all") == accuracy(logits, label, 3, "seen")


def result(**options: Any) -> dict[str, Any]:
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, **options},
        "method": {"name": "finetune", "outputs": "all"},
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "lr": 0.001},
    }
    return finish(Run(config, toy_data()))


def test_the_benchmark_says_so() -> None:
    plain, seen, every = result(), result(class_outputs="seen"), result(class_outputs="all")
    for key in ("matrices", "validation_matrices", "baseline", "metrics"):
        assert plain[key] == seen[key]
    assert every["matrices"]["task"] == seen["matrices"]["task"]
    first, last = every["matrices"]["class"], seen["matrices"]["class"]
    assert first[0][0] < last[0][0]  # hardly trained: outputs of task 1 win as well
    assert first[0][1] is None  # a task to come stays unmeasured
    assert every["baseline"]["class"] == [None, None]
    assert first[1] == last[1]
    with pytest.raises(ValueError, match="Input should be 'seen' or 'all'"):
        Split.Config(name="split", class_outputs="task")


def test_an_epoch_is_selected_by_the_same_outputs() -> None:
    run = Run(
        {
            "benchmark": {"name": "split", "tasks": 2, "class_outputs": "all"},
            "method": {"name": "finetune"},
            "network": {"name": "mlp", "hidden": [8]},
        },
        toy_data(),
    )
    assert run.evaluator.class_outputs == run.selector.class_outputs == "all"
