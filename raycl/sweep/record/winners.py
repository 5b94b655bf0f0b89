"""Chooses the winning configuration of each search, by validation data only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from raycl.sweep.record.outcomes import Outcome

Labels = tuple[str, str]
"""(benchmark label, method label)"""


def search_value(outcome: Outcome, metric: str) -> float:
    """The search metric of a finished trial.

    Args:
        outcome: A finished trial, whose row has a ``result``.
        metric: ``validation/<metric>`` under the primary readout, or
            ``validation/<readout>/<metric>``.
    """
    by_readout: dict[str, dict[str, float]] = outcome.row["result"]["validation_metrics"]
    _, *readout, name = metric.split("/")
    return by_readout[readout[0] if readout else next(iter(by_readout))][name]


def choose_winners(
    outcomes: Iterable[Outcome], metric: str, mode: str, seeds: int
) -> dict[Labels, dict[str, Any]]:
    """The best configuration of each group that has one.

    Args:
        outcomes: Outcomes of trials; only finished search trials count.
        metric: See ``search_value``.
        mode: ``max`` or ``min``.
        seeds: Seeds per configuration; one that lost a seed is out, for its mean would be another
            quantity.

    Returns:
        What varies in the sweep, with the winning values. Equal means: the smaller key wins, so
        that the choice does not depend on the order of arrival.
    """
    values: dict[Labels, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    varied: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        if outcome.kind == "search" and outcome.status == "finished":
            group = (outcome.benchmark, outcome.method)
            values[group][outcome.config_key].append(search_value(outcome, metric))
            varied[outcome.config_key] = outcome.varied
    sign = 1 if mode == "max" else -1
    best: dict[Labels, dict[str, Any]] = {}
    for group, configs in values.items():
        complete = {key: sign * fmean(v) for key, v in configs.items() if len(v) == seeds}
        if complete:
            best[group] = varied[min(complete, key=lambda key: (-complete[key], key))]
    return best
