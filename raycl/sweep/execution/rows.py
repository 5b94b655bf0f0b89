"""Rows on their way from a trial through Ray Tune to the driver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from raycl.trial.run import Row


def result_of(row: Row, **scores: float) -> dict[str, Any]:
    """What a trial reports to Tune: its row as text, and numbers that Tune itself looks at.

    Of each number that Tune sees it keeps seven statistics, for every trial, until the sweep ends.
    """
    return {"row": json.dumps(row, default=float), **scores}


def row_of(result: Mapping[str, Any] | None) -> Row:
    """The row of a result, flattened or not; empty of a trial that has reported none."""
    return cast(Row, json.loads(result["row"])) if result and "row" in result else {}
