"""A network learns from a frozen pre-trained one what images look like, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods.base import Context, Method, MethodConfig, Phase
from raycl.networks.base import find_network
from raycl.nn.optim import make_optimizer, make_schedule

BATCH = 512
"""Images at a time where nothing is trained."""
RIDGE = 1e-3
"""Penalty of the head's least squares, as a share of the mean variance of the features."""


class RegressFeatures(Method):
    """The features of a network are regressed on those of a frozen one: weights without a hub.

    Paper:
        None of its own. Regression of another network's features is the "hint" of Romero et al.,
        "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, here at the last layer and
        alone. It stands in for pre-trained weights that cannot be fetched: see `raycl pretrain`.

    Loss of an image x, f the network, g the source:
        L = mean_d (W f(x) + b - z_d)^2,  z_d = (g_d(x) - m_d) / s_d

        m_d and s_d are mean and standard deviation of the source's feature d over the training
        images of the first task. So 1 - L is the share of the variance that is explained.

    Symbols:
        g: ``source``, in eval mode, which sees the same image, resized to ``source_size`` pixels
        (bilinear, antialiased) and normalised as its own weights need it. W, b: the module
        ``projection``.

    ``schedule: cosine`` falls after every step here, not after every epoch: a few epochs over many
    images are the rule.

    Without augmentation the source sees each image once; with ``augment: flip`` once as it is and
    once mirrored, and each epoch draws one of the two. Both hold as far as ``evaluate.cache_mb``
    goes; beyond it, and with any other augmentation, the source sees every batch.

    Labels:
        Nothing that is trained depends on a label. When a task has been learnt, a linear head over
        the task's classes is fitted to its training labels by least squares, so that there is an
        accuracy to measure. Only ``logits`` reads it; the weights file goes without. The
        measure of the features is the linear probe of the sweep file, ``evaluate: {probe: {}}``.
        On several tasks, heads of earlier ones are not fitted again: what they lose is how far the
        features have moved.

    Departures from arXiv 1412.6550:
        * Any two networks, one pooled feature vector each, no second stage with labels.

    Raises:
        UserError: An epoch is to be selected, which takes labels or a loss that is not measured; or
            images have other channels than the source takes.
    """

    class Config(MethodConfig):
        """Options of the regression."""

        networks: ClassVar[tuple[str, ...]] = ("source",)

        source: dict[str, Any] = Field(
            description="block of the frozen network whose features are learnt, with its weights"
        )
        source_size: int | None = Field(
            None, ge=4, le=1024, description="pixels a side that the source sees; default: as is"
        )

    uses_task_id = False
    frozen_training = True
    fixed = ("source.",)

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        if context.train.select != "last":
            what = f"{context.train.select} chooses an epoch by what this method does not look at"
            raise UserError("train.select", what, "take last")
        channels, *sides = context.stream.input_shape
        height, width = [config.source_size] * 2 if config.source_size else sides
        cls, options = find_network(config.source)
        statistics = cls.normalisation(options)
        wanted = channels if statistics is None else len(statistics[0])
        if channels not in (1, wanted):
            what = f"images have {channels} channels, and the source takes {wanted}"
            raise UserError("method.source", what)
        self.statistics, self.size = statistics, (height, width)
        self.flips = context.train.augment == "flip"
        self.source = context.build_network(config.source, shape=(wanted, height, width))
        self.backbone = context.build_network()
        self.projection = nn.Linear(self.backbone.num_features, self.source.num_features)
        self.head = nn.Linear(self.backbone.num_features, context.stream.num_outputs)
        self.register_buffer("centre", torch.zeros(self.source.num_features))
        self.register_buffer("scale", torch.ones(self.source.num_features))
        self.index = 0

    centre: Tensor
    scale: Tensor

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; the source stays in eval mode."""
        super().train(mode)
        self.source.eval()
        return self

    def add_task(self, task: TaskInfo) -> None:
        """Remember the task whose statistics images are normalised with."""
        self.index = task.index

    def begin_task(self, task: Task) -> None:
        """Measure mean and standard deviation of the source's features, before the first task."""
        if task.info.index:
            return
        width, count = self.source.num_features, 0
        total, square = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        for batch in task.train.batches(BATCH):
            values = self._frozen(batch).reshape(-1, width).double().cpu()
            total, square = total + values.sum(0), square + values.square().sum(0)
            count += len(values)
        mean = total / count
        deviation = (square / count - mean.square()).clamp(min=0).sqrt()
        self.centre.copy_(mean)
        self.scale.copy_(deviation.where(deviation > 0, 1.0))

    def frozen_values(self, images: Tensor) -> Tensor:
        """The source's features (B, F), or (B, 2, F) with those of the mirrored image."""
        if not self.flips:
            return self._source_features(images)
        both = (self._source_features(one) for one in (images, images.flip(-1)))
        return torch.stack(list(both), 1)

    def _source_features(self, images: Tensor) -> Tensor:
        """Features that the source has of images, which come normalised for the stream."""
        if self.statistics is not None:
            mean, std = (one[self.index] for one in self._stream_statistics())
            images = images * _channels(std, images) + _channels(mean, images)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if self.statistics is not None:
            mean, std = self.statistics
            images = (images - _channels(mean, images)) / _channels(std, images)
        return self.source(images)  # type: ignore[no-any-return]

    def _stream_statistics(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        return self.context.stream.mean, self.context.stream.std

    def phases(self, task: Task) -> list[Phase]:
        """One phase, ``regress``; the last epoch counts."""
        train = self.context.train
        images = len(task.train)
        short = images % train.batch_size > 0 and not train.drop_last
        steps = train.epochs * (images // train.batch_size + short)
        smooth = train.schedule.name == "cosine"

        def schedule(optimizer: torch.optim.Optimizer) -> Any:
            if smooth:
                return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            return make_schedule(optimizer, train)

        return [
            Phase(
                name="regress",
                epochs=train.epochs,
                optimizer=lambda: make_optimizer(self.trainable(), train),
                schedule=schedule,
                step_schedule=smooth,
                batches=lambda: self.train_batches(task),
                loss=self.objective(),
                clip_norm=train.clip_norm,
                validate=False,  # the head is fitted afterwards
            )
        ]

    def trainable(self) -> list[nn.Parameter]:
        """The network and the linear map."""
        return [*self.backbone.parameters(), *self.projection.parameters()]

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch; mirrored here and not by the loop, so that the source's values are kept."""
        train, generator = self.context.train, self.context.method_generator
        batches = task.train.batches(
            train.batch_size,
            generator=self.context.data_generator,
            augment=None if self.flips else self.context.augment,
            drop_last=train.drop_last,
        )
        for batch in batches:
            values = self._frozen(batch)
            if self.flips:
                mirrored = torch.randint(2, (len(batch),), generator=generator).to(values.device)
                chosen = mirrored.bool().view(-1, 1, 1, 1)
                batch.images = torch.where(chosen, batch.images.flip(-1), batch.images)
                values = values[torch.arange(len(batch), device=values.device), mirrored]
            batch.frozen = values
            yield batch

    def objective(self) -> Callable[[Batch], Tensor]:
        """The mean squared error of standardised features."""

        def loss(batch: Batch) -> Tensor:
            predicted = self.projection(self.backbone(batch.images))
            return F.mse_loss(predicted.float(), (self._frozen(batch) - self.centre) / self.scale)

        return loss

    @staticmethod
    def _frozen(batch: Batch) -> Tensor:
        """The source's features of a batch, which the loop has brought along."""
        assert batch.frozen is not None
        return batch.frozen

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Fit the head over the task's classes, to measure with."""
        train, classes = task.train, torch.tensor(task.info.classes)
        rows = torch.split(torch.arange(len(train), device=train.labels.device), BATCH)
        found = [self.features(train.prepare(train.raw(one)), None).double().cpu() for one in rows]
        features, labels = torch.cat(found), train.labels.cpu()
        wanted = (labels.unsqueeze(1) == classes).double()
        weight, bias = least_squares(features, wanted)
        self.head.weight[classes.to(self.head.weight.device)] = weight.to(self.head.weight)
        self.head.bias[classes.to(self.head.bias.device)] = bias.to(self.head.bias)

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.features``: the network's own; the task id is not used."""
        features: Tensor = self.backbone(images)
        return features.float()

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.logits``; the task id is not used."""
        logits: Tensor = self.head(self.features(images, task_id))
        return logits


def least_squares(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map with bias that is nearest to what is wanted, with a small penalty.

    Args:
        features: float64 (N, F).
        wanted: float64 (N, K).

    Returns:
        Weight (K, F) and bias (K,).
    """
    mean, target = features.mean(0), wanted.mean(0)
    centred = features - mean
    gram = centred.T @ centred / len(features)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - target) / len(features)).T
    return weight, target - weight @ mean


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Values per channel that spread over images: (C, 1, 1)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
