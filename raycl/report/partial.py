"""Matrices that were not measured whole: which metrics have no value, or one of samples.

A trial's result says in ``images`` how many images stand behind each entry; see
``raycl.training.coverage``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycl.report import words
from raycl.report.load import TrackedRun
from raycl.training.metrics import AGAINST_BOUND, METRICS, readable
from raycl.trial.matrix import needed

Result = Mapping[str, Any]
PROBE = "probe"
"""Who is always asked about all images."""


def prepare_bound(result: Result, bound: Result) -> dict[str, Any]:
    """What a result that is set beside an upper bound has to know of how that was measured."""
    return {"bound_images": bound["images"]} if "images" in bound else {}


def absent(result: Result, readout: str) -> list[str]:
    """Metrics that have no value because an entry that they read was not measured, in order."""
    images = _images(result, readout)
    if images is None:
        return []
    known = readable(images > 0)
    return [
        name
        for name, metric in METRICS.items()
        if metric.also in ("", "sizes") and len(images) >= metric.min_tasks and name not in known
    ]


def names(result: Result, readout: str) -> list[str]:
    """All metrics of a readout, those without a value among them, in order."""
    found, lacks = result["metrics"][readout], absent(result, readout)
    known = [name for name in METRICS if name in found or name in lacks] if lacks else []
    return [*known, *(name for name in found if name not in known)]


def is_sampled(result: Result, readout: str, metric: str) -> bool:
    """Whether a metric reads an entry that was measured on some of the images only."""
    entries = (METRICS | AGAINST_BOUND).get(metric)
    if entries is None:
        return False
    keys = ("images", "bound_images") if metric in AGAINST_BOUND else ("images",)
    for key in keys:
        images = _images(result, readout, key)
        if images is not None:
            some = (images > 0) & (images < np.array(result["sizes"]))
            if (needed(entries.entries, len(images)) & some).any():
                return True
    return False


def leaves_out(result: Result, readout: str = "") -> bool:
    """Whether an entry on or below the diagonal of a readout was not measured."""
    images = _images(result, readout)
    return images is not None and bool((needed("all", len(images)) & (images == 0)).any())


def notes(runs: Iterable[TrackedRun], spec: Mapping[str, Any]) -> Iterable[str]:
    """The line that says which entries are of samples, and which are absent."""
    found = [run.result for run in runs if run.result is not None]
    evaluate = spec.get("evaluate") or {}
    parts = []
    if any(is_sampled(r, way, name) for r in found for way in r["matrices"] for name in METRICS):
        parts.append(
            f"~: others are of {evaluate.get('limit')} images per task, drawn once for all trials"
        )
    if any(map(leaves_out, found)):
        parts.append(
            f"–: below the diagonal only one row in {evaluate.get('every')} was measured, and "
            "metrics that read the others have no value"
        )
    if parts:
        whole = "the diagonal and the last row of each matrix are of all test images"
        yield "; ".join([whole, *parts])


def _images(result: Result, readout: str = "", key: str = "images") -> NDArray[np.int64] | None:
    """Images behind each entry of a readout; ``None``: all that there are."""
    if key not in result or words.asked(readout) == PROBE:
        return None
    return np.array([[n or 0 for n in row] for row in result[key]], dtype=np.int64)
