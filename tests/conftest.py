"""Tests have folders, trackers and clusters of their own, never those of whoever runs them."""

from __future__ import annotations

import os

import pytest

for name in ("RAYCL_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(name, None)  # commands that a test starts inherit what is left

LONG = {"end_to_end", "faults", "cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of minutes go first: at the end of a run no worker waits for another's long file."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
