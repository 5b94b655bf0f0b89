"""Optimiser and learning-rate schedule, from one block of the sweep file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from raycl.nn.precision import Precision

Augmentation = Literal[
    "none",
    "flip",
    "crop_flip",
    "jitter_crop_flip",
    "resized_crop_flip",
    "original_crop_flip",
    "hcl",
]


class Schedule(BaseModel):
    """Learning rate over the epochs of one phase; starts anew in each phase."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["constant", "step", "cosine", "coda_cosine", "plateau"] = Field(
        "constant",
        description="coda_cosine: that of CODA-Prompt, the first two epochs at full rate, then "
        "along a cosine towards 0",
    )
    milestones: tuple[int, ...] = Field(
        (), description="step: multiply by `factor` before these epochs"
    )
    factor: float = Field(0.1, gt=0, lt=1, description="step, plateau: multiplier")
    patience: int = Field(5, ge=1, description="plateau: epochs without a better score")
    min_lr: float = Field(1e-4, ge=0, description="plateau: the phase ends below this rate")

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones go with, and only with, the step schedule")
        return self


class TrainConfig(BaseModel):
    """Options of a phase of ordinary training, the ``train`` block of a sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=1, description="per task")
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, description="learning rate at the start of each task")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD only")
    nesterov: bool = Field(False, description="SGD only")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(None, gt=0, description="bound of the gradient's global norm")
    augment: Augmentation = Field(
        "none",
        description="crop_flip: random crop after 4 pixels of zero padding, horizontal flip; "
        "jitter_crop_flip: brightness and contrast before it; "
        "resized_crop_flip: a random part of the image, enlarged, and flip; "
        "original_crop_flip: the same, cut out before images become `size` or `resize` (those "
        "held in memory at 64 pixels or less, and those that a method keeps: after); "
        "hcl: crop_flip, then jitter of colours, grey, and blur above 32 pixels",
    )
    drop_last: bool = Field(False, description="leave out a last short batch")
    select: Literal["last", "validation_loss", "validation_accuracy", "seen_accuracy"] = Field(
        "last",
        description="which epoch's weights a task ends with; seen_accuracy: by the mean accuracy "
        "on validation data of all tasks so far, each readout counted alike",
    )
    select_tolerance: float | None = Field(
        None,
        ge=0,
        description="keep the last epoch at most so far below the one kept before it; "
        "default: the first of the best",
    )
    patience: int | None = Field(
        None, ge=1, description="end a task's training so many epochs after the kept one"
    )
    precision: Precision = Field(
        "float32", description="precision of losses; bfloat16: autocast, weights stay float32"
    )
    channels_last: bool = Field(
        False, description="memory format of convolutions: faster on many devices, rounds otherwise"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError("momentum and nesterov are for optimizer: sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        if self.schedule.name == "plateau" and self.select == "last":
            raise ValueError("the plateau schedule follows a score: set select")
        if self.schedule.name == "plateau" and self.lr < self.schedule.min_lr:
            raise ValueError("lr is below schedule.min_lr, where the plateau schedule ends a phase")
        for name in ("select_tolerance", "patience"):
            if getattr(self, name) is not None and self.select == "last":
                raise ValueError(f"{name} is about the epoch that is kept: set select")
        return self


def make_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    """Make the optimiser that a phase starts with."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(parameters, lr=config.lr, weight_decay=config.weight_decay)


def keep(optimizer: torch.optim.Optimizer, rows: Callable[[], Sequence[Tensor]]) -> None:
    """Let the steps of an optimiser leave some rows of its parameters as they are, to the bit.

    Rows without a gradient still shrink under weight decay.

    Args:
        optimizer: Changed in place.
        rows: Called before each step: views of parameters.
    """
    before: list[tuple[Tensor, Tensor]] = []

    def remember(*_: Any) -> None:
        before[:] = [(view, view.detach().clone()) for view in rows()]

    @torch.no_grad()
    def restore(*_: Any) -> None:
        for view, values in before:
            view.detach().copy_(values)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(restore)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig
) -> torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    """Make the schedule, stepped once per epoch; a plateau schedule is stepped with the score."""
    schedule = config.schedule
    lrs = torch.optim.lr_scheduler
    if schedule.name == "step":
        return lrs.MultiStepLR(optimizer, list(schedule.milestones), schedule.factor)
    if schedule.name == "cosine":
        return lrs.CosineAnnealingLR(optimizer, config.epochs)
    if schedule.name == "coda_cosine":
        return lrs.LambdaLR(optimizer, lambda epoch: coda_cosine(epoch, config.epochs))
    if schedule.name == "plateau":
        # torch lowers the rate after MORE than `patience` bad epochs
        return lrs.ReduceLROnPlateau(
            optimizer, "max", schedule.factor, schedule.patience - 1, threshold=0.0
        )
    return None


def coda_cosine(epoch: int, epochs: int) -> float:
    """Share of the learning rate that an epoch of CODA-Prompt's cosine schedule has.

    cos(99 pi max(e - 1, 0) / (200 (E - 1))), as the code of Smith et al., "CODA-Prompt", CVPR 2023,
    arXiv 2211.13218, computes it: epochs 0 and 1 both have the full rate, and the last of E epochs
    is one step short of the end of the curve. A single epoch has the full rate.

    Args:
        epoch: e, counted from 0.
        epochs: E, of the phase.

    >>> [round(coda_cosine(epoch, 4), 3) for epoch in range(4)]
    [1.0, 1.0, 0.869, 0.509]
    """
    return math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * max(epochs - 1, 1)))
