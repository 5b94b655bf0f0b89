"""What a run of any kind is to whoever steps it, and what it reports."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


class TrainingError(RuntimeError):
    """Training cannot go on, because a loss is not a number."""
