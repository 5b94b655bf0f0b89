"""One data set, each task with its images turned by another angle (Rotated MNIST)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from raycl.benchmarks._pieces import Piece, Source, assemble, domains
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key


class Rotated(Benchmark):
    """Each task turns all images counter-clockwise about their centre (bilinear, zeros come in).

    Without ``angles`` they are ``tasks`` (10) angles at even distances from 0 to ``max_angle``
    (90), both included. The order is as given; the seed only chooses the validation images.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``rotated``."""

        dataset: DatasetConfig = DatasetConfig(name="digits")
        tasks: int | None = Field(None, ge=1, description="number of tasks; default 10")
        max_angle: float | None = Field(
            None, gt=0, lt=360, description="angle of the last task, degrees; default 90"
        )
        angles: tuple[float, ...] | None = Field(
            None, min_length=1, description="degrees, one per task; instead of tasks and max_angle"
        )
        outputs: Literal["shared", "separate"] = Field(
            "shared", description="all tasks share the outputs, or each has outputs of its own"
        )

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.angles and (self.tasks or self.max_angle):
                raise ValueError("give either angles, or tasks and max_angle")
            return self

    config: Config

    def default_label(self) -> str:
        """E.g. ``rotated-mnist-10``."""
        own = "-separate" if self.config.outputs == "separate" else ""
        return f"rotated-{self.config.dataset.label}-{len(self.angles())}{own}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``."""
        return [self.config.dataset]

    def angles(self) -> tuple[float, ...]:
        """Degrees, one per task."""
        config = self.config
        spaced = np.linspace(0, config.max_angle or 90, config.tasks or 10)
        return config.angles or tuple(spaced.tolist())

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``."""
        source = Source(data[key(self.config.dataset)], device)
        classes = tuple(range(len(source.data.classes)))
        angles = self.angles()
        outputs, readouts = domains(self.config.outputs, len(classes), len(angles))
        pieces = [
            Piece(source, classes, own, f"{a:g} degrees", partial(rotate, angle=a) if a else None)
            for a, own in zip(angles, outputs, strict=True)
        ]
        return assemble(pieces, readouts, self.config.validation, seed)


def rotate(images: Tensor, angle: float) -> Tensor:
    """All images by the same angle in degrees, counter-clockwise."""
    return tv.rotate(images, angle, InterpolationMode.BILINEAR)  # type: ignore[no-any-return]
