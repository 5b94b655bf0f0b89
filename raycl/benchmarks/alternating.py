"""Several data sets, each split into tasks, their tasks mixed (CIFAR-10 and CIFAR-100 in BLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from raycl.benchmarks._pieces import (
    Piece,
    Source,
    assemble,
    describe,
    groups,
    own_outputs,
    own_readouts,
    task_order,
)
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key

MEAN, STD = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
"""Mean and standard deviation with which BLIP normalises both data sets."""


class Part(BaseModel):
    """A data set and the number of tasks it is split into."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetConfig
    tasks: int = Field(ge=1, description="number of tasks, at most one per class")


class Alternating(Benchmark):
    """The tasks of all data sets in one stream; inside a data set classes keep its own order.

    Tasks are numbered data set by data set. ``order: seed`` takes them in the order
    ``RandomState(seed).permutation(number of tasks)``, which is *not* strictly alternating;
    ``none`` takes one of each data set in turn, as long as it has any. The defaults are the
    scenario "cifar" of BLIP, arXiv 2105.04444.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``alternating``."""

        parts: tuple[Part, ...] = Field(
            (
                Part(dataset=DatasetConfig(name="cifar10", mean=MEAN, std=STD), tasks=5),
                Part(dataset=DatasetConfig(name="cifar100", mean=MEAN, std=STD), tasks=5),
            ),
            min_length=2,
            description="the data sets, each with its number of tasks",
        )
        order: Literal["seed", "none"] = Field(
            "seed", description="seed: a random order of all tasks; none: one of each in turn"
        )

    config: Config

    def default_label(self) -> str:
        """E.g. ``alternating-cifar10-cifar100-10``."""
        names = "-".join(part.dataset.label for part in self.config.parts)
        return f"alternating-{names}-{sum(part.tasks for part in self.config.parts)}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``."""
        return [part.dataset for part in self.config.parts]

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``. Domain readout only if all tasks have equally many classes."""
        by_part: list[list[tuple[Source, tuple[int, ...], str]]] = []
        for i, part in enumerate(self.config.parts):
            source, label = Source(data[key(part.dataset)], device), part.dataset.label
            names = source.data.classes
            where = f"benchmark.parts[{i}].tasks"
            cut = groups(range(len(names)), part.tasks, where, label)
            by_part.append(
                [(source, c, f"{label}: {describe([names[k] for k in c])}") for c in cut]
            )
        if self.config.order == "seed":
            tasks = list(chain(*by_part))
            tasks = [tasks[i] for i in task_order(len(tasks), seed)]
        else:
            tasks = [task for turn in zip_longest(*by_part) for task in turn if task]
        classes = [c for _, c, _ in tasks]
        pieces = [
            Piece(source, c, outputs, about)
            for (source, c, about), outputs in zip(tasks, own_outputs(classes), strict=True)
        ]
        return assemble(pieces, own_readouts(classes), self.config.validation, seed)
