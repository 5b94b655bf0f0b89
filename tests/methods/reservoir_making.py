"""Replay of a reservoir written out once more, item by item in float64, on a run's own data order.

Nothing is taken from ``raycl.methods``: only the network's shape, the raw images and the states of
the two generators.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycl.training.run import Run

STREAMS = {
    "split": {"name": "split", "tasks": 2},
    "permuted": {"name": "permuted", "tasks": 3},
}


def twin(generator: torch.Generator) -> torch.Generator:
    """Another generator that gives the same numbers."""
    made = torch.Generator()
    made.set_state(generator.get_state())
    return made


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rows of log sum_c exp z_c - z_y."""
    return torch.stack(
        [row.exp().sum().log() - row[y] for row, y in zip(z, labels, strict=True)]
    ).mean()


def difference(run: Run, network: torch.nn.Module) -> float:
    """The largest one between weights of the method and of a network in float64."""
    ours = [*run.method.backbone.parameters(), *run.method.head.parameters()]
    return max(
        float((a.detach().double() - b.detach()).abs().max())
        for a, b in zip(ours, network.parameters(), strict=True)
    )


@dataclass
class Item:
    """What the memory keeps of an image."""

    image: Tensor
    label: int
    task: int
    logits: Tensor


Loss = Callable[["Reference", Tensor, Tensor], tuple[Tensor, Tensor]]
"""Reference, images and labels of the batch to the loss and the batch's logits."""


class Reference:
    """A run, done again by plain SGD without augmentation."""

    def __init__(self, run: Run, loss: Loss) -> None:
        self.run, self.loss = run, loss
        self.network = copy.deepcopy(run.method.network).double()
        self.data, self.own = twin(run.random.data), twin(run.random.method)
        self.memory: list[Item] = []
        self.offered = 0

    def draw(self) -> list[Item]:
        """Stored items for one step."""
        order = torch.randperm(len(self.memory), generator=self.own)
        return [self.memory[i] for i in order[: self.run.config.train.batch_size]]

    def images(self, items: list[Item]) -> Tensor:
        """Normalised, float64."""
        return torch.stack([self.normalised(item.image, item.task) for item in items])

    def normalised(self, raw: Tensor, task: int) -> Tensor:
        """Raw images of a task, normalised with its statistics."""
        info = self.run.stream.info
        mean, std = (
            torch.tensor(x[task], dtype=torch.float64)[:, None, None] for x in (info.mean, info.std)
        )
        return (raw.double() / 255 - mean) / std

    def offer(self, item: Item, uniform: float) -> None:
        """Algorithm R for one item."""
        size, r = self.run.method.config.memory_size, int(uniform * (self.offered + 1))
        if self.offered < size:
            self.memory.append(item)
        elif r < size:
            self.memory[r] = item
        self.offered += 1

    def epoch(self, task: int) -> None:
        """One pass over a task."""
        train, examples = self.run.config.train, self.run.stream.data[task].train
        parameters = list(self.network.parameters())
        for index in torch.randperm(len(examples), generator=self.data).split(train.batch_size):
            raw, labels = examples.raw(index), examples.labels[index]
            loss, z = self.loss(self, self.normalised(raw, task), labels)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p -= train.lr * g
            uniforms = torch.rand(len(raw), generator=self.own, dtype=torch.float64).tolist()
            for i, uniform in enumerate(uniforms):
                self.offer(Item(raw[i], int(labels[i]), task, z[i].detach()), uniform)


def follows(run: Run, loss: Loss) -> Reference:
    """Both runs to the end, side by side; weights and memory agree after every epoch."""
    reference = Reference(run, loss)
    while not run.done:
        reference.epoch(run.task_index)
        run.advance()
        assert difference(run, reference.network) < 1e-6
        memory = run.method.reservoir
        assert memory.offered == reference.offered
        n = len(memory)
        assert torch.equal(memory.images[:n], torch.stack([i.image for i in reference.memory]))
        assert memory.labels[:n].tolist() == [item.label for item in reference.memory]
        assert memory.tasks[:n].tolist() == [item.task for item in reference.memory]
        if run.method.stores_logits:
            stored = torch.stack([item.logits for item in reference.memory])
            assert (memory.logits[:n].double() - stored).abs().max() < 1e-5
    return reference
