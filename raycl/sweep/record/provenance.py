"""Networks that start from weights pre-trained here: what is to be said of their trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from raycl import datasets
from raycl.datasets.base import Dataset
from raycl.datasets.ids import image_ids, unit
from raycl.networks.base import Weights
from raycl.sweep.file.blocks import benchmark_configs, networks_in
from raycl.sweep.file.model import Sweep
from raycl.sweep.plan.expand import groups
from raycl.sweep.plan.plan import TrialPlan
from raycl.training.pretrained import About, about
from raycl.training.run import build_benchmark
from raycl.trial.weights import named_in

OWN = "own"
"""Value of the tag ``pretrained`` of a trial whose network starts from such weights."""


class Provenance:
    """What the weights that a sweep's networks start from have seen.

    Each description is read once. After ``lines``, no file of weights is read again: it may be
    changed or gone, and its storage away, while trials start and end.

    Args:
        sweep: The sweep.
        data: Its loaded data sets by ``datasets.key``.
    """

    def __init__(self, sweep: Sweep, data: Mapping[str, Dataset]) -> None:
        self.sweep, self.data = sweep, data
        self._ids: dict[str, tuple[str, list[str]]] = {}
        self._abouts: dict[Weights, About | None] = {}

    @cached_property
    def _blocks(self) -> Mapping[str, Mapping[str, Any]]:
        configs = [*benchmark_configs(self.sweep.for_search), *benchmark_configs(self.sweep)]
        return {config["label"]: config for config in configs}

    def tags(self, plan: TrialPlan) -> dict[str, str]:
        """Tags of a trial, without the prefix; none for weights from elsewhere."""
        return self._tags(plan.benchmark, networks_in(plan.config).values())

    def lines(self) -> list[str]:
        """What to say before anything is trained: a line for each benchmark and kind of weights."""
        found: dict[str, None] = {}
        for group in [*groups(self.sweep), *groups(self.sweep.for_search)]:
            tags = self._tags(group.benchmark, networks_in(group.base.config).values())
            if seen := tags.get("seen_images"):
                found[f"images of {group.benchmark} that were seen in pre-training: {seen}"] = None
        return list(found)

    def _tags(self, benchmark: str, networks: Iterable[Any]) -> dict[str, str]:
        found = [one for weights in named_in(list(networks)) if (one := self._about(weights))]
        if not found:
            return {}
        return {"pretrained": OWN, "seen_images": self._seen(benchmark, found)}

    def _about(self, weights: Weights) -> About | None:
        if weights not in self._abouts:
            self._abouts[weights] = about(weights)
        return self._abouts[weights]

    def _seen(self, benchmark: str, found: Iterable[About]) -> str:
        """``"3 of 50000"``: images that any of the files has seen, of all that there are."""
        sets = self._of(benchmark)
        if sets is None:
            return "unknown"
        kind, ids = sets
        if any(one.unit != kind for one in found):
            return "unknown"
        known = {image for one in found for image in one.images}
        return f"{sum(one in known for one in ids)} of {len(ids)}"

    def _of(self, benchmark: str) -> tuple[str, list[str]] | None:
        """Unit and ids of all images of a benchmark's data sets; ``None`` if it has none."""
        if benchmark not in self._ids and self.data:
            wanted = build_benchmark(self._blocks[benchmark]).datasets()
            configs = {datasets.key(config): config for config in wanted}
            sets = [(self.data[key], config.invert) for key, config in configs.items()]
            parts = [(p, inv) for d, inv in sets for p in (d.train, d.validation, d.test) if p]
            units = {unit(*part) for part in parts}
            ids = [one for part, _ in parts for one in image_ids(part)]
            self._ids[benchmark] = (units.pop() if len(units) == 1 else "several", ids)
        return self._ids.get(benchmark)
