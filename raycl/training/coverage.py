"""Which entries of the matrices are measured, and on which images each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from raycl.benchmarks.base import Stream
from raycl.datasets.examples import Examples
from raycl.datasets.frozen import FrozenSet
from raycl.methods.base import Method
from raycl.training.config import EvaluateConfig

SEED = 20_260_101
"""Seed of the images that are drawn, in every trial; no generator of the training is touched."""
SETS = ("test", "validation")

Counts = NDArray[np.int64]


class Coverage:
    """The images that stand behind each entry ``R[t, i]``: all of task i, a sample of them, none.

    The diagonal and the last row are measured on all images. Every other entry is measured on
    ``limit`` images, and below the diagonal only in each row that is a multiple of ``every``. What
    is drawn depends on the position of a task and on the number of its images only, so it is the
    same in every row, for every method and in every trial.

    Args:
        config: The block ``evaluate``; ``limit`` and ``every`` count.
        sets: Images of all tasks.
        tasks: T, the number of tasks of the run.
        method: Who is measured. Where ``isolated``, entries below the diagonal are known from it,
            without measuring; where ``zero_shot``, the next task is measured, too.

    Attributes:
        is_partial: Whether entries may be of samples, or not measured.
    """

    def __init__(self, config: EvaluateConfig, sets: Stream, tasks: int, method: Method) -> None:
        self.every, self.tasks, self.method = config.every, tasks, method
        self.is_partial = config.limit is not None or config.every > 1
        data = sets.data[:tasks]
        self.whole: Mapping[str, list[Examples | None]] = {
            "test": [one.test for one in data],
            "validation": [one.validation for one in data],
        }
        self.drawn = {
            name: [_sample(one, config.limit, (i, n)) for i, one in enumerate(self.whole[name])]
            for n, name in enumerate(SETS)
        }

    def examples(self, name: str, row: int, column: int) -> Examples | None:
        """The images on which an entry is measured; ``None``: it is not.

        Args:
            name: ``test`` or ``validation``.
            row: Task that was learnt last; -1: none.
            column: Task of the images.
        """
        if row in (column, self.tasks - 1):
            return self.whole[name][column]
        if column < row and (row + 1) % self.every:
            return None
        return self.drawn[name][column]

    def images(self, name: str) -> Counts:
        """Number of images behind each entry, (T, T); 0 where nothing is measured."""
        found = np.zeros((self.tasks, self.tasks), dtype=np.int64)
        ahead = name == "test" and self.method.zero_shot
        for row in range(self.tasks):
            for column in range(min(row + 1 + ahead, self.tasks)):
                same = self.method.isolated and column < row
                one = self.examples(name, column if same else row, column)
                found[row, column] = 0 if one is None else len(one)
        return found


def _sample(examples: Examples | None, limit: int | None, who: tuple[int, int]) -> Examples | None:
    """The images drawn of a set, all different and in order; the set itself if it has no more.

    Args:
        examples: The set.
        limit: Number of images; ``None``: all.
        who: Numbers that tell the sets of a stream apart.
    """
    if examples is None or limit is None or limit >= len(examples):
        return examples
    drawn = np.random.default_rng([SEED, *who]).choice(len(examples), limit, replace=False)
    index = torch.from_numpy(np.sort(drawn)).to(examples.labels.device)
    return examples.sample(index) if isinstance(examples, FrozenSet) else examples.subset(index)
