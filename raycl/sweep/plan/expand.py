"""Expands a sweep into finished trial plans, always the same; it knows nothing of Ray.

Draws come from a generator of their own for each (benchmark, method, option), so adding a method or
an option changes no other draw, and all seeds of a sample share its draws.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raycl.errors import Problem
from raycl.sweep import kinds
from raycl.sweep.file.blocks import (
    Blocks,
    benchmark_configs,
    blocks_of,
    digest,
    place,
)
from raycl.sweep.file.model import MethodEntry, Sweep
from raycl.sweep.file.source import dotted, put, undotted
from raycl.sweep.file.spaces import Space, walk
from raycl.sweep.plan.plan import TrialPlan, canonical, fill, hashed, threads_of
from raycl.training.config import EvaluateConfig

DEFAULTS = EvaluateConfig().model_dump(mode="json")
"""What ``evaluate`` is where the file does not say."""


@dataclass(frozen=True)
class Group:
    """One method on one benchmark.

    Attributes:
        benchmark: The benchmark's label.
        method: The method's label.
        spaces: Dotted path in the configuration to its search space, sorted by path.
        base: The plan with the search spaces still in its configuration, to be passed to ``fill``;
            its seed and kind are those of nothing yet.
        index: The method's position in the file.
    """

    benchmark: str
    method: str
    spaces: dict[str, Space]
    base: TrialPlan
    index: int


@dataclass(frozen=True)
class Preview:
    """One line of ``--dry-run``.

    Attributes:
        stage: ``search`` or ``final``.
        name: Name of the trial.
        benchmark: Label.
        method: Label.
        seed: The trial's seed.
        varied: What varies, or where the values will come from.
        resources: What the trial asks for.
    """

    stage: str
    name: str
    benchmark: str
    method: str
    seed: int
    varied: dict[str, Any] | str
    resources: dict[str, float]


def groups(sweep: Sweep) -> list[Group]:
    """Every method on every benchmark, in the order of the file.

    On the stream of a search, ``Sweep.for_search``, every method that is searched.
    """
    pairs = itertools.product(benchmark_configs(sweep), enumerate(sweep.methods))
    found = [_group(sweep, b, i, entry) for b, (i, entry) in pairs]
    return [group for group in found if group.spaces or not sweep.tunes]


def searches(sweep: Sweep) -> dict[tuple[str, str], tuple[str, str]]:
    """Benchmark and method of all that is searched, to those of the search that chooses for it."""
    searched = [g for g in groups(sweep) if g.spaces]
    if sweep.search.benchmark is None:
        return {(g.benchmark, g.method): (g.benchmark, g.method) for g in searched}
    (other,) = benchmark_configs(sweep.for_search)
    return {(g.benchmark, g.method): (other["label"], g.method) for g in searched}


def _group(sweep: Sweep, benchmark: dict[str, Any], index: int, entry: MethodEntry) -> Group:
    blocks = blocks_of(sweep, entry)
    spaces = {dotted(path): space for path, space in walk(blocks)}
    resources = sweep.resources_of(entry)
    config = {
        "benchmark": benchmark,
        **blocks,
        "seed": 0,
        "fixed_seeds": sweep.fixed_seeds.model_dump(mode="json"),
        "readouts": None if sweep.readouts is None else list(sweep.readouts),
        "tasks": sweep.stop.tasks,
        "threads": threads_of(resources.cpu),
    }
    evaluate = sweep.evaluate.model_dump(mode="json")
    for name in [name for name, value in DEFAULTS.items() if evaluate[name] == value]:
        del evaluate[name]  # so that the keys of trials stay when there are new options
    if evaluate:
        config["evaluate"] = evaluate
    base = TrialPlan(
        key="",
        config_key="",
        name="",
        method=entry.label,
        benchmark=benchmark["label"],
        seed=0,
        kind="",
        config=config,
        resources=resources.model_dump(),
        code=digest(entry.name, kinds.of(benchmark).named("method", blocks["method"])),
    )
    return Group(base.benchmark, entry.label, dict(sorted(spaces.items())), base, index)


def search_base(sweep: Sweep, group: Group) -> TrialPlan:
    """A group's base for search trials: without a probe, maybe on the first tasks only.

    Every row is measured where a scheduler or the search metric reads rows in the middle.
    """
    limits = [n for n in (sweep.stop.tasks, sweep.search.tasks) if n is not None]
    config = group.base.config | {"tasks": min(limits, default=None)}
    metric = sweep.kind.all_metrics()[sweep.search.metric.rpartition("/")[2]]
    ends = sweep.scheduler.name == "fifo" and metric.entries in ("last", "diagonal", "ends")
    kept = ("limit", "precision", "cache_mb", *(["every"] if ends else []))
    evaluate = {k: v for k, v in config.pop("evaluate", {}).items() if k in kept}
    if evaluate:
        config["evaluate"] = evaluate
    return replace(group.base, config=config, kind="search")


def search_plans(sweep: Sweep) -> list[TrialPlan]:
    """All trials of a random or grid search; empty if nothing is searched or Optuna proposes."""
    if sweep.search.algorithm != "random":
        return []
    plans: dict[str, TrialPlan] = {}  # a configuration drawn twice runs once
    for group in groups(sweep.for_search):
        base = search_base(sweep, group)
        for values in _samples(sweep, group):
            for seed in sweep.search_seeds():
                plan = filled(sweep, group, base, values, seed, "search")
                plans.setdefault(plan.key, plan)
    return _distinct_names(plans.values(), len(sweep.for_search.benchmark) > 1)


def final_plans(
    sweep: Sweep, winners: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[TrialPlan]:
    """The trials the table is made of: each method, finished, on each of ``seeds``.

    Args:
        sweep: The sweep.
        winners: (benchmark label, method label) to the ``varied`` chosen by the search there; see
            ``searches``. Methods that are searched and have no winner are left out.
    """
    plans, chosen = [], searches(sweep)
    for group in groups(sweep):
        values = winners.get(chosen[group.benchmark, group.method]) if group.spaces else {}
        if values is None:
            continue
        if values.keys() != group.spaces.keys():
            raise ValueError(f"winner of {group.method} must set {list(group.spaces)}")
        kind = "winner" if group.spaces else "trial"
        plans += [filled(sweep, group, group.base, values, s, kind) for s in sweep.seeds]
    return _distinct_names(plans, len(sweep.benchmark) > 1)


def preview(sweep: Sweep) -> list[Preview]:
    """Everything that would run, as far as it is known before the search. Needs no data."""
    lines = []
    for plan in search_plans(sweep):
        lines.append(_line("search", plan, plan.varied))
    searched = [group for group in groups(sweep.for_search) if group.spaces]
    if sweep.search.algorithm != "random":
        for group, sample in itertools.product(searched, range(sweep.search.num_samples)):
            for seed in sweep.search_seeds():
                name = f"{group.method}-sample{sample}-s{seed}"
                plan = replace(group.base, name=name, seed=seed)
                lines.append(_line("search", plan, f"chosen by {sweep.search.algorithm}"))
    fixed = {(p.benchmark, p.method, p.seed): p for p in final_plans(sweep, {})}
    for group, seed in itertools.product(groups(sweep), sweep.seeds):
        plan = fixed.get((group.benchmark, group.method, seed)) or replace(
            group.base, name=f"{group.method}-winner-s{seed}", seed=seed
        )
        lines.append(_line("final", plan, "winner of the search" if group.spaces else {}))
    return lines


def own_files(sweep: Sweep) -> bool:
    """Whether any class in a sweep's blocks is in a Python file of the user's."""
    return bool(python_files(sweep))


def python_files(sweep: Sweep) -> list[str]:
    """Python files of the user's that classes in a sweep's blocks are in, as they are written."""
    return [name for name in own_code_of(sweep) if name.endswith(".py")]


def own_code_of(sweep: Sweep) -> list[str]:
    """What ``own_code`` finds in all trials of a sweep and of its search, sorted."""
    found: set[str] = set()
    both = [sweep] if sweep.search.benchmark is None else [sweep, sweep.for_search]
    for one in both:
        for group in groups(one):
            for values in each_value(group.spaces):
                found.update(own_code(filled(one, group, group.base, values, 0, "").config))
    return sorted(found)


def own_code(tree: Any) -> Iterator[str]:
    """Files and modules that classes in blocks of a sweep come from, if they are not raycl's."""
    if isinstance(tree, Mapping):
        name = tree.get("name")
        if isinstance(name, str) and ":" in name:
            yield name.rpartition(":")[0]
        for value in tree.values():
            yield from own_code(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from own_code(value)


def spec_hash(sweep: Sweep) -> str:
    """Hash of all that results depend on; the order of the file is not part of it."""
    found = groups(sweep)
    without = ("threads", "seed")
    trials = [
        {k: v for k, v in g.base.config.items() if k not in without}
        | {"label": g.method, "code": g.base.code}
        | _defaults(g)
        for g in found
    ]
    payload: dict[str, Any] = {
        "trials": sorted(trials, key=canonical),
        "seeds": sorted(sweep.seeds),
    }
    if any(g.spaces for g in found):
        search = sweep.search.model_dump(mode="json", exclude={"max_concurrent", "benchmark"})
        if sweep.search.benchmark is not None:
            search["benchmark"] = benchmark_configs(sweep.for_search)[0]
        payload["search"] = search
        payload["scheduler"] = sweep.scheduler.model_dump(mode="json")
    return hashed(payload)


def first_values(spaces: Mapping[str, Space]) -> dict[str, Any]:
    """One value for each space."""
    return {path: space.representatives()[0][1] for path, space in spaces.items()}


def each_value(spaces: Mapping[str, Space]) -> Iterator[dict[str, Any]]:
    """Values to try: each space in turn takes each of its representatives."""
    first = first_values(spaces)
    yield first
    for path, space in spaces.items():
        for _, value in space.representatives()[1:]:
            yield first | {path: value}


def _defaults(group: Group) -> Blocks:
    """The finished blocks, with the search spaces as they were written put back."""
    plan = fill(group.base, first_values(group.spaces), 0, "")
    blocks = {block: deepcopy(plan.config[block]) for block in ("method", "network", "train")}
    for path, space in group.spaces.items():
        put(blocks, undotted(path), {space.kind: list(space.args)})
    return blocks


def _samples(sweep: Sweep, group: Group) -> Iterable[dict[str, Any]]:
    """Values of the group's spaces: every draw with every cell of the grid."""
    if not group.spaces:
        return
    grid = {path: space for path, space in group.spaces.items() if space.is_grid}
    drawn = {path: space for path, space in group.spaces.items() if not space.is_grid}
    generators = {path: _generator(sweep, group, path) for path in drawn}
    for _ in range(sweep.search.num_samples if drawn else 1):
        draws = {path: space.draw(generators[path]) for path, space in drawn.items()}
        for cell in itertools.product(*(space.args for space in grid.values())):
            yield draws | dict(zip(grid, cell, strict=True))


def _generator(sweep: Sweep, group: Group, path: str) -> np.random.Generator:
    text = canonical([group.benchmark, group.method, path])
    entropy = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
    return np.random.default_rng([sweep.search.seed, entropy])


def filled(
    sweep: Sweep, group: Group, base: TrialPlan, values: Mapping[str, Any], seed: int, kind: str
) -> TrialPlan:
    """Finish a plan; an error has its place in the file.

    Raises:
        UserError: The blocks are wrong, or the configuration is too large.
    """
    try:
        return fill(base, values, seed, kind)
    except Problem as p:
        path = place(sweep, group.index, p.path) if p.path else ("methods", group.index)
        chosen = ", ".join(f"{path}={value!r}" for path, value in values.items())
        what = f"{p.what} (with {chosen})" if chosen else p.what
        raise sweep.source.error(path, what, p.hint) from p


def _distinct_names(plans: Iterable[TrialPlan], several: bool) -> list[TrialPlan]:
    """Names made unique: by the benchmark if there are several, then by the configuration's key."""
    named_plans = [
        replace(plan, name=_with_benchmark(plan) if several else plan.name) for plan in plans
    ]
    count = Counter(plan.name for plan in named_plans)
    return [
        plan if count[plan.name] == 1 else replace(plan, name=_with_key(plan))
        for plan in named_plans
    ]


def _with_benchmark(plan: TrialPlan) -> str:
    label = re.sub(r"[^A-Za-z0-9._-]+", "", plan.benchmark)[:24]
    stem, _, seed = plan.name.rpartition("-s")
    return f"{f'{label}-{stem}'[:60]}-s{seed}"


def _with_key(plan: TrialPlan) -> str:
    stem, _, seed = plan.name.rpartition("-s")
    return f"{stem[:55]}-{plan.config_key[:8]}-s{seed}"


def _line(stage: str, plan: TrialPlan, varied: dict[str, Any] | str) -> Preview:
    return Preview(stage, plan.name, plan.benchmark, plan.method, plan.seed, varied, plan.resources)
