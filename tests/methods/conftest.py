"""Runs of two tasks of two classes, on images made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raycl.testing import toy_data
from raycl.training.run import Run

Build = Callable[..., Run]


@pytest.fixture
def build() -> Build:
    def build(
        method: str,
        /,
        *,
        benchmark: Any = None,
        network: Any = None,
        train: Any = None,
        **options: Any,
    ) -> Run:
        return Run(
            {
                "benchmark": {
                    "name": "split",
                    "dataset": "digits",
                    "tasks": 2,
                    **(benchmark or {}),
                },
                "method": {"name": method, **options},
                "network": network or {"name": "mlp", "hidden": [16]},
                "train": {"epochs": 1, "batch_size": 8, "lr": 0.05, **(train or {})},
                "seed": 0,
            },
            toy_data(),
        )

    return build
