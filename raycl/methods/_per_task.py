"""Base of methods that keep a frozen backbone and give every task weights of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.methods.base import (
    Classifier,
    Context,
    Losses,
    Method,
    MethodConfig,
    Phase,
    check_classes,
    masked_cross_entropy,
)
from raycl.networks.base import Backbone
from raycl.nn.norms import spare_single_values, sum_of_norms
from raycl.nn.optim import make_optimizer


class PerTask(Classifier):
    """A backbone that nothing changes, and for each task a head and other weights of its own.

    No task touches what another one has, so nothing is forgotten; the task must be known.

    Attributes:
        heads: One linear layer for each task seen, over its own classes.
        index: The task that was added last.
    """

    class Config(MethodConfig):
        """Options of every method with weights of each task."""

        penalty: float = Field(
            0.0, ge=0, description="weight of the sum of Euclidean norms of all trained tensors"
        )

    settings = frozenset({"task"})
    zero_shot = False
    uses_task_id = True
    isolated = True
    fixed: tuple[str, ...] = ("backbone.",)
    heads: nn.ModuleList

    def __init__(self, config: Any, context: Context) -> None:
        Method.__init__(self, config, context)
        check_classes(context.tasks)
        self.backbone = self.new_network()
        self.heads = nn.ModuleList()
        self.index = 0

    def new_network(self) -> Backbone:
        """A backbone that takes batches of one image."""
        backbone = self.context.build_network()
        spare_single_values(backbone)
        return backbone

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's head."""
        self.add_head(self.backbone, task)

    def add_head(self, backbone: Backbone, task: TaskInfo) -> None:
        """Add a linear layer with random weights for the features of ``backbone``."""
        head = nn.Linear(backbone.num_features, len(task.classes))
        backbone.init_head(head)
        self.heads.append(head)
        self.index = task.index

    @abstractmethod
    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """The features that a task's head reads: float (B, num_features)."""

    def logits(self, images: Tensor, task_id: int | None, frozen: Tensor | None = None) -> Tensor:
        """See ``Method.logits``; minus infinity for the classes of other tasks.

        ``frozen``, if given, is taken for the features.
        """
        if task_id is None:
            raise ValueError("the task must be known")
        features = self.embed(images, task_id) if frozen is None else frozen
        return self.spread(self.heads[task_id](features), task_id)

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.features``."""
        if task_id is None:
            raise ValueError("the task must be known")
        return self.embed(images, task_id).float()

    def spread(self, own: Tensor, task_id: int) -> Tensor:
        """Scores of a task's classes (B, K) among all outputs: float32 (B, num_outputs)."""
        stream = self.context.stream
        scores = own.new_full((len(own), stream.num_outputs), -torch.inf, dtype=torch.float32)
        outputs = torch.tensor(stream.tasks[task_id].classes, device=own.device)
        return scores.index_copy(1, outputs, own.float())

    def active(self, task: TaskInfo) -> Tensor:
        """See ``Classifier.active``: the outputs of the task itself."""
        return torch.tensor(sorted(task.classes), device=self.context.device)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """Cross-entropy over the task's classes, and the penalty."""
        active, index = self.active(task.info), task.info.index

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, index, batch.frozen)
            terms = {"cross_entropy": masked_cross_entropy(z, batch.labels, active)}
            if self.config.penalty:
                terms["penalty"] = self.config.penalty * sum_of_norms(self.penalised())
            return terms

        return loss

    def trainable(self) -> list[nn.Parameter]:
        """The parameters of the current task: its head and others of its own."""
        return [*self.own_parameters(self.index), *self.heads[self.index].parameters()]

    def penalised(self) -> list[Tensor]:
        """The tensors whose norms the penalty sums; all that are trained, unless overridden."""
        return list(self.trainable())

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """Parameters that a task trains beside its head; none, unless overridden."""
        return []

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``."""
        return {"weights": self.own_parameters(task)}


class OnAnchor(PerTask):
    """A frozen backbone that comes with its weights, or that the first task has trained.

    With ``anchor: first_task`` the first task has a phase ``anchor`` before ``train``: the whole
    backbone and the task's head learn it, with the same options. Then the backbone stays as it is,
    and every task, the first one too, trains what is its own. The first task keeps its head.
    """

    class Config(PerTask.Config):
        """Options of every method on a network that is frozen at some time."""

        anchor: Literal["weights", "first_task"] = Field(
            "weights", description="the frozen network: as it starts, or trained on the first task"
        )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        if config.anchor == "first_task":
            self.fixed = ()

    def phases(self, task: Task) -> list[Phase]:
        """The phase ``train``; in the first task, ``anchor`` comes before it if asked for."""
        (train,) = super().phases(task)
        if self.config.anchor == "weights" or task.info.index:
            return [train]
        trained = [*self.anchor_parameters(), *self.heads[0].parameters()]
        anchor = replace(
            train,
            name="anchor",
            optimizer=lambda: make_optimizer(trained, self.context.train),
        )
        return [anchor, replace(train, before=self.freeze)]

    @property
    def anchoring(self) -> bool:
        """Whether the phase that is trained now is ``anchor``; without meaning between phases."""
        trained = any(p.requires_grad for p in self.backbone.parameters())
        return trained and self.config.anchor == "first_task"

    def anchor_parameters(self) -> list[nn.Parameter]:
        """Parameters that the anchor phase trains beside the head."""
        return list(self.backbone.parameters())

    def penalised(self) -> list[Tensor]:
        """See ``PerTask.penalised``; in the anchor phase the head only."""
        return list(self.heads[0].parameters()) if self.anchoring else super().penalised()

    def freeze(self) -> None:
        """Hook before the first task trains its own weights; does nothing, unless overridden."""
