"""A network of its own for each task: what the others are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycl.benchmarks.base import TaskInfo
from raycl.methods._per_task import PerTask
from raycl.methods.base import Context, Method


class SeparateFinetune(PerTask):
    """A new network for each task, pre-trained or random like the first, of which all is trained.

    Nothing is shared, so nothing is forgotten: the ceiling of methods that freeze most of a network
    which all tasks share. With random weights at first, it is training from scratch.

    Paper:
        ``Finetune`` and ``Resnet_Scratch`` in the code of Ge et al., "CLR", ICCV 2023, arXiv
        2307.11386.

    Loss: cross-entropy over the classes of the task; with ``penalty``, its weight times the sum of
    the Euclidean norms of all parameters (that code: 1e-5).

    Departures: none.
    """

    fixed = ()

    def __init__(self, config: Any, context: Context) -> None:
        Method.__init__(self, config, context)
        self.networks, self.heads = nn.ModuleList(), nn.ModuleList()
        self.index = 0

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's network and head."""
        backbone = self.new_network()
        self.networks.append(backbone)
        self.add_head(backbone, task)

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``."""
        return self.networks[task_id](images)  # type: ignore[no-any-return]

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``."""
        return list(self.networks[task].parameters())

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``."""
        network = self.networks[task]
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        affine = [p for norm in norms for p in norm.parameters()]
        known = {id(p) for p in affine}
        return {
            "weights": [p for p in network.parameters() if id(p) not in known],
            "affine": affine,
            "statistics": [b for norm in norms for b in norm.buffers() if b.is_floating_point()],
        }
