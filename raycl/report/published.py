"""Sets the published numbers of the sweep file beside ours, and compares the two."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from raycl import blocks
from raycl.errors import UserError

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
    stopped = bool((spec.get("stop") or {}).get("tasks"))
    in_full = {row["method"]: not stopped and _in_full(spec, row["method"]) for row in rows}
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
            full = in_full[row["method"]] and not _is_cut(spec, row["benchmark"])
            full = full and row["n"] >= max(1, asked) and not row["sampled"]
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
        whole: Whether all seeds of the sweep ran, in float32, on all images, with everything that
            ``in_full`` asks for, and were measured on all test images.

    Returns:
        ``not run in full``; else ``within``, if the two differ by at most the spread, or by what
        was lost when the published mean was rounded, or ``outside``; ``None`` where no spread is
        published.
    """
    if not whole:
        return NOT_IN_FULL
    if spread is None:
        return None
    lost = 0.5 * 10.0 ** -len(repr(float(row["published"])).partition(".")[2])
    return "within" if abs(row["mean"] - row["published"]) <= max(spread, lost) else "outside"


def _in_full(spec: Mapping[str, Any], label: str) -> bool:
    """Whether a method was run with all that ``in_full`` asks of it, and in float32.

    What ``in_full`` says of ``train`` and ``network`` counts for every method, with its own options
    on top; ``methods: {LABEL: ...}`` says what one of them has otherwise, or of its own.
    """
    methods: list[Mapping[str, Any]] = list(spec.get("methods") or ())
    entry = next((m for m in methods if label == _label(m)), {})
    wanted = dict((spec.get("published") or {}).get("in_full") or {})
    own = dict((wanted.pop("methods", None) or {}).get(label) or {})
    found = {name: _over(spec.get(name), entry.get(name)) for name in ("train", "network")}
    for name in found.keys() & own.keys():
        wanted[name] = _over(wanted.get(name), own.pop(name))
    exact = all(
        (block or {}).get("precision") in (None, "float32")
        for block in (*blocks.options(found["train"]), spec.get("evaluate"))
    )
    return exact and _has({**spec, **found}, wanted) and _has(entry, own)


def _label(method: Mapping[str, Any]) -> str:
    return str(method.get("label") or method["name"])


def _over(base: Any, over: Any) -> Any:
    """A block of the sweep file with what a method has of its own on top, if it has that."""
    return base if over is None else blocks.merged(base, over)


def _is_cut(spec: Any, benchmark: str) -> bool:
    """Whether the data sets of a benchmark are limited to some of their images."""
    found = spec.get("benchmark")
    benchmarks = found if isinstance(found, list | tuple) else [found]
    cut = [block for block in benchmarks if _limited(block)]
    if len(benchmarks) == 1 or not cut:
        return bool(cut)
    return any(_label_of(block) in (benchmark, None) for block in cut)


def _label_of(block: Mapping[str, Any]) -> str | None:
    """Label of a benchmark, also where the file leaves it out; ``None`` if it is not known here."""
    from raycl.training.run import build_benchmark  # importing torch takes seconds

    try:
        return str(block.get("label") or build_benchmark(block).label)
    except (UserError, ValueError):
        return None  # a user's own, or of another version


def _limited(tree: Any) -> bool:
    if isinstance(tree, list | tuple):
        return any(map(_limited, tree))
    if not isinstance(tree, Mapping):
        return False
    return bool(tree.get("limit") or tree.get("test_limit")) or _limited(list(tree.values()))


def _has(spec: Any, wanted: Any) -> bool:
    """Whether a part of a sweep file has the values that are wanted of it."""
    if isinstance(wanted, Mapping):
        return isinstance(spec, Mapping) and all(_has(spec.get(k), v) for k, v in wanted.items())
    return bool(spec == wanted)


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
