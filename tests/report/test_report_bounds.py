"""Omega: every method relative to the upper bound of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from report_helpers import Store, flat, result

from raycl.report import bounds
from raycl.report.formats import FORMATS, render
from raycl.report.load import TrackedRun, load
from raycl.report.table import Row, Table, make_table
from raycl.training.metrics import omega

OWN, UPPER = (80.0, 60.0, 45.0), (82.0, 75.0, 70.0)
METHODS = [{"name": "finetune"}, {"name": "joint", "label": "UB"}]


def rows_of(averages: Sequence[float]) -> list[list[float | None]]:
    """A matrix whose rows have these averages, unevenly."""
    tasks = len(averages)
    made: list[list[float | None]] = []
    for t, average in enumerate(averages):
        seen = [average + 2.0 * i - t for i in range(t + 1)]
        made.append([*seen, *[None] * (tasks - t - 1)])
    return made


def make(store: Store, name: str, **spec: Any) -> Table:
    """Seeds 0 and 1 of both methods, seed 2 of one only; on a second benchmark no bound at all."""
    spec = {"methods": METHODS, "report": {"upper_bound": "UB"}} | spec
    writer = store.sweep(name, spec)
    for seed, shift in ((0, 0.0), (1, 3.0), (2, 5.0)):
        own = [value + shift for value in OWN]
        known = {"class": rows_of(own), "task": rows_of([95.0, 90.0, 85.0])}
        writer.trial("finetune", seed, result(known))
        if seed < 2:
            upper = [value + shift / 3 for value in UPPER]
            both = {"class": rows_of(upper), "task": rows_of([95.0, 95.0, 95.0])}
            writer.trial("UB", seed, result(both))
    writer.trial("finetune", 0, result({"class": rows_of(OWN)}), benchmark="other")
    return make_table(load(name, store.uri))


def row(table: Table, **wanted: str) -> Row:
    wanted = {"benchmark": "split-digits", "readout": "class", "metric": "omega"} | wanted
    (found,) = [r for r in table.rows if all(r[k] == v for k, v in wanted.items())]
    return found


@pytest.fixture(scope="session")
def table(store: Store) -> Table:
    published = {"source": "a table", "omega": {"finetune": 73.4, "UB": 100}}
    return make(store, "bounded", published=published)


def test_every_seed_is_compared_with_its_own_bound(table: Table) -> None:
    ours = row(table, method="finetune")
    values = [
        omega(rows_of([v + shift for v in OWN]), rows_of([v + shift / 3 for v in UPPER]))
        for shift in (0.0, 3.0)
    ]
    assert values[0] == pytest.approx(80.6156, abs=1e-4)
    assert (ours["seeds"], ours["n"]) == ([0, 1], 2)
    assert ours["mean"] == pytest.approx(sum(values) / 2)
    assert ours["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # over n - 1
    assert (ours["low"], ours["high"]) == (pytest.approx(min(values)), pytest.approx(max(values)))
    assert row(table, method="finetune", metric="average_accuracy")["n"] == 3


def test_the_bound_is_100_and_differences_are_taken(table: Table) -> None:
    bound, ours = row(table, method="UB"), row(table, method="finetune")
    assert (bound["mean"], bound["std"], bound["n"]) == (100.0, 0.0, 2)
    assert bound["baseline"] == "finetune"
    assert bound["difference"] == pytest.approx(100 - ours["mean"])


def test_every_readout_has_it(table: Table) -> None:
    known = row(table, method="finetune", readout="task")
    assert known["mean"] == pytest.approx(100 * (1 + 90 / 95 + 85 / 95) / 3)


def test_a_benchmark_without_bound_has_none(table: Table) -> None:
    assert not [r for r in table.rows if (r["benchmark"], r["metric"]) == ("other", "omega")]


def test_notes_say_what_it_is_and_what_is_left_out(table: Table) -> None:
    (formula,) = [note for note in table.notes if note.startswith("omega = ")]
    for part in ("A_t / A_UB,t", "figure 5 of arXiv", "over n - 1", "UB with the same seed"):
        assert part in formula
    (left_out,) = [note for note in table.notes if note.startswith("omega leaves out")]
    assert "finetune seed 2" in left_out
    assert "finetune seed 0 on other" in left_out


@pytest.mark.parametrize("fmt", FORMATS)
def test_it_is_in_every_format_beside_the_published_number(table: Table, fmt: str) -> None:
    assert row(table, method="finetune")["published"] == 73.4
    text = render(table, fmt)
    assert "omega" in text
    assert "73.4" in text


def test_without_a_bound_there_is_no_omega(store: Store) -> None:
    table = make(store, "unbounded", report={"upper_bound": None})
    assert not [r for r in table.rows if r["metric"] == "omega"]
    assert "omega" not in "".join(table.notes)


def test_a_bound_that_has_not_finished_is_said(store: Store) -> None:
    writer = store.sweep("early", {"methods": METHODS, "report": {"upper_bound": "UB"}})
    writer.trial("finetune", 0, result({"class": rows_of(OWN)}))
    table = make_table(load("early", store.uri))
    assert "no omega: UB, the upper bound, has not finished" in table.notes


def test_other_tasks_are_not_compared(store: Store) -> None:
    writer = store.sweep("cut", {"methods": METHODS, "report": {"upper_bound": "UB"}})
    writer.trial("finetune", 0, result({"class": rows_of(OWN)}))
    writer.trial("UB", 0, result({"class": rows_of(UPPER[:2])}))
    table = make_table(load("cut", store.uri))
    assert [r["method"] for r in table.rows if r["metric"] == "omega"] == ["UB"]


def run(method: str, found: dict[str, Any], seed: int = 0) -> TrackedRun:
    words = (f"{method}-{seed}", f"{method}-s{seed}", "trial", "digits", method)
    return TrackedRun(*words, seed, "config", "key", "finished", "", 0, {}, found)


ZERO = "the average accuracy of UB is 0 after a task"


@pytest.mark.parametrize(
    "own, upper, note",
    [
        ({"class": flat(50)}, {"class": flat(0)}, f"finetune seed 0, UB seed 0: {ZERO}"),
        (
            {"class": flat(50)},
            {"class": flat(90, tasks=3)},
            "finetune seed 0: UB has other tasks",
        ),
        (
            {"class": flat(50), "task": flat(60)},
            {"class": flat(0), "task": flat(90)},
            f"finetune seed 0 (class), UB seed 0 (class): {ZERO}",
        ),
        (
            {"class": flat(50), "teacher/class": flat(60)},
            {"class": flat(90)},
            "finetune seed 0 (teacher/class): UB has no such readout",
        ),
        (
            {"class": flat(50), "probe/class": flat(60)},
            {"class": flat(90), "probe/class": flat(0)},
            f"finetune seed 0 (probe/class), UB seed 0 (probe/class): {ZERO}",
        ),
    ],
)
def test_the_reason_why_omega_is_missing_is_true(
    own: dict[str, Any], upper: dict[str, Any], note: str
) -> None:
    spec = {"report": {"upper_bound": "UB"}}
    images = {"images": [[100, None], [None, 100]]} if "probe/class" in own else {}
    found = [run("finetune", result(own) | images), run("UB", result(upper) | images)]
    runs = bounds.prepare(found, spec)
    assert [n for n in bounds.notes(runs, spec) if "leaves out" in n] == [
        f"omega leaves out {note}"
    ]
