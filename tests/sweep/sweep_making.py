"""Sweeps from a text."""

from __future__ import annotations

from pathlib import Path

from raycl.sweep.file import spec


def load(text: str, *overrides: str, smoke: bool = False) -> spec.Sweep:
    """The sweep of a file in the current folder, with what ``--set`` and ``--smoke`` change."""
    Path("s.yaml").write_text(text)
    return spec.load(Path("s.yaml"), overrides, smoke)
