"""Images and games: the table ``KINDS`` has the classes and functions behind each block.

A sweep is of one kind, that of its benchmarks. Everything else asks the kind instead of knowing
which there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from raycl.errors import Problem, nearest
from raycl.sweep.kinds.games import GAMES
from raycl.sweep.kinds.images import IMAGES
from raycl.sweep.kinds.kind import Config, Kind, Part, has

__all__ = ["GAMES", "IMAGES", "KINDS", "Config", "Kind", "Part", "guess", "of", "registered"]

KINDS = (IMAGES, GAMES)


def registered(block: str, among: Iterable[Kind] = KINDS) -> list[tuple[str, str, Any]]:
    """Every class of a block: the kinds it is for, its name, itself; sorted by name.

    A name of two kinds has two classes, unless the kinds share the package. A class whose attribute
    with the name of a kind is false (``Backbone.games``) is not for that kind.
    """
    found: dict[tuple[str, Part], list[Kind]] = {}
    for kind in among:
        for name in kind.parts[block].names():
            found.setdefault((name, kind.parts[block]), []).append(kind)
    rows = []
    for (name, part), kinds in found.items():
        cls = part.find(name)
        fitting = (kind.name for kind in kinds if getattr(cls, kind.name, True))
        rows.append((", ".join(fitting), name, cls))
    return sorted(rows, key=lambda row: row[1])


def of(benchmark: Config) -> Kind:
    """The kind of a ``benchmark`` block.

    Raises:
        Problem: It names no benchmark of any kind.
    """
    name = benchmark.get("name")
    return _of_name(name) if isinstance(name, str) and ":" not in name else _of_class(benchmark)


@lru_cache
def _of_name(name: str) -> Kind:
    for kind in KINDS:
        if has(kind.parts["benchmark"], name):
            return kind
    valid = [known for kind in KINDS for known in kind.parts["benchmark"].names()]
    raise Problem(("name",), f"unknown benchmark '{name}'", nearest(name, valid))


def _of_class(benchmark: Config) -> Kind:
    """A class from outside is of the kind whose base class it has."""
    problems = []
    for kind in KINDS:
        try:
            kind.named("benchmark", benchmark)
        except Problem as problem:
            problems.append(problem)
        else:
            return kind
    raise problems[0]


def guess(benchmark: Any) -> Kind:
    """The kind of what may not be a benchmark block, or a list of them; images if it is none."""
    first = benchmark[0] if isinstance(benchmark, list | tuple) and benchmark else benchmark
    block = {"name": first} if isinstance(first, str) else first
    try:
        return of(block) if isinstance(block, Mapping) else IMAGES
    except Problem:  # it will be refused where it stands
        return IMAGES
