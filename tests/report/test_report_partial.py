"""Matrices that were not measured whole: marks in the table, gaps in the figures, one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from report_helpers import result

from raycl.report import figures, partial
from raycl.report.formats import render
from raycl.report.load import TrackedRun, TrackedSweep
from raycl.report.table import Row, Table, make_table
from raycl.training import metrics

WHOLE = [[90.0, 50, None, None], [80, 90, 50, None], [70, 80, 90, 50], [60, 70, 80, 90]]
EVERY = [[100, 20, None, None], [None, 100, 20, None], [20, 20, 100, 20], [100] * 4]
LIMIT = [[100, 20, None, None], [20, 100, 20, None], [20, 20, 100, 20], [100] * 4]
ISOLATED = [[100, None, None, None], [100, 100, None, None], [100] * 3 + [None], [100] * 4]


def found(images: list[list[Any]] | None, shift: float = 0.0) -> dict[str, Any]:
    """A result of which the entries with images were measured."""
    r = np.array(WHOLE, dtype=float) + shift
    mask = np.tri(4, dtype=bool)
    if images is not None:
        mask = np.array([[n is not None for n in row] for row in images])
        r[~mask] = np.nan
    made = result({"class": np.where(np.tri(4) > 0, r, np.nan)}) if mask.all() else empty(r)
    made["metrics"] = {"class": metrics.compute(r, [100] * 4, measured=mask)}
    return made | ({} if images is None else {"images": images})


def empty(r: Any) -> dict[str, Any]:
    made = result({"class": WHOLE})
    made["matrices"] = {"class": [[None if np.isnan(v) else float(v) for v in row] for row in r]}
    return made


def table_of(trials: Mapping[str, Any], evaluate: Mapping[str, Any], **spec: Any) -> Table:
    runs = [
        TrackedRun(
            run_id="",
            name=f"{method}-s{seed}",
            kind="trial",
            benchmark="b",
            method=method,
            seed=seed,
            config_key=method,
            trial_key=f"{method}-{seed}",
            end="finished",
            reason="",
            started=seed,
            metrics={},
            result=found(images, seed),
        )
        for method, images in trials.items()
        for seed in range(2)
    ]
    spec = {"methods": [{"name": m} for m in trials], "evaluate": evaluate, "seeds": [0, 1]} | spec
    return make_table(TrackedSweep("s", "", "id", "", spec, runs))


def row(table: Table, method: str, metric: str) -> Row:
    (one,) = [r for r in table.rows if (r["method"], r["metric"]) == (method, metric)]
    return one


def section(text: str, title: str) -> list[str]:
    """The methods' lines below a title, without what is published."""
    lines = [line for line in text.splitlines() if not line.startswith("     ")]
    return lines[[line.split()[:1] for line in lines].index([title]) + 1 :]


@pytest.fixture
def table() -> Table:
    trials = {"finetune": EVERY, "separate": ISOLATED, "joint": EVERY}
    published = {"source": "x", "forgetting": {"finetune": {"mean": 10, "std": 50}}}
    return table_of(trials, {"limit": 20, "every": 3}, published=published)


def test_a_metric_that_reads_absent_entries_has_no_value(table: Table) -> None:
    for metric in ("forgetting", "average_incremental_accuracy", "one_step_forgetting"):
        lacks = row(table, "finetune", metric)
        assert [lacks[k] for k in ("mean", "std", "low", "high", "n", "difference")] == [
            *[None] * 4,
            0,
            None,
        ]
        assert row(table, "separate", metric)["mean"] is not None
        assert not row(table, "separate", metric)["sampled"]
    whole = row(table, "finetune", "average_accuracy")
    assert (whole["mean"], whole["n"], whole["sampled"]) == (75.5, 2, False)
    assert row(table, "finetune", "backward_transfer")["mean"] == -20.0
    assert [r["metric"] for r in table.rows if r["method"] == "finetune"] == [
        name for name, m in metrics.METRICS.items() if m.also in ("", "sizes")
    ]
    assert row(table, "finetune", "forgetting")["verdict"] == "not run in full"


def test_it_is_shown_as_missing_and_never_as_0(table: Table) -> None:
    text = render(table, "table")
    assert [line.split()[:2] for line in section(text, "forgetting")[:3]] == [
        ["finetune", "–"],
        ["separate", "20.00"],
        ["joint", "–"],
    ]
    rows = json.loads(render(table, "json"))
    assert {r["mean"] for r in rows if r["n"] == 0} == {None}
    line = next(r for r in render(table, "csv").splitlines() if "finetune,class,forgetting," in r)
    assert line.startswith("b,finetune,class,forgetting,0,,,,,True,")


def test_one_line_says_what_is_of_samples_and_what_is_absent(table: Table) -> None:
    (line,) = [n for n in table.notes if n.startswith("the diagonal and the last row")]
    assert line == (
        "the diagonal and the last row of each matrix are of all test images; ~: others are of 20 "
        "images per task, drawn once for all trials; –: below the diagonal only one row in 3 was "
        "measured, and metrics that read the others have no value"
    )


def test_a_metric_of_samples_is_marked() -> None:
    table = table_of({"finetune": LIMIT, "separate": ISOLATED}, {"limit": 20, "every": 1})
    assert row(table, "finetune", "forgetting")["sampled"]
    assert not row(table, "finetune", "average_accuracy")["sampled"]
    assert not row(table, "finetune", "backward_transfer")["sampled"]
    assert not row(table, "separate", "forgetting")["sampled"]
    lines = section(render(table, "table"), "forgetting")
    assert lines[0].split()[:2] == ["finetune", "~20.00"]
    assert lines[1].split()[:2] == ["separate", "20.00"]
    (line,) = [n for n in table.notes if "~:" in n]
    assert line == (
        "the diagonal and the last row of each matrix are of all test images; ~: others are of 20 "
        "images per task, drawn once for all trials"
    )


def test_whole_matrices_need_no_line() -> None:
    for table in (table_of({"finetune": None}, {}), table_of({"separate": ISOLATED}, {"every": 2})):
        assert not [n for n in table.notes if "diagonal" in n]
        assert not any(r["sampled"] for r in table.rows)


def test_omega_says_why_it_is_left_out() -> None:
    bound = {"report": {"upper_bound": "joint"}}
    table = table_of({"separate": ISOLATED, "joint": EVERY}, {"every": 3}, **bound)
    (line,) = [n for n in table.notes if n.startswith("omega leaves out")]
    assert line.endswith("joint seed 1: not every row of the matrices was measured")
    table = table_of({"separate": ISOLATED, "joint": LIMIT}, {"limit": 20}, **bound)
    assert row(table, "separate", "omega")["sampled"]


def test_figures_have_gaps_where_nothing_was_measured(table: Table) -> None:
    files = figures.draw(table)
    assert {"accuracy.png", "forgetting.png", "matrix-b-class.png"} < set(files)
    drawn = {group.method: lines for group, lines in figures._averages(table, "b", "class")}
    assert list(drawn) == ["finetune", "separate", "joint"]
    assert np.isnan(drawn["finetune"]).tolist() == [[False, True, False, False]] * 2
    assert drawn["finetune"][0, 2:].tolist() == [80.0, 75.0]


def test_a_probe_is_always_whole() -> None:
    one = found(EVERY)
    one["metrics"]["probe/class"] = one["metrics"]["class"]
    assert partial.absent(one, "class")
    assert not partial.absent(one, "probe/class")
    assert not partial.is_sampled(one | {"images": LIMIT}, "probe/class", "forgetting")
