"""Saved views of an experiment: what MLflow's *Views* menu offers, so that nobody starts from zero.

Without them the page of a sweep shows one folded row. MLflow keeps a view as a tag of the
experiment: ``mlflow.sharedViewState.<id>`` = {name, createdAt, updatedAt, state}, as its *Save as
new view* writes it (3.17); people can change or delete ours like their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raycl import blocks
from raycl.tracking.records import SweepRecord, now_ms
from raycl.tracking.words import WORDS, Words

METHODS = "raycl-methods"
TRIALS = "raycl-trials"
SEARCH = "raycl-search"
TITLES = {
    METHODS: "Methods: mean over seeds",
    TRIALS: "All trials, by how they ended",
    SEARCH: "Search: the values tried",
}

_RUN, _STARTED = "attributes.`Run Name`", "attributes.start_time"


def saved_views(sweep: SweepRecord) -> dict[str, str]:
    """The tags of the experiment that hold its views."""
    words, found = WORDS[sweep.kind], searched(sweep)
    views = {METHODS: _methods(sweep, words), TRIALS: _trials(words)}
    if found:
        views[SEARCH] = _search(sweep, found)
    now = now_ms()
    return {
        f"mlflow.sharedViewState.{key}": json.dumps(
            {"name": TITLES[key], "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        )
        for key, state in views.items()
    }


def searched(sweep: SweepRecord) -> list[tuple[str, ...]]:
    """Names of the params that were searched together by some method, each combination once."""
    found: dict[tuple[str, ...], None] = {}
    for method in sweep.resolved.get("methods", []):
        own = {key: value for key, value in method.items() if key not in ("network", "train")}
        names = set(blocks.searched(own, "method"))
        for block in ("network", "train"):
            merged = blocks.merged(sweep.resolved[block], method[block])
            names.update(blocks.searched(merged, block))
        found[tuple(sorted(names))] = None
    return [names for names in found if names]


def _probes(sweep: SweepRecord) -> bool:
    return bool((sweep.resolved.get("evaluate") or {}).get("probe"))


def _methods(sweep: SweepRecord, words: Words) -> dict[str, Any]:
    """One folded row of means for each method."""
    final = (
        "tags.`raycl.kind` != 'sweep' and tags.`raycl.kind` != 'search'"
        " and attributes.status != 'FAILED' and attributes.status != 'KILLED'"
    )
    several = len(sweep.resolved.get("benchmark", [])) > 1
    labels = [method["label"] for method in sweep.resolved.get("methods", [])]
    by = ["raycl.method", "raycl.benchmark"] if several else ["raycl.method"]
    names = [*words.headlines, *(words.probed if _probes(sweep) else ())]
    return {
        **_state(final, [f"metrics.`{name}`" for name in names], 250),
        **_grouped(by, [] if several else labels),
        "chartsSearchFilter": words.charts,
    }


def _trials(words: Words) -> dict[str, Any]:
    """Every trial; those that finished are folded, so that the others are seen."""
    return {
        **_state("tags.`raycl.kind` != 'sweep'", [f"metrics.`{words.validation}`"], 250),
        **_grouped(["raycl.end"], ["finished"]),
        "chartsSearchFilter": words.charts,
    }


def _search(sweep: SweepRecord, found: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Search trials, the best one first, and a parallel coordinates plot for each combination."""
    search, section = sweep.resolved["search"], "raycl-searched"
    metric = f"metrics.`{search['metric']}`"
    params = ["label", *dict.fromkeys(name for names in found for name in names)]
    charts = [
        {
            "type": "PARALLEL",
            "uuid": f"{section}-{i}",
            "metricSectionId": section,
            "selectedParams": ["label", *names],
            "selectedMetrics": [search["metric"]],
            "showAllRuns": True,
            "deleted": False,
            "isGenerated": False,
        }
        for i, names in enumerate(found)
    ]
    return {
        **_state("tags.`raycl.kind` = 'search'", [metric, *(f"params.`{p}`" for p in params)], 210),
        "orderByKey": metric,
        "orderByAsc": search["mode"] == "min",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": section, "name": "searched values", "display": True, "columns": 1}
        ],
        "isAccordionReordered": True,  # keeps this section before those of the metrics
    }


def _state(query: str, columns: Sequence[str], width: int) -> dict[str, Any]:
    """What every view has. A width of 250 pixels shows a mean with all its digits."""
    return {
        "searchFilter": query,
        "orderByKey": _STARTED,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*columns, "tags.`raycl.kind`", "tags.`raycl.end`"],
        "columnOrder": [_RUN, *columns],
        "columnWidths": {_RUN: 300} | dict.fromkeys(columns, width),
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _grouped(tags: Sequence[str], folded: Sequence[str]) -> dict[str, Any]:
    """Rows grouped by tags; groups of these values of the first tag show only their mean."""
    return {
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": tag} for tag in tags],
        },
        "groupsExpanded": {f"tag.{tags[0]}.{value}": False for value in folded},
    }
