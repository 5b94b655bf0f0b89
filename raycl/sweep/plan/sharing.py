"""Finds what trials of a sweep have in common, so that the work is done once.

Points along the stream are numbered as in ``raycl.trial.sharing``. What trials have in common at a
point is a hash of everything that can have mattered up to there; the state itself is left in the
sweep's storage by whoever comes by first, see ``raycl.sweep.execution.prefixes``. A phase that
trials share though they differ before it, such as the teacher's, has a hash likewise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raycl.sweep import kinds
from raycl.sweep.file.blocks import digest
from raycl.sweep.plan.plan import TrialPlan, hashed
from raycl.trial.sharing import (
    first_method,
    options_at,
    phases_named,
    trained,
    unaffected,
)

FIRST = trained(1)
"""The point up to which other methods may be the same."""


def prefix_key(plan: TrialPlan, point: int) -> str:
    """The hash that trials have in common which are the same up to a point.

    All of the configuration is part of it except options of the method that cannot have mattered
    yet, and the label. Device, threads and env runners are part of it, too: other ones may round
    otherwise, and the result must have the bits that it has without sharing.

    Args:
        plan: A finished plan.
        point: Number of the point.
    """
    kind = kinds.of(plan.config["benchmark"])
    block, code = plan.config["method"], plan.code
    if point == FIRST:
        own = block
        block = first_method(own, lambda name: kind.named("method", {"name": name}))
        if block["name"] != own["name"]:
            code = digest(block["name"], kind.named("method", block))
    options = options_at(block, kind.named("method", block), point)
    return _hash_of(plan, {"method": options, "code": code, "point": point})


def phase_key(plan: TrialPlan, phase: str) -> str:
    """The hash that trials have in common which train the same in a phase, in every task.

    Args:
        plan: A finished plan.
        phase: Name of the phase.
    """
    block = plan.config["method"]
    options = options_at(block, kinds.of(plan.config["benchmark"]).named("method", block), phase)
    return _hash_of(plan, {"method": options, "code": plan.code, "phase": phase})


def keys_of(plan: TrialPlan) -> list[str]:
    """The hashes of everything that a plan shares, those needed first coming first."""
    points = [prefix_key(plan, point) for point in plan.points]
    return points + [phase_key(plan, phase) for phase in plan.phases]


def _hash_of(plan: TrialPlan, part: Mapping[str, Any]) -> str:
    """The hash of a plan's configuration, some of which is replaced."""
    kind = kinds.of(plan.config["benchmark"])
    on = {name: plan.resources.get(name, 0.0) for name in ("gpu", "env_runners")}
    settings = sorted(kind.settings(kind.named("method", plan.config["method"])))
    more = {"gpu": bool(on["gpu"]), "env_runners": on["env_runners"], "method settings": settings}
    return hashed({**plan.config, **more, **part})


def with_shared(plans: Sequence[TrialPlan], tasks: Mapping[str, int]) -> list[TrialPlan]:
    """The same plans, each with the points up to which it is the same as another, and the phases.

    Points at which no more plans are the same than at a later one are left out.

    Args:
        plans: Finished plans.
        tasks: Tasks of each benchmark, by its label.
    """
    keys = {plan.key: _candidates(plan, tasks[plan.benchmark]) for plan in plans}
    phases = {plan.key: _phases(plan) for plan in plans}
    count = Counter(key for found in keys.values() for key in found.values())
    count.update(key for found in phases.values() for key in found.values())
    return [
        replace(
            plan,
            points=_needed(keys[plan.key], count),
            phases=[name for name, key in phases[plan.key].items() if count[key] > 1],
        )
        for plan in plans
    ]


def _phases(plan: TrialPlan) -> dict[str, str]:
    """Keys of a plan in each phase that it may share with others, by the phase's name."""
    block = plan.config["method"]
    cls = kinds.of(plan.config["benchmark"]).named("method", block)
    options = cls.Config.model_validate(block)
    return {n: phase_key(plan, n) for n in phases_named(cls) if options.has_phase(n)}


def _candidates(plan: TrialPlan, tasks: int) -> dict[int, str]:
    """Keys of a plan at each point at which it may part from others, by the point."""
    cls = kinds.of(plan.config["benchmark"]).named("method", plan.config["method"])
    last = trained(min(tasks, plan.config["tasks"] or tasks))
    declared = (unaffected(cls, name) for name in cls.Config.model_fields)
    points = {FIRST, last, *(min(point, last) for point in declared if point)}
    return {point: prefix_key(plan, point) for point in sorted(points)}


def _needed(keys: Mapping[int, str], count: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    most = 1
    for point in sorted(keys, reverse=True):
        if count[keys[point]] > most:
            most = count[keys[point]]
            found.append(point)
    return sorted(found)


def shared_by_any(base: TrialPlan, samples: Sequence[TrialPlan], tasks: int) -> TrialPlan:
    """A plan with the point up to which all are the same that a search may propose, and the phases.

    Args:
        base: The plan of the search.
        samples: One plan, and others in each of which one option has another value.
        tasks: Tasks of the benchmark.
    """
    if len(samples) < 2:
        return base
    points = set.intersection(*(set(_candidates(plan, tasks).items()) for plan in samples))
    phases = set.intersection(*(set(_phases(plan).items()) for plan in samples))
    return replace(
        base,
        points=[max(point for point, _ in points)] if points else [],
        phases=sorted(name for name, _ in phases),
    )


def in_order(plans: Iterable[TrialPlan]) -> list[TrialPlan]:
    """The same plans: first those that leave what others need, last those that only take it.

    What most plans share is left first; plans that share nothing give it time to be there.

    Args:
        plans: Plans with what they share.
    """
    keys = [(plan, keys_of(plan)) for plan in plans]
    left: set[str] = set()
    rank: dict[int, int] = {}
    for order, count in ((0, 1), (2, None)):
        for i, (_, found) in enumerate(keys):
            if i not in rank and not left.issuperset(found[:count]):
                left.update(found)
                rank[i] = order
    for i, (_, found) in enumerate(keys):
        rank.setdefault(i, 3 if found else 1)
    return [keys[i][0] for i in sorted(rank, key=lambda i: (rank[i], i))]
