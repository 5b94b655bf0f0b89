"""Base of methods that replay images inverted from their own old network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Context, Losses, MethodConfig, Phase, from_task
from raycl.nn.generator import Generator
from raycl.nn.inversion import (
    Inversion,
    Smoothness,
    Statistics,
    Term,
    content,
    diversity,
    normalisations,
)

GRID = 8
"""Number of rows and of columns of the picture."""


@dataclass(frozen=True)
class Replay:
    """Real and synthetic images of one step, and the teacher's answers for them.

    Attributes:
        images: (2B, C, H, W), B real ones and then B synthetic ones.
        features: Features of the teacher, (2B, F).
        logits: Logits of the teacher, (2B, num_outputs).
        chosen: int64 (B,), the old class that the teacher sees in each synthetic image.
    """

    images: Tensor
    features: Tensor
    logits: Tensor
    chosen: Tensor


class Dreaming(TaughtClassifier):
    """A classifier with a generator, trained against its frozen copy at the start of each task.

    The first phase of every task but the first is ``inversion``: the network as it was before the
    task (``teacher``, in eval mode) stays as it is, and the generator learns to make images that it
    takes for its own. In the phase ``train``, every batch of B real images has B new ones of the
    generator beside it (in eval mode, without augmentation), with the teacher's choice as label.

    Where the network has no batch normalisation, there are no running statistics, and the term that
    compares with them is left out. Where only one class is old, diversity is 0.
    """

    class Config(MethodConfig):
        """Options of inversion."""

        power_iterations: int = Field(
            10_000,
            ge=1,
            description="S, steps of the generator before each task but the first",
            json_schema_extra=from_task(2),
        )
        inversion_batch_size: int | None = Field(
            None,
            ge=1,
            description="images per step of the generator; default: train.batch_size",
            json_schema_extra=from_task(2),
        )
        inversion_lr: float = Field(
            1e-3,
            gt=0,
            description="learning rate of the generator's Adam",
            json_schema_extra=from_task(2),
        )
        content_weight: float = Field(
            1.0, ge=0, description="weight of the cross-entropy", json_schema_extra=from_task(2)
        )
        content_temperature: float = Field(
            1000.0,
            gt=0,
            description="divides the logits in the cross-entropy",
            json_schema_extra=from_task(2),
        )
        stat_weight: float = Field(
            50.0,
            ge=0,
            description="weight of the statistics of layers",
            json_schema_extra=from_task(2),
        )
        prior_weight: float = Field(
            1e-3,
            ge=0,
            description="weight of the smoothness of images",
            json_schema_extra=from_task(2),
        )
        latent: int = Field(1000, ge=1, description="length of the generator's noise")
        generator_reset: bool = Field(
            False,
            description="start generator and Adam anew before each inversion",
            json_schema_extra=from_task(2),
        )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.generator = Generator(context.stream.input_shape, config.latent)
        self.index = 0
        self._adam: dict[str, Any] | None = None

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's Adam, which outlives its phase."""
        return {"adam": self._adam}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` gave."""
        self._adam = state["adam"]

    def add_task(self, task: TaskInfo) -> None:
        """See ``TaughtClassifier.add_task``."""
        super().add_task(task)
        self.index = task.index

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; the teacher stays in eval mode, the generator but for its phase.

        The loss of the inversion puts the generator in train mode.
        """
        super().train(mode)
        self.generator.eval()
        return self

    # ------------------------------------------------------------------ inversion

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``inversion``, except in the first task, and ``train``."""
        train = super().phases(task)
        return train if self.teacher is None else [self.inversion(self.teacher, task.info), *train]

    def inversion(self, teacher: nn.Sequential, task: TaskInfo) -> Phase:
        """The phase in which the generator learns what the teacher knows."""
        config = self.config
        steps = math.gcd(config.power_iterations, 100)
        engine = self.engine(teacher, self.old(task))
        size = config.inversion_batch_size or self.context.train.batch_size
        adam: list[torch.optim.Adam] = []

        def optimizer() -> torch.optim.Adam:
            made = torch.optim.Adam(self.generator.parameters(), lr=config.inversion_lr, fused=True)
            # the moments belong to the phase while it lasts
            carried, self._adam = self._adam, None
            if carried is not None:
                made.load_state_dict(carried)
            adam[:] = [made]
            return made

        def reset() -> None:
            if config.generator_reset:
                self.generator.reset()
                self._adam = None

        def loss(noise: Tensor) -> Losses:
            self.generator.train()
            return engine.losses(self.generator(noise))

        def keep() -> None:
            self._adam = adam[0].state_dict()

        def batches() -> Iterator[Tensor]:
            return (self.noise(size) for _ in range(steps))

        return Phase(
            name="inversion",
            epochs=config.power_iterations // steps,
            optimizer=optimizer,
            batches=batches,
            loss=loss,
            before=reset,
            after=keep,
            validate=False,
        )

    def engine(self, teacher: nn.Sequential, old: Tensor) -> Inversion:
        """The objective of the inversion.

        Args:
            teacher: The network to invert.
            old: int64 (n_old,), the outputs it has learnt.
        """
        config = self.config
        layers = normalisations(teacher)
        terms: dict[str, tuple[float, Term]] = {
            "content": (config.content_weight, content(config.content_temperature)),
            "diversity": (1.0, diversity),
        }
        if layers:
            terms["statistics"] = (config.stat_weight, Statistics(layers))
        shape = self.context.stream.input_shape[1:]
        terms["prior"] = (config.prior_weight, Smoothness(shape, self.context.device))
        return Inversion(teacher, old, terms, layers)

    # ------------------------------------------------------------------ replay

    def seen(self, task: TaskInfo) -> Tensor:
        """Sorted output ids of all tasks up to one, itself included: int64 (n_seen,)."""
        return torch.tensor(
            sorted(self.context.stream.seen(task.index)), device=self.context.device
        )

    def noise(self, size: int) -> Tensor:
        """Draw noise, (size, latent) from N(0, I).

        On the CPU from the method's generator, elsewhere from the device's own, which the loop
        seeds and saves as well: a copy from the CPU would wait for the device.
        """
        device = self.context.device
        generator = self.context.method_generator if device.type == "cpu" else None
        return torch.randn(size, self.config.latent, generator=generator, device=device)

    @torch.no_grad()
    def replay(self, real: Tensor, old: Tensor) -> Replay:
        """Make as many synthetic images as real ones, and pass both through the teacher.

        Args:
            real: (B, C, H, W).
            old: See ``old``.
        """
        assert self.teacher is not None
        backbone, head = self.teacher
        with torch.inference_mode():
            synthetic = self.generator(self.noise(len(real)))
        images = torch.cat([real, synthetic.to(real.dtype)])
        features = backbone(images)
        logits = head(features).float()
        chosen = old[logits[len(real) :].index_select(1, old).argmax(1)]
        return Replay(images, features, logits, chosen)

    # ------------------------------------------------------------------ pictures

    def pictures(self) -> dict[str, Tensor]:
        """See ``Method.pictures``: ``inversion``, samples of the generator by class.

        The generator as the inversion before the last task left it, so classes of the tasks before
        that; nothing after the first task. 8 x 8 samples, in the order of the teacher's choice, row
        by row: with at most 8 old classes each has rows of its own.
        """
        channels = self.context.stream.input_shape[0]
        if self.teacher is None or channels not in (1, 3):
            return {}
        return {"inversion": self.grid(self.teacher)}

    def grid(self, teacher: nn.Sequential) -> Tensor:
        """Draw the picture: uint8 (3, 8 H, 8 W)."""
        stream, device = self.context.stream, self.context.device
        old = self.old(stream.tasks[self.index])
        generator = torch.Generator().manual_seed(0)
        cells = GRID * GRID
        with torch.inference_mode():
            parts = []
            for _ in range(4 if len(old) <= GRID else 1):
                noise = torch.randn(cells, self.config.latent, generator=generator)
                images = self.generator(noise.to(device))
                chosen = teacher(images).index_select(1, old).argmax(1)
                parts.append((images.float().cpu(), chosen.cpu()))
            images, chosen = (torch.cat(part) for part in zip(*parts, strict=True))
        mean, std = (torch.tensor(values[0]).view(-1, 1, 1) for values in (stream.mean, stream.std))
        pixels = (images * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
        height, width = pixels.shape[2:]
        sheet = pixels.new_zeros(cells, *pixels.shape[1:])
        for cell, source in arrangement(chosen, len(old), cells):
            sheet[cell] = pixels[source]
        rows = sheet.view(GRID, GRID, -1, height, width).permute(2, 0, 3, 1, 4)
        return rows.reshape(-1, GRID * height, GRID * width).expand(3, -1, -1).contiguous()


def arrangement(chosen: Tensor, classes: int, cells: int) -> list[tuple[int, int]]:
    """Place samples in a picture of ``cells`` cells, in rows of 8.

    Args:
        chosen: int64 (N,), N >= cells, the class of each sample.
        classes: Number of classes.
        cells: Number of samples that fit.

    Returns:
        Pairs of cell and sample. Up to 8 classes have rows of their own, as many as fit; cells
        stay empty where a class has too few samples. More are one behind the other.
    """
    if classes > GRID:
        return list(enumerate(chosen[:cells].argsort(stable=True).tolist()))
    placed, start = [], 0
    for label in range(classes):
        rows = GRID // classes + (label < GRID % classes)
        samples = (chosen == label).nonzero().flatten()[: rows * GRID].tolist()
        placed += [(start + i, source) for i, source in enumerate(samples)]
        start += rows * GRID
    return placed
