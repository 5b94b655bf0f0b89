"""Published numbers of the sweep file, set beside ours."""

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
    methods to numbers, or benchmarks to such a mapping.

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
                number = float(value) if isinstance(value, int | float) else None
                if number is not None and (row["benchmark"], row["method"]) in without:
                    spared.add(row["method"])
                    number = None
                row["published"] = number
    return spared


def _primary(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The first readout of each benchmark, told by a method that supports most of them."""
    readouts: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        methods = readouts.setdefault(row["benchmark"], {})
        methods.setdefault(row["method"], {})[row["readout"]] = None
    return {
        benchmark: max((list(found) for found in methods.values()), key=len)[0]
        for benchmark, methods in readouts.items()
    }
