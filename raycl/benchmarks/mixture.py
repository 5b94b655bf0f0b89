"""Several data sets, each one task, brought to one shape (the five-dataset mixture of BLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from raycl.benchmarks._pieces import Source, assemble, fitted, own_readouts, task_order
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key


class Mixture(Benchmark):
    """Each data set is one task with all its classes.

    Smaller images get a border of zeros up to ``size``, and grey ones three equal channels if any
    data set has colour. Normalisation is per data set; with a border it is that of the bordered
    images (MNIST: mean .1, std .2752). ``order: seed`` is ``RandomState(seed).permutation``.
    Source: the scenario "mixture5" of BLIP, arXiv 2105.04444, which lists CIFAR-10, notMNIST,
    MNIST, SVHN and Fashion-MNIST.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``mixture``."""

        datasets: tuple[DatasetConfig, ...] = Field(
            min_length=2, description="the data sets, each one task"
        )
        size: int = Field(
            32, ge=4, le=1024, description="side of all images after the border, pixels"
        )
        order: Literal["seed", "none"] = Field(
            "seed", description="seed: a random order; none: as listed"
        )

    config: Config

    def default_label(self) -> str:
        """E.g. ``mixture-5``."""
        return f"mixture-{len(self.config.datasets)}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``."""
        return list(self.config.datasets)

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``. Domain readout only if all tasks have equally many classes."""
        configs = self.config.datasets
        order = range(len(configs))
        chosen = task_order(len(configs), seed) if self.config.order == "seed" else order
        sources = [Source(data[key(configs[i])], device) for i in chosen]
        about = [f"{s.data.name}: {len(s.data.classes)} classes" for s in sources]
        pieces = fitted(sources, about, self.config.size)
        readouts = own_readouts([piece.classes for piece in pieces])
        return assemble(pieces, readouts, self.config.validation, seed)
