"""One trial, finished: its key, its name, its configuration. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from raycl.errors import Problem
from raycl.sweep import kinds
from raycl.sweep.file.blocks import finish
from raycl.sweep.file.source import put, undotted

MAX_CONFIG_BYTES = 65_536


@dataclass(frozen=True)
class TrialPlan:
    """One trial, finished.

    Attributes:
        key: 16 hex digits: hash of the finished configuration and the method's label, without
            resources and kind.
        config_key: The same without the seed: trials to be averaged.
        name: For people: the method's label, what varies in the sweep, the seed. Unique.
        method: The method's label.
        benchmark: The benchmark's label.
        seed: The trial's seed.
        kind: ``trial`` (fixed configuration), ``search`` or ``winner``.
        config: A ``TrialConfig`` or ``SequenceConfig`` as plain JSON.
        resources: ``{"cpu": ..., "gpu": ..., "env_runners": ...}``.
        varied: Dotted path in ``config`` to the value, of what varies in the sweep.
        code: Hash of the method's file if it is not raycl's own.
        points: Points up to which it is the same as other trials; see ``raycl.sweep.plan.sharing``.
        phases: Names of phases that other trials train, too; see there.
    """

    key: str
    config_key: str
    name: str
    method: str
    benchmark: str
    seed: int
    kind: str
    config: dict[str, Any]
    resources: dict[str, float]
    varied: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    points: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)


def threads_of(cpus: float) -> int:
    """Threads of a trial that asks for so many CPUs."""
    return max(1, int(cpus))


def fill(base: TrialPlan, values: Mapping[str, Any], seed: int, kind: str) -> TrialPlan:
    """A finished plan from a group's base.

    Args:
        base: ``Group.base``, or a plan made of it for a search stage (``search_base``).
        values: Dotted path to value, for each search space of the group.
        seed: The trial's seed.
        kind: ``trial``, ``search`` or ``winner``.

    Raises:
        Problem: The values do not go together, or the configuration is too large.
    """
    config = deepcopy(base.config)
    for path, value in values.items():
        put(config, undotted(path), value)
    config |= finish(config, kinds.of(config["benchmark"])) | {"seed": seed}
    varied = {path: _get(config, path, values[path]) for path in sorted(values)}
    text = canonical(config)
    if len(text) > MAX_CONFIG_BYTES:
        raise Problem((), f"the configuration has {len(text)} bytes, more than {MAX_CONFIG_BYTES}")
    identity = {k: v for k, v in config.items() if k not in ("seed", "threads")}
    identity |= {"label": base.method, "code": base.code}
    if kind == "search" and "evaluate" in config:  # search trials had no cache_mb once
        evaluate = {k: v for k, v in config["evaluate"].items() if k != "cache_mb"}
        identity |= {"evaluate": evaluate}
        if not evaluate:
            del identity["evaluate"]
    return replace(
        base,
        key=hashed(identity | {"seed": seed}),
        config_key=hashed(identity),
        name=_name(base.method, varied, seed),
        seed=seed,
        kind=kind,
        config=config,
        varied=varied,
    )


def plan_of(config: Mapping[str, Any]) -> TrialPlan:
    """The plan in a Tune trial's configuration.

    Args:
        config: ``{"plan": plan as packed by "packed"}``; with Optuna also ``"space"``, dotted path
            to value, to be filled into the plan, which is a ``search_base`` with its seed set.
    """
    plan = _unpacked(config["plan"])
    return fill(plan, config["space"], plan.seed, plan.kind) if "space" in config else plan


def packed(plan: TrialPlan) -> str:
    """A plan as text: Tune copies all configurations for each trial that it makes of them."""
    return json.dumps(asdict(plan))


@lru_cache(2048)
def _unpacked(text: str) -> TrialPlan:
    return TrialPlan(**json.loads(text))


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _get(config: Any, path: str, given: Any) -> Any:
    """The finished value at a path; the one given, if the configuration leaves a default out."""
    *parents, last = undotted(path)
    for part in parents:
        config = config[part]
    return config.get(last, given) if isinstance(config, dict) else config[last]


def hashed(value: Any) -> str:
    """16 hex digits that stand for a value as JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def _name(label: str, varied: Mapping[str, Any], seed: int) -> str:
    short = Counter(path.rpartition(".")[2] for path in varied)
    parts = [label]
    for path, value in varied.items():
        last = path.rpartition(".")[2]
        parts.append(f"{last if short[last] == 1 else path}{_text(value)}")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "", "-".join(parts))
    return f"{stem[:60]}-s{seed}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "x".join(_text(v) for v in value)
    if isinstance(value, dict):
        return str(value["name"]) if isinstance(value.get("name"), str) else hashed(value)[:6]
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
