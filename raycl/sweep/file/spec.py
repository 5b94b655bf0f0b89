"""The sweep file as the rest of raycl knows it: ``load`` and ``Sweep``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from raycl.errors import KeyPath, Problem, UserError
from raycl.secrets import CODES, cut_off
from raycl.sweep import kinds
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.file.check import check
from raycl.sweep.file.model import MAX_NAME, Sweep
from raycl.sweep.file.source import Source, dotted, get, read
from raycl.sweep.file.validate import validate
from raycl.trial.weights import with_hashes, with_option_hashes

__all__ = ["Sweep", "load", "load_begun", "parse"]

SMOKE = "-smoke"
"""End of a small sweep's name."""


def load(path: Path, overrides: Sequence[str] = (), smoke: bool = False) -> Sweep:
    """Read and check a sweep file; neither data nor Ray is needed.

    Args:
        path: The YAML file.
        overrides: ``a.b=c``, as on the command line; they win over ``smoke``.
        smoke: Make it as small as it can be and still touch everything: the file's ``smoke``
            block, or else ``automatic_smoke``. The name ends in ``-smoke``.

    Raises:
        UserError: Anything that is wrong with it, with file, line, path and nearest name.
    """
    source = read(path)
    _override(source, overrides)
    sweep = _hidden(parse(source))
    others = any(not text.startswith("smoke") for text in overrides)
    if not smoke and (sweep.smoke is None or others):
        return sweep  # what is overridden may be what the smoke block is about
    small = deepcopy(source)
    apply_smoke(small, sweep)
    _override(small, overrides)
    tiny = _hidden(parse(small))  # also without --smoke, so that a wrong block is found early
    return tiny if smoke else sweep


def load_begun(path: Path) -> Sweep:
    """Read the file that a sweep has left in its folder; its ``smoke`` block is not looked at.

    That block may be about methods which were overridden when the sweep was begun.

    Raises:
        UserError: See ``load``.
    """
    return parse(read(path))


def _override(source: Source, overrides: Sequence[str]) -> None:
    for text in overrides:
        source.set(text)


def parse(source: Source) -> Sweep:
    """Check what was read; see ``load``."""
    try:
        sweep = validate(Sweep, _with_hashes(source.data))
    except Problem as p:
        raise source.error(p.path, p.what, p.hint) from p
    assert isinstance(sweep, Sweep)
    sweep._source = source
    check(sweep)
    _list_tasks(sweep)
    return sweep


def _hidden(sweep: Sweep) -> Sweep:
    """The same, if the password of its tracking store can be hidden wherever the URI is shown.

    Raises:
        UserError: It cannot.
    """
    uri = sweep.tracking.uri
    if uri is not None and (what := cut_off(uri)):
        # the place in the source may be `--set` and the URI
        raise UserError("tracking.uri", what, f"write {CODES}")
    return sweep


def _list_tasks(sweep: Sweep) -> None:
    """Write down which folders are tasks, so that a folder that comes later is none."""
    for one in (sweep, sweep.for_search):
        for block, config in zip(one.benchmark, benchmark_configs(one), strict=True):
            if isinstance(config.get("tasks"), list):
                block["tasks"] = config["tasks"]
                block.pop("order", None)


def _with_hashes(data: dict[str, Any]) -> dict[str, Any]:
    """The same, with the hash of every weights file that is there, as far as it is a sweep's."""
    done = dict(data)
    if "network" in done:
        done["network"] = with_hashes(done["network"])
    if isinstance(done.get("methods"), list):
        kind = kinds.guess(done.get("benchmark"))
        done["methods"] = [
            with_option_hashes(entry, {"network", *kind.networks_in(entry)}, kind.weights_in(entry))
            if isinstance(entry, dict)
            else entry
            for entry in done["methods"]
        ]
    return done


def apply_smoke(source: Source, sweep: Sweep) -> None:
    """Apply ``--smoke`` to what was read."""
    overrides = automatic_smoke(source.data, sweep) if sweep.smoke is None else sweep.smoke
    source.data["name"] = f"{sweep.name[: MAX_NAME - len(SMOKE)]}{SMOKE}"
    for path, value in overrides.items():
        source.override(path, value, f"{source.file}: smoke")


def automatic_smoke(data: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """What ``--smoke`` does to a file without a ``smoke`` block.

    Two tasks, one seed, two draws, two options of each grid, and the least of training that the
    kind of its trials has.

    Args:
        data: The file's data.
        sweep: What it means.
    """
    found: dict[str, Any] = {dotted(path): get(data, path)[:2] for path in _grids(data, ())}
    found |= {"seeds": 1, "search.num_samples": 2}
    least = sweep.kind.smoke(data, benchmark_configs(sweep))
    found |= least
    if sweep.search.benchmark is not None:
        other = {"benchmark": data["search"]["benchmark"]}
        small = sweep.kind.smoke(other, benchmark_configs(sweep.for_search))
        found |= {f"search.{k}": v for k, v in small.items() if k.startswith("benchmark")}
    if data.get("search", {}).get("tasks"):
        metric = sweep.kind.all_metrics().get(sweep.search.metric.rpartition("/")[2])
        found["search.tasks"] = metric.min_tasks if metric else 1  # an unknown one is refused
    if "scheduler" in data:
        found["scheduler.grace_period"] = 1
    methods = [method if isinstance(method, dict) else {} for method in data["methods"]]
    for word, value in least.items():
        block, _, key = word.partition(".")
        if block not in ("train", "resources"):
            continue
        if places := list(_in_options(data.get(block), block, key)):
            del found[word]
            found |= dict.fromkeys(places, value)
        for i, own in enumerate(methods):  # what the method would override
            path = f"methods[{i}].{block}"
            found |= dict.fromkeys(_in_options(own.get(block), path, key), value)
            if key in own.get(block, {}):
                found[f"{path}.{key}"] = value
    return found


def _in_options(block: Any, path: str, key: str) -> Iterator[str]:
    """Places of a key in the options of a choice of blocks, or in the first two of a grid."""
    for kind in ("choice", "grid"):
        if isinstance(block, dict) and isinstance(block.get(kind), list):
            for i, option in enumerate(block[kind][: 2 if kind == "grid" else None]):
                if isinstance(option, dict):
                    yield f"{path}.{kind}[{i}].{key}"


def _grids(tree: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "grid" and isinstance(value, list):
                yield (*path, key)
            else:
                yield from _grids(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _grids(value, (*path, i))
