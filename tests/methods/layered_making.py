"""Runs on two layers and a head, in float64, and their data for whoever trains them once more."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import distilled_making
import torch
import torch.nn.functional as F
from reservoir_making import twin
from torch import Tensor, nn

from raycl import registry
from raycl.benchmarks.base import StreamInfo, TaskInfo
from raycl.methods._per_task import PerTask
from raycl.methods.base import Context, Method
from raycl.networks.base import find_network
from raycl.nn.optim import TrainConfig
from raycl.testing import toy_data
from raycl.training.run import Run

CNN: dict[str, Any] = {"name": "cnn", "channels": [4, 5], "features": 8, "batch_norm": True}
RESNET: dict[str, Any] = {"name": "resnet32", "blocks": 1}


@contextmanager
def float64() -> Iterator[None]:
    """Runs that are built and stepped here compute in float64."""

    def spread(self: PerTask, own: Tensor, task_id: int) -> Tensor:
        found = own.new_full((len(own), self.context.stream.num_outputs), -torch.inf)
        outputs = torch.tensor(self.context.stream.tasks[task_id].classes)
        return found.index_copy(1, outputs, own)

    with distilled_making.float64(), patch.object(PerTask, "spread", spread):
        yield


def run_of(method: str, network: Any = None, *, tasks: int = 2, **options: Any) -> Run:
    """A run on toy images; ``train`` among the options changes its train block."""
    train = {"epochs": 2, "batch_size": 16, "lr": 0.1, **options.pop("train", {})}
    return Run(
        {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": tasks},
            "method": {"name": method, **options},
            "network": network or {"name": "mlp", "hidden": [7, 6]},
            "train": train,
            "seed": 1,
        },
        toy_data(),
    )


def method_on(method: str, network: dict[str, Any], shape: tuple[int, int, int]) -> Any:
    """A method on a network, for two tasks of two classes; none was added yet."""
    info = StreamInfo(
        tasks=(TaskInfo(0, "0", (0, 1)), TaskInfo(1, "1", (2, 3))),
        input_shape=shape,
        num_outputs=4,
        class_names=tuple("abcd"),
        mean=((0.0,) * shape[0],) * 2,
        std=((1.0,) * shape[0],) * 2,
        readouts=("task",),
    )
    cls, config = find_network(network)
    context = Context(
        stream=info,
        train=TrainConfig(),
        build_network=lambda block=None: cls(config, shape),
        device=torch.device("cpu"),
        data_generator=torch.Generator(),
        method_generator=torch.Generator(),
    )
    found = registry.find("raycl.methods", Method, method)
    return found(found.Config(name=method), context)


def trained_whole(run: Run, penalty: float) -> dict[str, Tensor]:
    """The state of the backbone after the first task, trained by plain SGD.

    Args:
        run: It has entered the task.
        penalty: Weight of the norms of the head's weight and bias.
    """
    method, train = run.method, run.config.train
    network, head = copy.deepcopy(method.backbone).train(), copy.deepcopy(method.heads[0])
    parameters = [*network.parameters(), *head.parameters()]
    generator = torch.Generator()
    generator.set_state(method.context.data_generator.get_state())
    for _ in range(train.epochs):
        for batch in run._task.train.batches(train.batch_size, generator=generator):
            loss = F.cross_entropy(head(network(batch.images)), batch.labels)
            loss = loss + penalty * (head.weight.norm() + head.bias.norm())
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter -= train.lr * grad
    return network.state_dict()


class Reference:
    """A task's epochs of plain SGD on a network that is written out; to be made when it begins.

    Args:
        run: It has entered the task.
        task: Which.
    """

    def __init__(self, run: Run, task: int) -> None:
        self.run, self.task = run, task
        self.order = twin(run.random.data)
        head = run.method.heads[task]
        self.head = [p.detach().clone().requires_grad_() for p in head.parameters()]

    def layers(self) -> list[list[Tensor]]:
        """Copies of weight and bias of each layer of the backbone."""
        found = (m for m in self.run.method.backbone.modules() if isinstance(m, nn.Linear))
        return [[p.detach().clone() for p in layer.parameters()] for layer in found]

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised flat images and labels within the task, batch by batch."""
        info, examples = self.run.stream.info, self.run.stream.data[self.task].train
        mean, std = info.mean[self.task][0], info.std[self.task][0]
        classes = info.tasks[self.task].classes
        size = self.run.config.train.batch_size
        for index in torch.randperm(len(examples), generator=self.order).split(size):
            images = (examples.raw(index).double() / 255 - mean) / std
            labels = torch.tensor([classes.index(int(y)) for y in examples.labels[index]])
            yield images.flatten(1), labels

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the head on features."""
        return F.cross_entropy(F.linear(features, *self.head), labels)

    def descend(self, loss: Tensor, parameters: list[Tensor]) -> None:
        """A step of gradient descent for parameters and head."""
        trained = [*parameters, *self.head]
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p -= self.run.config.train.lr * g

    def head_difference(self) -> float:
        """The largest one between weights of the method's head and of this one."""
        pairs = zip(self.run.method.heads[self.task].parameters(), self.head, strict=True)
        return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)
