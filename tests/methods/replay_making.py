"""Methods and tasks without a run: every image is told by its pixels, which are its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raycl import registry
from raycl.benchmarks.base import StreamInfo, Task, TaskData, TaskInfo
from raycl.datasets import ImageSet
from raycl.methods.base import Classifier, Context, Method
from raycl.networks.base import Backbone
from raycl.nn.optim import TrainConfig

UNIT = 1 / 255
"""The standard deviation that leaves pixels as they are."""


class Pixels(Backbone):
    """The features are the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def make(
    method: str,
    tasks: Sequence[Sequence[int]],
    *,
    width: int = 3,
    train: dict[str, Any] | None = None,
    std: Sequence[float] | None = None,
    stop: int | None = None,
    **options: Any,
) -> Classifier:
    """A method on images of (width, 1, 1); no task was added yet."""
    outputs = 1 + max(c for classes in tasks for c in classes)
    info = StreamInfo(
        tasks=tuple(TaskInfo(i, str(i), tuple(classes)) for i, classes in enumerate(tasks)),
        input_shape=(width, 1, 1),
        num_outputs=outputs,
        class_names=tuple(map(str, range(outputs))),
        mean=((0.0,) * width,) * len(tasks),
        std=tuple((s,) * width for s in std or [UNIT] * len(tasks)),
        readouts=("class",),
    )
    context = Context(
        stream=info,
        train=TrainConfig(**(train or {})),
        build_network=lambda block=None: Pixels(width),
        device=torch.device("cpu"),
        data_generator=torch.Generator().manual_seed(0),
        method_generator=torch.Generator().manual_seed(1),
        stop=stop,
    )
    cls = registry.find("raycl.methods", Method, method)
    made = cls(cls.Config(name=method, **options), context)
    assert isinstance(made, Classifier)
    return made


def numbered(method: Classifier, index: int, each: int) -> Task:
    """Task ``index`` with ``each`` images per class, class by class: (class, number in two bytes).

    Of the methods here nothing looks at validation and test images.
    """
    classes = method.context.stream.tasks[index].classes
    labels = torch.tensor(classes).repeat_interleave(each)
    number = torch.arange(each).repeat(len(classes))
    images = torch.stack([labels, number // 256, number % 256], 1).to(torch.uint8)
    return task_of(method, index, images[:, :, None, None], labels)


def task_of(method: Classifier, index: int, images: Tensor, labels: Tensor) -> Task:
    """Task ``index`` with these images."""
    stream = method.context.stream
    rows = torch.arange(len(labels))
    examples = ImageSet(images, rows, labels, stream.mean[index], stream.std[index])
    return Task(stream.tasks[index], TaskData(examples, None, examples), None)


def enter(method: Classifier, task: Task) -> Task:
    """What the loop does before the first phase of a task."""
    method.add_task(task.info)
    method.eval()
    method.begin_task(task)
    return task


def pass_over(method: Classifier, task: Task) -> Task:
    """A task without training."""
    enter(method, task)
    for phase in method.phases(task):
        if phase.after is not None:
            phase.after()
    method.end_task(task)
    return task


def who(images: Tensor) -> list[tuple[int, int]]:
    """(class, number) of each image that ``numbered`` made."""
    rows = images.flatten(1).long().tolist()
    return [(c, 256 * high + low) for c, high, low in rows]


def split(classes: int, tasks: int) -> list[list[int]]:
    """Equal tasks, in order."""
    each = classes // tasks
    return [list(range(each * t, each * (t + 1))) for t in range(tasks)]
