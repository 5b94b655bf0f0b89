"""What tests inherit from the shell in which they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_runs_tracker_and_cluster_of_the_shell_are_left_alone() -> None:
    gone = ["RAYCL_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"]
    names = [*gone, "RAYCL_DATA"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os, tests.conftest; print(*set({names}) & os.environ.keys())",
        ],
        cwd=ROOT,
        env=os.environ | dict.fromkeys(names, "/somewhere"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["RAYCL_DATA"]
