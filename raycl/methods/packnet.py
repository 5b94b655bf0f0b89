"""PackNet: each task keeps some of the weights that are free, and gives the others back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from raycl.benchmarks.base import Task
from raycl.errors import UserError
from raycl.methods._layered import weighted_layers
from raycl.methods._per_task import PerTask
from raycl.methods.base import Context, Phase
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.optim import make_schedule

MOST_TASKS = 255
"""Owners are bytes, and 0 is none."""


class PackNet(PerTask):
    """One network in which every weight belongs to one task, and later tasks read it.

    Paper:
        Mallya & Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative
        Pruning", CVPR 2018, arXiv 1711.05769. Its code was not read for this.

    Phases of a task:
        ``train``: all free weights are trained, while those of earlier tasks are read but stay.
        Then, in each convolution and linear layer, the ``prune`` share of them with the smallest
        magnitude becomes 0 and free again; the others are the task's from now on. ``retrain``: what
        it has kept is trained once more, without the others.

    Loss of both: cross-entropy over the task's classes.

    Symbols:
        ``owner``: for each weight the number of its task, counted from 1, or 0 for free; a byte. A
        task reads the weights of owners 1 to its own number; for it the others are 0.

    Biases, normalisations with their running statistics, and all other parameters of the network
    are trained by the first task and then stay, in eval mode; so answers for old tasks keep every
    bit. Free weights are 0 when a later task starts.

    Departures:
        * The network's weights at first, random or pre-trained, are no task: all of them are free.
        * ``prune: equal``, which is not in the paper: each task keeps the same number, with T tasks
          1 / T of all weights, the last task all that are left. With a fixed share s the n-th
          task has s^(n-1) of the weights to choose from, which ends soon in a long sequence.
        * ``retrain`` has the rate, optimiser and schedule of ``train``, and half of its epochs,
          rounded up, unless ``retrain_epochs`` says otherwise.
        * A layer's number of pruned weights is share times free ones, rounded half to even.
    """

    class Config(PerTask.Config):
        """Options of packing."""

        prune: Annotated[float, Field(ge=0, lt=1)] | Literal["equal"] = Field(
            0.75, description="share of its weights that a task gives back; equal: see there"
        )
        retrain_epochs: int | None = Field(
            None, ge=1, description="epochs after pruning; default: half of train.epochs"
        )

    fixed = ()
    owner: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        tasks = len(context.tasks)
        if tasks > MOST_TASKS:
            raise UserError(
                "benchmark",
                f"packnet counts up to {MOST_TASKS} tasks in a byte, and here are {tasks}",
                "take fewer",
            )
        self.layers = weighted_layers(self.backbone, config.name)
        self.sizes = [layer.weight.numel() for layer in self.layers.values()]
        self.register_buffer("owner", torch.zeros(sum(self.sizes), dtype=torch.uint8))

    def owned(self) -> list[tuple[Tensor, Tensor]]:
        """The weight of each layer, and its owners as a view in its shape."""
        parts = torch.split(self.owner, self.sizes)
        weights = [layer.weight for layer in self.layers.values()]
        return [(w, part.view(w.shape)) for w, part in zip(weights, parts, strict=True)]

    def begin_task(self, task: Task) -> None:
        """Let the task have all free weights, until it is pruned."""
        self.owner[self.owner == 0] = task.info.index + 1

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``; the gradient reaches the weights of the task itself."""
        number, tensors = task_id + 1, {}
        for name, (weight, owner) in zip(self.layers, self.owned(), strict=True):
            earlier = (owner > 0) & (owner < number)
            read = torch.where(earlier, weight.detach(), 0)
            tensors[f"{name}.weight"] = torch.where(owner == number, weight, read)
        return functional_call(self.backbone, tensors, (images,), tie_weights=False)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; normalisations learn in the first task only."""
        super().train(mode)
        if self.index > 0:
            freeze_batch_norm(self.backbone)
        return self

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``: in the first task the network, later its layers."""
        parameters = dict(self.backbone.named_parameters())
        return (
            list(parameters.values())
            if task == 0
            else [parameters[f"{n}.weight"] for n in self.layers]
        )

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``train`` and ``retrain``."""
        (train,) = super().phases(task)
        index, config = task.info.index, self.context.train
        train = replace(train, after_step=self.keeper(index))
        epochs = self.config.retrain_epochs or (train.epochs + 1) // 2
        again = config.model_copy(update={"epochs": epochs})
        retrain = replace(
            train,
            name="retrain",
            epochs=epochs,
            schedule=lambda optimizer: make_schedule(optimizer, again),
            before=lambda: self.prune(index),
        )
        return [train, retrain]

    def keeper(self, index: int) -> Callable[[], None]:
        """Make a function for the end of each step, which puts weights of earlier tasks back.

        Their gradient is 0, but weight decay is not.
        """
        old = [
            (weight, (owner > 0) & (owner <= index), weight.detach().clone())
            for weight, owner in (self.owned() if index else [])
        ]

        @torch.no_grad()
        def keep() -> None:
            for weight, earlier, value in old:
                weight.copy_(torch.where(earlier, value, weight))

        return keep

    @torch.no_grad()
    def prune(self, index: int) -> None:
        """Give back a task's smallest weights, which become 0, in each layer."""
        for weight, owner in self.owned():
            mine = owner == index + 1
            count = self.pruned(int(mine.sum()), index)
            size = torch.where(mine, weight.abs(), torch.inf).flatten()
            smallest = size.topk(count, largest=False, sorted=False).indices
            free = torch.zeros_like(size, dtype=torch.bool)
            free[smallest] = True
            owner[free.view(owner.shape)] = 0
            weight[free.view(owner.shape)] = 0

    def pruned(self, count: int, index: int) -> int:
        """Number of weights, of ``count`` in a layer, that a task gives back."""
        if self.config.prune == "equal":
            return count - round(count / (len(self.context.stream.tasks) - index))
        return round(float(self.config.prune) * count)

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``: the byte of each weight that says it is this task's.

        The weights themselves are those of the network, which all tasks share. The bytes of weights
        that are still free are no task's.
        """
        return {"weights": [self.owner[self.owner == task + 1]]}

    def diagnostics(self) -> dict[str, float]:
        """Share of the weights of layers that no task has."""
        return {"free_share": float((self.owner == 0).float().mean())}
