"""Arrows between packages: what ``pyproject.toml`` declares, and what is loaded in fact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_declared_arrows_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "imported,absent",
    [
        ("raycl.methods.base, raycl.training.run", {"ray", "mlflow"}),
        ("raycl.sweep.file.spec, raycl.sweep.plan.expand", {"ray", "mlflow"}),
        ("raycl.tracking.tracker", {"ray", "torch"}),
        ("raycl.cli", {"ray", "mlflow", "torch", "pandas", "matplotlib"}),
        ("envs", {"ray", "raycl"}),
    ],
)
def test_an_import_loads_nothing_heavy(imported: str, absent: set[str]) -> None:
    code = f"import sys, {imported}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert absent & set(loaded.stdout.split()) == set()
