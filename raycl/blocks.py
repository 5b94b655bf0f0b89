"""The blocks of a sweep file: what a method has of them, and which of it is searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SOURCES = ("file", "package", "trial")
"""Options that name the source of weights; a block has exactly one of them."""
SPACES = ("grid", "choice", "uniform", "quniform", "loguniform", "qloguniform", "randint")
"""Keys that make a mapping a search space."""


def merged(base: Any, over: Any) -> Any:
    """Put a method's own part of a block on top of the sweep's.

    A search space, on either side, is replaced as a whole; so is a mapping by one with another
    ``name``, and weights by weights from another source. An empty mapping changes nothing.
    """
    if isinstance(base, Mapping) and over == {}:
        return base
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if any(key in tree for tree in (base, over) for key in SPACES):
        return over
    if any(source in over for source in SOURCES):
        return over
    if "name" in over and over["name"] != base.get("name", over["name"]):
        return over
    return {**base, **{k: merged(base[k], v) if k in base else v for k, v in over.items()}}


def options(value: Any) -> list[Any]:
    """What a value can become: the values or bounds of a search space; itself if it is none."""
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in SPACES:
        (found,) = value.values()
        return list(found)
    return [value]


def searched(tree: Any, path: str) -> Iterator[str]:
    """Names of the params that hold what was searched in a tree, some of them more than once.

    Args:
        tree: A value of the resolved sweep file.
        path: Name of its param.
    """
    found = options(tree)
    if found != [tree]:
        is_block = any(isinstance(option, Mapping) and "name" in option for option in found)
        for option in found:
            yield from _leaves(option, path, is_block)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from searched(value, f"{path}.{key}")
    elif isinstance(tree, list) and any(True for value in tree for _ in searched(value, path)):
        yield path  # a list is one param


def _leaves(value: Any, path: str, is_block: bool = False) -> Iterator[str]:
    """Names of the params that one value makes; what is not set makes none.

    A bare name stands for a block where a network is asked for, or another value is a block.
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif value is not None:
        named = isinstance(value, str) and (is_block or path.endswith("network"))
        yield f"{path}.name" if named else path
