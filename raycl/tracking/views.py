"""Saved views of an experiment: what MLflow's *Views* menu offers, so that nobody starts from zero.

Without them the page of a sweep shows one folded row. MLflow keeps a view as a tag of the
experiment: ``mlflow.sharedViewState.<id>`` = {name, createdAt, updatedAt, state}, as its *Save as
new view* writes it (3.17); people can change or delete ours like their own.
"""

from __future__ import annotations

import json
from typing import Any

from raycl.tracking.records import SweepRecord, now_ms
from raycl.tracking.words import WORDS

METHODS = "raycl-methods"
TRIALS = "raycl-trials"

_RUN = "attributes.`Run Name`"


def saved_views(sweep: SweepRecord) -> dict[str, str]:
    """The tags of the experiment that hold its views."""
    several = len(sweep.resolved.get("benchmark", [])) > 1
    by = ["raycl.method", "raycl.benchmark"] if several else ["raycl.method"]
    final = (
        "tags.`raycl.kind` != 'sweep' and tags.`raycl.kind` != 'search'"
        " and attributes.status != 'FAILED' and attributes.status != 'KILLED'"
    )
    every = "tags.`raycl.kind` != 'sweep'"
    words = WORDS[sweep.kind]
    headlines = [f"metrics.`{name}`" for name in words.headlines]
    validation = [f"metrics.`{words.validation}`"]
    titles = "Methods: mean over seeds", "All trials, by how they ended"
    return {
        **_view(METHODS, titles[0], final, by, headlines, words.charts),
        **_view(TRIALS, titles[1], every, ["raycl.end"], validation, words.charts),
    }


def _view(
    key: str, name: str, query: str, by: list[str], columns: list[str], charts: str
) -> dict[str, str]:
    state: dict[str, Any] = {
        "searchFilter": query,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*columns, "tags.`raycl.kind`", "tags.`raycl.end`"],
        "columnOrder": [_RUN, *columns],
        "columnWidths": {_RUN: 300} | dict.fromkeys(columns, 210),
        "runsHiddenMode": "FIRST_20_RUNS",
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": tag} for tag in by],
        },
        "chartsSearchFilter": charts,
    }
    now = now_ms()
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{key}": json.dumps(view)}
