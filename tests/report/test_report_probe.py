"""Readouts of somebody who is asked beside the method: the linear probe, and any other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from report_helpers import Store, flat, result

from raycl.report import figures, words
from raycl.report.formats import render
from raycl.report.load import load
from raycl.report.table import Table, make_table
from raycl.training import metrics
from raycl.trial.matrix import needed

TITLES = [
    "class-incremental (task unknown)",
    "task-incremental (task known)",
    "teacher, class-incremental (task unknown)",
    "linear probe on frozen features, class-incremental (diagnostic)",
    "linear probe on frozen features, task-incremental (diagnostic)",
]
READOUTS = ["class", "task", "teacher/class", "probe/class", "probe/task"]


def with_probe(value: float, every: str) -> dict[str, Any]:
    """A trial's result with a teacher of its own, and a probe 10 points above the method."""
    found = result({"class": flat(value), "task": flat(value), "teacher/class": flat(value + 5)})
    for readout in ("probe/task", "probe/class"):  # not in the order of a report
        matrix = flat(value + 10)
        if every == "end":
            matrix[0] = [None, None]
        found["matrices"][readout] = matrix
        r = np.array(matrix, dtype=float)
        measured = needed("last" if every == "end" else "all", len(r))
        found["metrics"][readout] = metrics.compute(r, measured=measured)
    return found


@pytest.fixture(params=["end", "task"])
def table(store: Store, request: pytest.FixtureRequest) -> Table:
    spec = {
        "methods": [{"name": "finetune"}, {"name": "joint"}],
        "evaluate": {"probe": {"every": request.param}},
        "published": {
            "source": "a paper",
            "average_accuracy": {"joint": 81.5},
            "probe/class/average_accuracy": {"joint": 91.5},
        },
    }
    name = f"probe-{request.param}"
    if store.client.get_experiment_by_name(name) is None:
        writer = store.sweep(name, spec)
        for method, base in (("finetune", 20.0), ("joint", 80.0)):
            for seed in range(2):
                writer.trial(method, seed, with_probe(base + seed, request.param))
    return make_table(load(name, store.uri))


def test_tables_have_titles_and_an_order(table: Table) -> None:
    assert list(dict.fromkeys(row["readout"] for row in table.rows)) == READOUTS
    text = render(table, "table")
    places = [text.index(f"split-digits · {title} · percent") for title in TITLES]
    assert places == sorted(places)
    markdown = render(table, "markdown")
    assert all(f"### split-digits: {title}, percent" in markdown for title in TITLES)
    assert {row["readout"] for row in json.loads(render(table, "json"))} == set(READOUTS)


def test_numbers_of_a_probe_are_like_any_other(table: Table) -> None:
    found = {
        (row["readout"], row["method"]): row
        for row in table.rows
        if row["metric"] == "average_accuracy"
    }
    assert found["probe/class", "joint"]["mean"] == 90.5
    assert found["probe/class", "joint"]["difference"] == 60.0
    published = {key: row["published"] for key, row in found.items() if row["published"]}
    assert published == {("class", "joint"): 81.5, ("probe/class", "joint"): 91.5}
    probed = {row["metric"] for row in table.rows if row["readout"] == "probe/class"}
    assert ("forgetting" in probed) == (table.name == "probe-task")


def test_figures(table: Table) -> None:
    files = figures.draw(table)
    assert {"matrix-split-digits-probe-class.png", "matrix-split-digits-teacher-class.svg"} < set(
        files
    )
    assert "accuracy.png" in files
    assert "forgetting.png" in files
    assert not any("/" in name for name in files)
    panels = [("split-digits", readout) for readout in READOUTS]
    slots, columns = figures._slots(panels)
    assert columns == 2
    assert slots == [*panels[:3], None, *panels[3:]]


def test_words_go_by_the_last_part() -> None:
    assert [words.IMAGES.title(readout) for readout in READOUTS] == TITLES
    assert words.IMAGES.short("probe/class") == "linear probe, class-incremental"
    assert words.IMAGES.short("teacher/task") == "teacher, task-incremental"
    assert words.IMAGES.short("task") == "task-incremental"
    assert words.of("probe/class") is words.of("teacher/domain") is words.IMAGES
    assert words.of("other/normalised") is words.GAMES
    assert words.GAMES.unit("other/score") == words.GAMES.unit("score")
    assert words.IMAGES.decimals("probe/task") == 2
    assert words.IMAGES.is_percent("probe/task")
    assert not words.GAMES.is_percent("other/score")
    assert sorted([READOUTS[i] for i in (4, 0, 3, 2, 1)], key=words.order) == READOUTS
