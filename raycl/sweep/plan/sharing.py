"""Finds what trials of a sweep have in common, so that the work is done once.

Points along the stream are numbered as in ``raycl.trial.sharing``. What trials have in common at a
point is a hash of everything that can have mattered up to there; the state itself is left in the
sweep's storage by whoever comes by first, see ``raycl.sweep.execution.prefixes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from raycl.sweep import kinds
from raycl.sweep.file.blocks import digest
from raycl.sweep.plan.plan import TrialPlan, hashed
from raycl.trial.sharing import first_method, options_at, trained, unaffected

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
    on = {name: plan.resources.get(name, 0.0) for name in ("gpu", "env_runners")}
    return hashed(
        plan.config
        | {"method": options_at(block, kind.named("method", block), point)}
        | {"code": code, "point": point, "gpu": bool(on["gpu"]), "env_runners": on["env_runners"]}
        | ({"method settings": sorted(kind.settings(kind.named("method", plan.config["method"])))})
    )


def shared_points(plans: Sequence[TrialPlan], tasks: Mapping[str, int]) -> list[TrialPlan]:
    """The same plans, each with the points up to which it is the same as another.

    Points at which no more plans are the same than at a later one are left out.

    Args:
        plans: Finished plans.
        tasks: Tasks of each benchmark, by its label.
    """
    keys = {plan.key: _candidates(plan, tasks[plan.benchmark]) for plan in plans}
    count = Counter(key for found in keys.values() for key in found.values())
    return [replace(plan, points=_needed(keys[plan.key], count)) for plan in plans]


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


def points_of_any(samples: Sequence[TrialPlan], tasks: Mapping[str, int]) -> list[int]:
    """The point up to which all plans are the same that a search may propose; none: empty.

    Args:
        samples: One plan, and others in each of which one option has another value.
        tasks: Tasks of each benchmark, by its label.
    """
    found = [set(_candidates(plan, tasks[plan.benchmark]).items()) for plan in samples]
    common = set.intersection(*found)
    return [max(point for point, _ in common)] if common and len(samples) > 1 else []


def in_order(plans: Iterable[TrialPlan]) -> list[TrialPlan]:
    """The same plans: first those that leave what others need, last those that only take it.

    What most plans share is left first; plans that share nothing give it time to be there.

    Args:
        plans: Plans with their points.
    """
    keys = [(plan, [prefix_key(plan, point) for point in plan.points]) for plan in plans]
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
