"""Sets the published numbers of the sweep file beside ours."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any


def join_published(
    rows: Sequence[dict[str, Any]],
    published: Mapping[str, Any],
    without: Container[tuple[str, str]] = (),
) -> set[str]:
    """Fill ``published`` of each row for which the sweep file has a number.

    A key is a metric, of the benchmark's primary readout, or ``readout/metric``. Its value maps
    methods to numbers, or benchmarks to such a mapping. Where it maps a method to several numbers,
    by revision, ``published`` is the first of them and ``published_revisions`` are all.

    Args:
        rows: Changed in place; those of one method in the order of its readouts.
        published: The ``published`` block: ``{"source": ..., "average_accuracy": {"blip": 97.1}}``.
        without: Benchmark and method of the rows that get none.

    Returns:
        Methods of rows that would have got a number, but for ``without``.
    """
    primary, spared = _primary(rows), set()
    for key, numbers in published.items():
        if not isinstance(numbers, Mapping):
            continue  # source, note
        readout, _, metric = key.rpartition("/")
        for row in rows:
            wanted = readout or primary[row["benchmark"]]
            if row["metric"] == metric and row["readout"] == wanted:
                by_method = numbers.get(row["benchmark"], numbers)
                value = by_method.get(row["method"]) if isinstance(by_method, Mapping) else None
                revisions = dict(value) if isinstance(value, Mapping) else {}
                if revisions:
                    value = next(iter(revisions.values()))
                number = float(value) if isinstance(value, int | float) else None
                if number is not None and (row["benchmark"], row["method"]) in without:
                    spared.add(row["method"])
                    number, revisions = None, {}
                if revisions:
                    row["published_revisions"] = revisions
                row["published"] = number
    return spared


def _primary(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The first readout of each benchmark, as the method with the most readouts has them."""
    readouts: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        methods = readouts.setdefault(row["benchmark"], {})
        methods.setdefault(row["method"], {})[row["readout"]] = None
    return {
        benchmark: max((list(found) for found in methods.values()), key=len)[0]
        for benchmark, methods in readouts.items()
    }
