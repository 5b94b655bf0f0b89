"""Tests have folders, trackers and clusters of their own, never those of whoever runs them."""

from __future__ import annotations

import os

for name in ("RAYCL_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(name, None)  # commands that a test starts inherit what is left
