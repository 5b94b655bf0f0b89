"""Base of methods that give each task a binary mask over the weights of one frozen network."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.methods._layered import Layered
from raycl.nn.masks import TaskMasks


class Masked(Layered):
    """Weights of a layer are W m in a task, m of zeros and ones; only m and the head are learnt.

    While a task is learnt, real numbers stand behind its masks; when it ends, bits remain.
    """

    @abstractmethod
    def start(self, weight: Tensor) -> Tensor:
        """Make the real numbers behind the mask of a weight, in its shape, as a task starts."""

    @abstractmethod
    def binary(self, values: Tensor) -> Tensor:
        """Turn real numbers into zeros and ones, with straight-through gradients."""

    def new_values(self) -> TaskMasks:
        """See ``Layered.new_values``."""
        start = [self.start(layer.weight.detach()) for layer in self.layers.values()]
        return TaskMasks(start, self.binary)

    def weights(self, task: int) -> list[Tensor]:
        """See ``Layered.weights``."""
        pairs = zip(self.layers.values(), self.masks(task).masks(), strict=True)
        return [layer.weight * mask for layer, mask in pairs]

    def masks(self, task: int) -> TaskMasks:
        """The masks of a task."""
        masks = self.own(task).values
        assert isinstance(masks, TaskMasks)
        return masks

    def end_task(self, task: Task) -> None:
        """Keep the task's masks as bits."""
        self.masks(task.info.index).finish()

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Share of the weights that the last task uses."""
        masks = torch.cat([mask.flatten().bool() for mask in self.masks(self.index).masks()])
        return {"mask_share": float(masks.float().mean())}
