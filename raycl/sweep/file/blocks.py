"""The blocks of one method: merged from the file, checked by their own classes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycl.blocks import merged
from raycl.errors import KeyPath, Problem
from raycl.networks.base import named_block
from raycl.sweep import kinds
from raycl.sweep.file.model import MethodEntry, Sweep
from raycl.sweep.file.validate import validate
from raycl.sweep.kinds import Kind

Blocks = dict[str, Any]
"""``{"method": {...}, "network": {...}, "train": {...}}``, leaves possibly search spaces."""


def blocks_of(sweep: Sweep, entry: MethodEntry) -> Blocks:
    """The blocks that a method is run with: its own overrides on top of the sweep's."""
    return {
        "method": {"name": entry.name, **entry.options},
        "network": merged(sweep.network, entry.network),
        "train": merged(sweep.train, entry.train),
    }


def place(sweep: Sweep, index: int, path: KeyPath) -> KeyPath:
    """Place in the file where a path of method ``index``'s blocks was written."""
    block, *rest = path
    if block == "method":
        return ("methods", index, *rest)
    own = getattr(sweep.methods[index], str(block))
    if _depth(own, rest) >= max(1, _depth(getattr(sweep, str(block)), rest)):
        return ("methods", index, *path)
    return path


def _depth(tree: Any, path: list[str | int]) -> int:
    """Number of parts of a path that exist in a tree."""
    for depth, part in enumerate(path):
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return depth
    return len(path)


def finish(blocks: Mapping[str, Any], kind: Kind) -> Blocks:
    """Validate blocks without search spaces and fill in every default.

    Args:
        blocks: Method, network and train.
        kind: What they are for.

    Raises:
        Problem: A block is wrong; its path begins at the blocks' root.
    """
    done: Blocks = {}
    for block in ("method", "network", "train"):
        data = named_block(blocks[block]) if block == "network" else blocks[block]
        if not isinstance(data, Mapping):
            raise Problem((block,), f"must be a mapping, not {data!r}")
        try:
            if block == "train":
                model, subject = kind.train_model(), "train"
            else:
                model = kind.named(block, data).Config
                subject = f"{block} {data['name']}"
            done[block] = validate(model, data, subject).model_dump(mode="json")
        except Problem as problem:
            raise Problem((block, *problem.path), problem.what, problem.hint) from problem
    return done


def networks_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of all networks of a trial's configuration, by where they stand in it."""
    method = config["method"]
    options = kinds.of(config["benchmark"]).networks_in(method)
    own = {f"method.{name}": method[name] for name in options if method.get(name) is not None}
    return {"network": config["network"], **own}


def weights_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that holds weights in a trial's configuration, by where it stands in it.

    Networks' blocks, and ``{weights: BLOCK}`` for weights of the method itself.
    """
    method = config["method"]
    options = kinds.of(config["benchmark"]).weights_in(method)
    own = {name: {"weights": method[name]} for name in options if method.get(name) is not None}
    return {**networks_in(config), **{f"method.{name}": block for name, block in own.items()}}


def digest(name: str, cls: type) -> str:
    """Digest of the code of a class from outside raycl: a hash of its file, else nothing.

    A changed file is another method, so trials of the old one must not be taken for its own.
    """
    if ":" not in name:
        return ""
    return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:16]


def benchmark_configs(sweep: Sweep) -> list[dict[str, Any]]:
    """The benchmarks' blocks with every default and the label filled in."""
    found = []
    for i, block in enumerate(sweep.benchmark):
        try:
            cls = kinds.of(block).named("benchmark", block)
            config = validate(cls.Config, block, f"benchmark {block['name']}")
        except Problem as p:
            raise sweep.source.error(("benchmark", i, *p.path), p.what, p.hint) from p
        found.append(config.model_dump(mode="json") | {"label": cls(config).label})
    return found
