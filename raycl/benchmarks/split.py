"""The classes of one data set, divided among tasks (Split-MNIST, Split-CIFAR-100, ...)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from raycl.benchmarks._pieces import (
    Piece,
    Source,
    assemble,
    check_permutation,
    describe,
    groups,
    own_outputs,
    own_readouts,
    task_order,
)
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key
from raycl.errors import UserError


class Split(Benchmark):
    """Each task owns some classes; output ids are numbered in the order in which classes appear.

    If the classes cannot be divided evenly, the first (classes mod tasks) tasks have one more.
    ``class_order: numpy`` is the order of BLIP on miniImageNet, arXiv 2105.04444; with
    ``classes: 50`` and ``fixed_seeds: {class_order: 1993}`` it chooses the classes of ImageNet-50
    in arXiv 2106.09701.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``split``."""

        dataset: DatasetConfig = DatasetConfig(name="digits")
        tasks: int = Field(5, ge=1, description="number of tasks, at most one per class")
        classes: int | None = Field(
            None, ge=2, description="only the first so many classes of the order; default: all"
        )
        class_order: Literal["seed", "numpy", "none"] | tuple[int, ...] = Field(
            "seed",
            description="seed: random.Random(seed).shuffle; "
            "numpy: numpy.random.RandomState(seed).permutation; none: the data set's; or a list",
        )

        from_folder = True

        @model_validator(mode="after")
        def _val(self) -> Self:
            if self.validation == "folder" and self.dataset.name != "folder":
                raise ValueError(
                    "validation: folder takes the images in the folder val of an image folder, and "
                    f"dataset is {self.dataset.name}"
                )
            return self

    config: Config

    def default_label(self) -> str:
        """E.g. ``split-digits-5``, or ``split-imagenet-first50-5`` with ``classes: 50``."""
        some = f"first{self.config.classes}-" if self.config.classes else ""
        return f"split-{self.config.dataset.label}-{some}{self.config.tasks}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``."""
        return [self.config.dataset.model_copy(update=self._update())]

    def _update(self) -> dict[str, bool]:
        return {"validation": True} if self.config.validation == "folder" else {}

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``. Domain readout only if all tasks have equally many classes."""
        config = self.config
        source = Source(data[key(self.datasets()[0])], device)
        names = source.data.classes
        order = class_order(config.class_order, len(names), seed)
        if config.classes is not None:
            if config.classes > len(order):
                what = f"{config.classes} classes, but {config.dataset.label} has {len(order)}"
                raise UserError("benchmark.classes", what)
            if config.tasks > config.classes:
                what = f"{config.tasks} tasks, but there are {config.classes} classes"
                raise UserError("benchmark.tasks", what, "see benchmark.classes")
            order = order[: config.classes]
        parts = groups(order, config.tasks, "benchmark.tasks", config.dataset.label)
        pieces = [
            Piece(source, part, outputs, describe([names[c] for c in part]))
            for part, outputs in zip(parts, own_outputs(parts), strict=True)
        ]
        return assemble(pieces, own_readouts(parts), config.validation, seed)


def class_order(order: str | tuple[int, ...], count: int, seed: int) -> list[int]:
    """Class ids in the order in which they are learnt."""
    if isinstance(order, tuple):
        return check_permutation(order, count, "benchmark.class_order")
    if order == "numpy":
        return task_order(count, seed)
    classes = list(range(count))
    if order == "seed":
        random.Random(seed).shuffle(classes)
    return classes
