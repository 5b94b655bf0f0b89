"""One data set, each task with its pixels in another fixed order (Permuted MNIST)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raycl.benchmarks._pieces import Piece, Source, assemble, domains, task_order
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key


class Permuted(Benchmark):
    """Each task permutes the pixels of all images; no task keeps the original order.

    With r = ``RandomState(seed).permutation(tasks)``, task i takes the pixels
    ``RandomState(100 * r[i] + i).permutation(H * W)``, the same in all channels. These are the
    permutations of the scenario "pmnist" of BLIP, arXiv 2105.04444.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``permuted``."""

        dataset: DatasetConfig = DatasetConfig(name="digits")
        tasks: int = Field(10, ge=1, le=100, description="number of tasks")
        outputs: Literal["shared", "separate"] = Field(
            "shared", description="all tasks share the outputs, or each has outputs of its own"
        )

    config: Config

    def default_label(self) -> str:
        """E.g. ``permuted-mnist-10``."""
        own = "-separate" if self.config.outputs == "separate" else ""
        return f"permuted-{self.config.dataset.label}-{self.config.tasks}{own}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``."""
        return [self.config.dataset]

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``."""
        config = self.config
        source = Source(data[key(config.dataset)], device)
        classes = tuple(range(len(source.data.classes)))
        outputs, readouts = domains(config.outputs, len(classes), config.tasks)
        _, height, width = source.data.shape
        pieces = []
        for i, r in enumerate(task_order(config.tasks, seed)):
            pixels = np.random.RandomState(100 * r + i).permutation(height * width)
            order = torch.from_numpy(pixels).to(source.device)
            about = f"pixel seed {100 * r + i}"
            pieces.append(Piece(source, classes, outputs[i], about, partial(permute, order=order)))
        return assemble(pieces, readouts, config.validation, seed)


def permute(images: Tensor, order: Tensor) -> Tensor:
    """``new[p] = old[order[p]]`` for the flattened pixels p of each channel."""
    return images.flatten(2).index_select(2, order).view_as(images)
