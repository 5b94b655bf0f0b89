"""Sets the published numbers of the sweep file beside ours, and compares the two."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

NOT_IN_FULL = "not run in full"


def join_published(
    rows: Sequence[dict[str, Any]],
    spec: Mapping[str, Any],
    without: Container[tuple[str, str]] = (),
) -> set[str]:
    """Fill what is published of each row for which the sweep file has a number.

    A key is a metric, of the benchmark's primary readout, or ``readout/metric``. Its value maps
    methods to what is printed of them, or benchmarks to such a mapping. What is printed is a
    number, or ``{mean, std, n, error, source}``, or several of these, by revision; of them the
    first counts, and ``published_revisions`` are all.

    Args:
        rows: Changed in place; those of one method in the order of its readouts.
        spec: The sweep file, with ``published: {average_accuracy: {blip: 97.1}}``, say.
        without: Benchmark and method of the rows that get none.

    Returns:
        Methods of rows that would have got a number, but for ``without``.
    """
    published = spec.get("published") or {}
    primary, spared = _primary(rows), set()
    whole = _has(spec, published.get("in_full") or {}) and not (spec.get("stop") or {}).get("tasks")
    rounded = _rounded(spec)
    asked = len(spec.get("seeds") or ())
    for key, numbers in published.items():
        if not isinstance(numbers, Mapping) or key == "in_full":
            continue  # source, note
        readout, _, metric = key.rpartition("/")
        for row in rows:
            wanted = readout or primary[row["benchmark"]]
            if row["metric"] != metric or row["readout"] != wanted:
                continue
            by_method = numbers.get(row["benchmark"], numbers)
            value = by_method.get(row["method"]) if isinstance(by_method, Mapping) else None
            several = isinstance(value, Mapping) and "mean" not in value
            revisions = dict(value) if isinstance(value, Mapping) and several else {}
            printed = figure(next(iter(revisions.values())) if revisions else value)
            if printed is None and not any(figure(one) for one in revisions.values()):
                continue
            if (row["benchmark"], row["method"]) in without:
                spared.add(row["method"])
                continue
            row["published_revisions"] = revisions or None
            if printed is None:
                continue  # the newest revision leaves it out, and older ones have it
            row["published"], row["published_std"] = printed["mean"], printed.get("std")
            row["published_source"] = printed.get("source")
            spread = printed.get("std") if printed.get("error") is None else printed["error"]
            exact = rounded.isdisjoint({None, row["method"]})
            full = whole and exact and row["n"] >= max(1, asked) and not row["sampled"]
            row["verdict"] = verdict(row, spread, full)
    return spared


def figure(value: Any) -> dict[str, Any] | None:
    """A published value as ``{mean, ...}``; ``None`` if it is no number."""
    if isinstance(value, Mapping):
        return dict(value)
    return {"mean": float(value)} if isinstance(value, int | float) else None


def verdict(row: Mapping[str, Any], spread: float | None, whole: bool) -> str | None:
    """Compare our mean with the published one.

    Args:
        row: A row of the table, of which ``mean`` and ``published`` are read.
        spread: Published standard deviation, or error of a value that was read off a plot.
        whole: Whether all seeds of the sweep ran, in float32, with everything that ``in_full`` asks
            for, and were measured on all test images.

    Returns:
        ``not run in full``; else ``within``, if the two differ by at most the spread, or
        ``outside``; ``None`` where no spread is published.
    """
    if not whole:
        return NOT_IN_FULL
    if spread is None:
        return None
    return "within" if abs(row["mean"] - row["published"]) <= spread else "outside"


def _has(spec: Any, wanted: Any) -> bool:
    """Whether a part of a sweep file has the values that are wanted of it."""
    if isinstance(wanted, Mapping):
        return isinstance(spec, Mapping) and all(_has(spec.get(k), v) for k, v in wanted.items())
    return bool(spec == wanted)


def _rounded(spec: Mapping[str, Any]) -> set[str | None]:
    """Labels of the methods that are trained or evaluated in bfloat16; ``None``: all of them."""
    blocks: dict[str | None, list[Any]] = {None: [spec.get("train"), spec.get("evaluate")]}
    for method in spec.get("methods") or ():
        blocks[method.get("label") or method["name"]] = [method.get("train")]
    exact = (None, "float32")
    return {
        label
        for label, found in blocks.items()
        if any((block or {}).get("precision") not in exact for block in found)
    }


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
