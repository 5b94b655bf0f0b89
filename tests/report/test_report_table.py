"""Numbers of the table, from runs in a real store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from report_helpers import Store, flat, result

from raycl.errors import UserError
from raycl.report import load as loading
from raycl.report.formats import render
from raycl.report.load import TrackedSweep, load
from raycl.report.table import Row, Table, make_table

SPEC: dict[str, Any] = {
    "methods": [{"name": "x:Ours", "label": "ours"}, {"name": "finetune", "label": "finetune"}],
    "report": {"baseline": None},
    "published": {
        "source": "a paper, table 1",
        "note": "another network",
        "average_accuracy": {"ours": 61, "finetune": None},
        "task/average_accuracy": {"split-digits": {"finetune": 55.5}},
    },
}


@pytest.fixture(scope="session")
def golden(store: Store) -> TrackedSweep:
    """Two methods with unequal seeds, and one run of every kind that must not count."""
    writer = store.sweep("golden", SPEC)
    for seed, value in {0: 20.0, 1: 22.0, 2: 27.0}.items():
        found = result({"class": flat(value), "task": flat(value + 30)}, seconds=10.0 + seed)
        writer.trial("finetune", seed, found)
    for seed, value in {1: 34.0, 2: 40.0, 3: 90.0}.items():
        writer.trial("ours", seed, result({"class": flat(value), "task": flat(value)}))
    decoy = result({"class": flat(100.0), "task": flat(100.0)})
    error = "RuntimeError: loss became nan\nTraceback (most recent call last):\n  File x"
    writer.trial("ours", 4, decoy, end="error", error=error)
    writer.trial("ours", 5, decoy, end="stopped-early")
    writer.trial("ours", 6, decoy, end="killed")
    writer.trial("ours", 7, decoy, end="orphaned")
    writer.trial("ours", 8, decoy, end="running")
    writer.trial("ours", 9, None)
    return load("golden", store.uri)


def row(table: Table, **wanted: str) -> Row:
    """The only row with these fields; class-incremental average accuracy unless said."""
    wanted = {"readout": "class", "metric": "average_accuracy"} | wanted
    (found,) = [r for r in table.rows if all(r[k] == v for k, v in wanted.items())]
    return found


def test_golden_rows(golden: TrackedSweep) -> None:
    table = make_table(golden)
    base = row(table, method="finetune")
    assert (base["n"], base["mean"], base["std"]) == (3, 23.0, pytest.approx(13**0.5))
    assert (base["low"], base["high"]) == (20.0, 27.0)
    assert base["seeds"] == [0, 1, 2]
    assert base["seconds"] == 11.0
    assert base["difference"] is base["difference_n"] is base["baseline"] is None
    ours = row(table, method="ours")
    assert (ours["n"], ours["mean"]) == (3, pytest.approx(164 / 3))
    assert (ours["baseline"], ours["difference"], ours["difference_n"]) == ("finetune", 12.5, 2)
    assert (ours["difference_low"], ours["difference_high"]) == (12.0, 13.0)
    assert row(table, method="finetune", readout="task")["mean"] == pytest.approx(53.0)


def test_only_finished_runs_count_and_the_others_are_named(golden: TrackedSweep) -> None:
    table = make_table(golden)
    assert max(r["high"] for r in table.rows) <= 90
    (line,) = [note for note in table.notes if note.startswith("not in the table")]
    assert "1 failed (ours seed 4: RuntimeError: loss became nan)" in line
    for text in ("1 stopped early", "1 killed", "1 orphaned", "1 still running"):
        assert text in line
    assert "1 finished without a readable results/matrix.json (ours seed 9)" in line
    assert any("shared with finetune only: ours" in note for note in table.notes)
    assert any("fewer than 5 seeds" in note for note in table.notes)


def test_order_is_benchmark_readout_metric_then_sweep_order(golden: TrackedSweep) -> None:
    rows = make_table(golden).rows
    assert [r["method"] for r in rows[:2]] == ["ours", "finetune"]
    assert [r["readout"] for r in rows] == sorted(r["readout"] for r in rows)
    assert rows[0]["metric"] == rows[1]["metric"] == "average_accuracy"


def test_rows_have_the_promised_schema(golden: TrackedSweep) -> None:
    for found in json.loads(json.dumps(list(make_table(golden).rows), allow_nan=False)):
        assert isinstance(found["n"], int)
        assert found["readout"] in ("class", "task", "domain")
        assert len(found["run_ids"]) == len(found["seeds"]) == found["n"]
        for key in ("benchmark", "method", "metric"):
            assert isinstance(found[key], str)
        assert {"mean", "std", "low", "high", "published"} <= found.keys()
        assert {"seconds", "peak_memory_mb", "stored_bytes", "extra_parameters"} <= found.keys()


def test_published_stands_beside_ours(golden: TrackedSweep) -> None:
    table = make_table(golden)
    assert row(table, method="ours")["published"] == 61.0
    assert row(table, method="ours", readout="task")["published"] is None
    assert row(table, method="finetune")["published"] is None
    assert row(table, method="finetune", readout="task")["published"] == 55.5
    assert "published: a paper, table 1; another network" in table.notes


def test_published_numbers_of_several_revisions(golden: TrackedSweep) -> None:
    numbers = {"ours": {"v2": 61.5, "v1": None, "v0": -3}, "finetune": 55.5}
    spec = {**golden.spec, "published": {"source": "s", "average_accuracy": numbers}}
    table = make_table(dataclasses.replace(golden, spec=spec))
    found = row(table, method="ours")
    assert (found["published"], found["published_revisions"]) == (61.5, numbers["ours"])
    assert row(table, method="finetune")["published_revisions"] is None
    assert "61.50 (v2), – (v1), −3.00 (v0)" in render(table, "markdown")
    assert "v2: 61.5; v1: None; v0: -3" in render(table, "csv")
    assert json.loads(render(table, "json")) == table.rows


BFLOAT16, FLOAT32 = {"precision": "bfloat16"}, {"precision": "float32"}
DIGITS = {"name": "split", "dataset": {"name": "digits"}}
LIMITED = {"name": "split", "dataset": {"name": "mnist", "limit": 9}}
WITHIN = (
    "within: our mean differs from the published one by at most its standard deviation, the error "
    "of a value read off a plot, or what was lost when it was rounded"
)


def with_published(golden: TrackedSweep, printed: Any, **spec: Any) -> Table:
    """The golden sweep, ours 54.67 with seeds 1, 2 and 3, beside what is printed of it."""
    published = {"source": "s", "in_full": {"train": {"epochs": 9}}}
    published["average_accuracy"] = {"ours": printed, "finetune": None}
    given = {"train": {"epochs": 9, "lr": 1}, "seeds": [1, 2, 3], "published": published} | spec
    return make_table(dataclasses.replace(golden, spec={**golden.spec, **given}))


@pytest.mark.parametrize(
    "printed, spec, verdict, shown",
    [
        ({"mean": 55.6, "std": 1.0, "n": 3}, {}, "within", "55.60 ± 1.00, within |"),
        ({"mean": 55.7, "std": 1.0}, {}, "outside", "55.70 ± 1.00, outside |"),
        ({"mean": 54.0, "error": 0.6, "std": 5.0}, {}, "outside", "54.00 ± 5.00, outside |"),
        ({"mean": 54.0, "source": "a plot"}, {}, None, "54.00 |"),
        (54, {}, None, "54.00 |"),
        (
            {"v2": {"mean": 54.5, "std": 0.2}, "v1": 50},
            {},
            "within",
            "54.50 (v2), 50.00 (v1), within |",
        ),
        ({"v2": None, "v1": {"mean": 50, "std": 1.0}}, {}, None, "– (v2), 50.00 (v1) |"),
        (54, {"train": {"epochs": 8}}, "not run in full", "54.00, not run in full |"),
        (54, {"seeds": [1, 2, 3, 4]}, "not run in full", "54.00, not run in full |"),
        (54, {"stop": {"tasks": 2}}, "not run in full", "54.00, not run in full |"),
        (
            54,
            {"evaluate": {"precision": "bfloat16"}},
            "not run in full",
            "54.00, not run in full |",
        ),
        (
            54,
            {"methods": [{"name": "finetune"}, {"name": "a", "label": "ours", "train": BFLOAT16}]},
            "not run in full",
            "54.00, not run in full |",
        ),
        (
            54,
            {"methods": [{"name": "finetune", "train": BFLOAT16}, {"name": "ours"}]},
            None,
            "54.00 |",
        ),
        (
            54,
            {"train": {"epochs": 9} | BFLOAT16, "methods": [{"name": "ours", "train": FLOAT32}]},
            None,
            "54.00 |",
        ),
        (
            54,
            {"methods": [{"name": "ours", "train": {"epochs": 2}}]},
            "not run in full",
            "54.00, not run in full |",
        ),
        (
            54,
            {"benchmark": {"name": "split", "dataset": {"name": "mnist", "limit": 9}}},
            "not run in full",
            "54.00, not run in full |",
        ),
        (54, {"benchmark": [{**DIGITS, "label": None}, LIMITED]}, None, "54.00 |"),
        (
            54,
            {"benchmark": [{**LIMITED, "label": "split-digits"}, DIGITS]},
            "not run in full",
            "54.00, not run in full |",
        ),
        (
            54,
            {"benchmark": [DIGITS, {**LIMITED, "name": "theirs.py:Own"}]},
            "not run in full",
            "54.00, not run in full |",
        ),
        ({"mean": 54.7, "std": 0.0}, {}, "within", "54.70 ± 0.00, within |"),
        ({"mean": 54.8, "std": 0.0}, {}, "outside", "54.80 ± 0.00, outside |"),
    ],
)
def test_how_ours_compares_with_what_is_published(
    golden: TrackedSweep, printed: Any, spec: dict[str, Any], verdict: str | None, shown: str
) -> None:
    table = with_published(golden, printed, **spec)
    assert row(table, method="ours")["verdict"] == verdict
    text = " ".join(render(table, "markdown").split())
    assert shown in text
    assert (WITHIN in table.notes) == (verdict in ("within", "outside"))
    assert any("within: our mean" in note for note in table.notes) == (WITHIN in table.notes)
    assert ("published average_accuracy of ours on split-digits: a plot" in table.notes) == (
        "a plot" in str(printed)
    )
    assert json.loads(render(table, "json")) == table.rows
    assert verdict is None or verdict in render(table, "csv")
    assert row(table, method="finetune")["verdict"] is None


@pytest.mark.parametrize(
    "own, verdict",
    [
        ({"train": {"lr": 0.1}, "steps": 10}, None),
        ({"train": {"lr": 0.1}, "steps": 5}, "not run in full"),
        ({"steps": 10}, "not run in full"),
        ({"label": "ours", "train": {"lr": 0.1}, "steps": 10}, None),
    ],
)
def test_a_method_may_have_settings_of_its_own_in_full(
    golden: TrackedSweep, own: dict[str, Any], verdict: str | None
) -> None:
    wanted = {"train": {"lr": 1}, "methods": {"ours": {"train": {"lr": 0.1}, "steps": 10}}}
    published = {"source": "s", "in_full": wanted, "average_accuracy": {"ours": 54}}
    methods = [{"name": "ours", **own}]
    table = with_published(golden, 54, methods=methods, published=published)
    assert row(table, method="ours")["verdict"] == verdict


def test_baseline_can_be_chosen_and_must_exist(golden: TrackedSweep, store: Store) -> None:
    table = make_table(golden, "ours")
    assert row(table, method="finetune")["difference"] == -12.5
    with pytest.raises(UserError, match=r"--baseline: no method 'our'.*did you mean 'ours'"):
        make_table(golden, "our")
    writer = store.sweep("written", {"report": {"baseline": "b"}})
    for method, value in (("a", 10.0), ("b", 12.0)):
        writer.trial(method, 0, result({"class": flat(value)}))
    table = make_table(load("written", store.uri))
    assert row(table, method="a")["difference"] == -2.0
    assert row(table, method="a")["difference_low"] is None
    assert any(note.startswith("one seed") for note in table.notes)


def test_baseline_that_did_not_finish_is_said(store: Store) -> None:
    writer = store.sweep("no-base", {"methods": [{"name": "finetune"}, {"name": "a"}]})
    writer.trial("a", 0, result({"class": flat(10.0)}))
    writer.trial("finetune", 0, None, end="error", error="ValueError: no")
    table = make_table(load("no-base", store.uri))
    assert row(table, method="a")["difference"] is None
    assert "no differences on split-digits: finetune has not finished there" in table.notes


def test_latest_of_two_runs_of_one_trial(store: Store) -> None:
    writer = store.sweep("twice", {})
    writer.trial("a", 0, result({"class": flat(10.0)}))
    latest = writer.trial("a", 0, result({"class": flat(14.0)}))
    table = make_table(load("twice", store.uri))
    assert row(table, method="a")["run_ids"] == [latest]
    assert row(table, method="a")["mean"] == pytest.approx(14.0)
    assert "finished more than once, the latest is used: a seed 0" in table.notes


def test_configurations_are_never_averaged_together(store: Store) -> None:
    writer = store.sweep("two-configs", {})
    writer.trial("a", 0, result({"class": flat(10.0)}), config="c1")
    writer.trial("a", 0, result({"class": flat(30.0)}), config="c2")
    table = make_table(load("two-configs", store.uri))
    assert row(table, method="a (c1)")["mean"] == 10.0
    assert row(table, method="a (c2)")["mean"] == 30.0


def test_search_is_one_line_and_no_row(store: Store) -> None:
    spec = {"search": {"protocol": "first_tasks", "metric": "validation/average_accuracy"}}
    writer = store.sweep("searched", spec)
    for sample in range(4):
        found = result({"class": flat(99.0, tasks=3)}) if sample < 3 else None
        end = "finished" if sample < 3 else "stopped-early"
        last = {"cost/seconds": 100.0} if sample < 3 else None
        writer.trial("a", 1000, found, kind="search", end=end, last=last, config=f"s{sample}")
    for seed in range(5):
        writer.trial("a", seed, result({"class": flat(50.0)}), kind="winner")
    table = make_table(load("searched", store.uri))
    assert row(table, method="a")["mean"] == 50.0
    (line,) = [note for note in table.notes if note.startswith("search")]
    assert line.startswith(
        "search: 4 trials (3 finished, 1 stopped early) of 3 tasks in 5.0 min of training "
        "(not counting 1 that ended inside a task); protocol first_tasks"
    )
    assert "without test data" in line
    assert not any("not in the table" in note or "fewer than" in note for note in table.notes)


def test_only_the_latest_sweep_of_a_name_is_read(store: Store) -> None:
    store.sweep("again", {}, "01OLD").trial("a", 0, result({"class": flat(10.0)}))
    store.sweep("again", {}, "01NEW").trial("a", 0, result({"class": flat(20.0)}))
    assert row(make_table(load("again", store.uri)), method="a")["mean"] == 20.0


def test_nothing_finished(store: Store) -> None:
    store.sweep("empty", {}).trial("a", 0, None, end="running")
    table = make_table(load("empty", store.uri))
    assert table.rows == []
    assert "no trial has finished" in table.notes


def test_reading_in_pages_finds_every_run(
    golden: TrackedSweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_PAGE", 5)
    again = load("golden", store.uri)
    assert {run.run_id for run in again.runs} == {run.run_id for run in golden.runs}
    assert len(again.runs) == 12


def test_a_lost_sweep_file_is_said(store: Store) -> None:
    writer = store.sweep("no-spec", {})
    writer.trial("a", 0, result({"class": flat(10.0)}))
    table = make_table(load("no-spec", store.uri))
    assert any(note.startswith("sweep/resolved.yaml cannot be read") for note in table.notes)


def test_what_was_written_in_half_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    writer = store.sweep("torn", {"name": "torn"})
    found = result({"class": flat(10.0)})
    whole, *torn = [writer.trial("a", seed, found) for seed in range(5)]
    for run, text in zip(torn, (b'{"matrices": {', b"[1]", b"", b"\xff"), strict=True):
        store.client.log_text(run, "", "results/matrix.json")
        place = store.client.download_artifacts(run, "results/matrix.json")
        Path(place).write_bytes(text)
    store.client.log_text(writer.parent, "name: [", "sweep/resolved.yaml")
    sweep = load("torn", store.uri)
    assert [run.run_id for run in sweep.runs if run.result is not None] == [whole]
    assert sweep.spec == {}
    assert "results/matrix.json of 4 runs cannot be read: " in caplog.text
    assert any("4 finished without a readable" in note for note in make_table(sweep).notes)


def test_files_that_cannot_be_fetched_are_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients of object stores raise errors of their own."""

    def closed(*_: object) -> str:
        raise RuntimeError("no credentials")

    store.sweep("closed", {}).trial("a", 0, result({"class": flat(10.0)}))
    monkeypatch.setattr(MlflowClient, "download_artifacts", closed)
    assert [run.result for run in load("closed", store.uri).runs] == [None]
    assert "results/matrix.json of 1 runs cannot be read: no credentials" in caplog.text


def test_unknown_names_are_one_clear_line(golden: TrackedSweep, store: Store) -> None:
    with pytest.raises(UserError, match=r"no sweep named 'goldn'.*did you mean 'golden'"):
        load("goldn", store.uri)
    store.client.create_experiment("foreign")
    with pytest.raises(UserError, match=r"experiment 'foreign' .* holds no raycl sweep"):
        load("foreign", store.uri)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"there is no .*mlflow\.db"):
        load("x", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        load("x", "http://127.0.0.1:9")
