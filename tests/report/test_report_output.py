"""What a reader gets: text in four formats, figures, a folder of files, artifacts."""

from __future__ import annotations

import csv
import io
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from report_helpers import Store, SweepWriter, flat, realistic, result
from rich.console import Console

from raycl.errors import UserError
from raycl.report import figures, formats, main, words
from raycl.report.formats import print_table, render
from raycl.report.load import load
from raycl.report.main import make_out_folder, report, write_report
from raycl.report.table import Table, make_table
from raycl.rl.metrics import METRICS as RL_METRICS
from raycl.sweep import printed
from raycl.sweep.record.folder import SweepFolder
from raycl.training.metrics import AGAINST_BOUND, METRICS
from raycl.trial.matrix import Metric

METHODS = ["finetune", "online_ewc", "naive_rehearsal", "joint"]
TWO = ["finetune", "joint"]


@pytest.fixture(scope="session")
def writer(store: Store) -> SweepWriter:
    published = {"source": "a paper", "average_accuracy": {"joint": 97.5}}
    return realistic(store, "look", METHODS, seeds=3, tasks=4, published=published)


@pytest.fixture(scope="session")
def table(store: Store, writer: SweepWriter) -> Table:
    return make_table(load("look", store.uri))


def _pipes(text: str) -> list[dict[str, str]]:
    """The tables of a Markdown text, row by row."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif not line.startswith("|:"):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_terminal_table_fits_and_says_it_all(table: Table) -> None:
    text = render(table, "table")
    assert max(map(len, text.splitlines())) <= 100
    for part in ("class-incremental", "task-incremental", "percent", "vs finetune", "97.50"):
        assert part in text
    (first, second) = [r for r in table.rows if r["metric"] == "forgetting"][:2]
    lines = text.split("forgetting ↓")[1].splitlines()[1:3]
    assert f"{first['mean']:.2f} ± {first['std']:.2f}" in lines[0]
    assert lines[1].split()[0] == second["method"] == "online_ewc"
    assert _number(lines[1].split()[7]) == pytest.approx(second["difference"], abs=0.006)


def test_terminal_table_survives_markup_and_narrow_terminals(store: Store) -> None:
    name = "a[bold]_very_long_name_of_a_method_that_goes_on"
    store.sweep("odd", {}).trial(name, 0, result({"class": flat(10.0)}))
    table = make_table(load("odd", store.uri))
    text = io.StringIO()
    print_table(table, Console(file=text, width=60))
    assert max(map(len, text.getvalue().splitlines())) <= 60
    assert "[bold]" in "".join(text.getvalue().split())


def test_markdown_parses_back(table: Table) -> None:
    shown = [r for r in _pipes(render(table, "markdown")) if "metric" in r]
    headlines = 4
    assert len(shown) == headlines * len(METHODS) * 2
    for text, row in zip(shown, (r for r in table.rows if r["metric"] in HEADLINES), strict=True):
        assert text["method"] == row["method"]
        assert _number(text["mean ± std"].split(" ± ")[0]) == pytest.approx(row["mean"], abs=0.006)
        low, high = text["95 % interval"].strip("[]").split(", ")
        assert _number(low) == pytest.approx(row["low"], abs=0.006)
        assert _number(high) == pytest.approx(row["high"], abs=0.006)


HEADLINES = {
    "average_accuracy",
    "average_incremental_accuracy",
    "selection_accuracy",
    "forgetting",
    "backward_transfer",
}


def test_a_metric_with_a_published_number_is_shown(store: Store) -> None:
    """A number stands in the readout that has it, for all methods; others stay in json and csv."""
    published = {"source": "a paper", "class/backward_transfer_all": {"joint": -1.25}}
    realistic(store, "beside", TWO, seeds=2, tasks=3, published=published)
    table = make_table(load("beside", store.uri))
    rows = [r for r in table.rows if r["metric"] == "backward_transfer_all"]
    assert len(rows) == 2 * len(TWO)
    text = render(table, "table")
    title = words.IMAGES.metrics["backward_transfer_all"]
    assert text.count(title) == 1
    lines = text.split(title)[1].splitlines()[1:3]
    assert [line.split()[0] for line in lines] == TWO
    assert [line.split()[-1] for line in lines][1] == "−1.25"
    assert "learning accuracy" not in text
    shown = [r for r in _pipes(render(table, "markdown")) if r.get("metric") == title]
    assert [r["published"] for r in shown] == ["", "−1.25"]


@pytest.mark.parametrize(
    "known,metrics",
    [(words.IMAGES, METRICS | AGAINST_BOUND), (words.GAMES, RL_METRICS)],
)
def test_every_metric_has_a_title(known: words.Words, metrics: dict[str, Metric]) -> None:
    assert set(known.metrics) == set(metrics) | {"forward_transfer"}  # of games: see report.games
    for name, title in known.metrics.items():
        better = name not in metrics or metrics[name].higher_is_better
        assert title[-1] == ("↑" if better else "↓")
    assert set(words.IMAGES.headlines) == HEADLINES | set(AGAINST_BOUND)


def test_csv_parses_back(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(rows) == len(table.rows)
    for text, row in zip(rows, table.rows, strict=True):
        assert float(text["mean"]) == row["mean"]
        assert int(text["n"]) == row["n"]
        assert text["run_ids"].split() == row["run_ids"]
        assert (float(text["published"]) if text["published"] else None) == row["published"]


def test_json_is_the_rows(table: Table) -> None:
    assert json.loads(render(table, "json")) == table.rows
    assert "learning_accuracy" in {row["metric"] for row in table.rows}


def test_curve_after_each_task_is_the_mean_over_tasks_so_far() -> None:
    n = np.nan
    golden = [[80, 50, n, n], [86, 78, n, n], [70, 74, 82, n], [62, 81, 70, 84]]
    curve = figures.after_each_task(np.array([golden], dtype=float))
    np.testing.assert_allclose(curve, [[80, 82, 226 / 3, 74.25]])


@pytest.fixture(scope="session")
def drawn(table: Table) -> dict[str, bytes]:
    return figures.draw(table)


def test_figures_are_pictures_and_svg_is_deterministic(
    table: Table, drawn: dict[str, bytes]
) -> None:
    stems = {"accuracy", "forgetting", "matrix-split-digits-class", "matrix-split-digits-task"}
    assert set(drawn) == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert drawn == figures.draw(table)
    for name, data in drawn.items():
        if name.endswith(".png"):
            pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
            assert pixels.shape[0] > 200
            assert pixels.shape[1] > 400
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        else:
            assert b"<svg" in data


def test_a_method_looks_the_same_in_every_figure(drawn: dict[str, bytes]) -> None:
    for colour in figures.PALETTE[: len(METHODS)]:
        for name in ("accuracy.svg", "forgetting.svg"):
            assert colour.lower().encode() in drawn[name].lower()
    styles = [tuple(figures._style(_many(), f"m{i}").values()) for i in range(20)]
    assert len(set(styles)) == 20


def _many() -> Table:
    groups = [figures.Group("b", f"m{i}", []) for i in range(20)]
    return Table("many", None, [], groups)


def test_report_prints_and_writes(
    store: Store, writer: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report("look", store.uri, "json", tmp_path / "out", "joint")
    printed = json.loads(capsys.readouterr().out)
    assert {row["baseline"] for row in printed} == {None, "joint"}
    assert json.loads((tmp_path / "out/table.json").read_text()) == printed
    text = (tmp_path / "out/report.md").read_text()
    for part in text.split("](")[1:]:
        assert (tmp_path / "out" / part.split(")")[0]).stat().st_size > 1000
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"report.md", "table.csv", "table.json", "accuracy.svg", "forgetting.png"} <= names
    assert not any(name.startswith(".") for name in names)
    with pytest.raises(UserError, match=r"unknown format 'jsn'.*did you mean 'json'"):
        report("look", store.uri, "jsn")


def test_report_can_be_attached_to_the_sweep(
    store: Store, writer: SweepWriter, tmp_path: Path
) -> None:
    write_report("look", store.uri, tmp_path, log_to_parent=True)
    attached = {file.path for file in store.client.list_artifacts(writer.parent, "report")}
    assert attached == {
        "report/report.md",
        "report/table.csv",
        "report/table.json",
        "report/figures",
    }


@pytest.fixture(scope="session")
def painted(store: Store) -> SweepWriter:
    """Two benchmarks; pictures of one method on both, with two seeds."""
    writer = store.sweep("painted", {"methods": [{"name": m} for m in TWO]})
    for benchmark in ("a", "b"):
        writer.trial("joint", 0, result({"class": flat(1.0)}), benchmark=benchmark)
        for seed in (3, 4):
            found = result({"class": flat(1.0)})
            run = writer.trial("finetune", seed, found, benchmark=benchmark)
            for task in (1, 2):
                picture = Image.new("RGB", (40, 40), (seed, task, 0))
                store.client.log_image(run, picture, artifact_file=f"pictures/x-task-{task}.png")
    return writer


def test_pictures_of_methods_are_in_the_report(
    store: Store, painted: SweepWriter, tmp_path: Path
) -> None:
    """Pictures of the first seed are written; all are in MLflow."""
    write_report("painted", store.uri, tmp_path, log_to_parent=True)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("pictures/**/*.png")}
    names = [f"pictures/{b}/finetune/x-task-{task}.png" for b in "ab" for task in (1, 2)]
    assert found == set(names)
    assert Image.open(tmp_path / names[1]).getpixel((0, 0)) == (3, 2, 0)
    text = (tmp_path / "report.md").read_text()
    assert "### pictures: finetune on a, seed 3" in text
    assert [text.index(f"]({name})") for name in names] == sorted(
        text.index(f"]({name})") for name in names
    )
    below = store.client.list_artifacts(painted.parent, "report")
    assert "report/pictures" in {file.path for file in below}


@pytest.mark.parametrize("call", ["list_artifacts", "download_artifacts"])
def test_pictures_that_cannot_be_had_are_left_out(
    store: Store,
    painted: SweepWriter,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """Clients of object stores raise errors of their own."""
    whole = getattr(MlflowClient, call)

    def lost(self: MlflowClient, run_id: str, path: str, *args: str) -> Any:
        if path == "pictures":
            raise RuntimeError("no credentials")
        return whole(self, run_id, path, *args)

    monkeypatch.setattr(MlflowClient, call, lost)
    write_report("painted", store.uri, tmp_path)
    assert not (tmp_path / "pictures").exists()
    assert "pictures:" not in (tmp_path / "report.md").read_text()
    assert "pictures of methods cannot be read, and are left out" in caplog.text


def test_labels_that_are_spelt_alike_in_names_of_files(store: Store, tmp_path: Path) -> None:
    writer = store.sweep("alike", {})
    for benchmark in ("A → B", "A ← B"):
        found = result({"class": flat(1.0), "a-probe/class": flat(1.0)})
        run = writer.trial("finetune", 0, found, benchmark=benchmark)
        picture = Image.new("RGB", (40, 40))
        store.client.log_image(run, picture, artifact_file="pictures/x-task-1.png")
    write_report("alike", store.uri, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert names >= {
        f"figures/matrix-A---B{number}-{readout}.png"
        for number in ("", "-2")
        for readout in ("class", "a-probe-class")
    }
    assert names >= {f"pictures/A___B{number}/finetune/x-task-1.png" for number in ("", "-2")}


@pytest.mark.parametrize("below", ["", "/below"])
def test_files_where_the_report_should_go_are_refused_beforehand(
    store: Store,
    writer: SweepWriter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    below: str,
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"^--out: cannot make the folder .*file"):
        report("look", store.uri, out=Path(f"{tmp_path}/file{below}"))
    assert capsys.readouterr().out == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"^--out: .* cannot be written"):
        make_out_folder(tmp_path)


@pytest.mark.parametrize("broken", ["drawing", "writing", "attaching"])
def test_the_end_of_a_sweep_says_which_part_of_its_report_failed(
    store: Store, writer: SweepWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder, said = SweepFolder(tmp_path, "look"), list[str]()
    files, out = {"report.md": b"text"}, tmp_path / "look" / "report"

    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(printed.local, "load", lambda _: load("look", store.uri))
    monkeypatch.setattr(printed.local, "with_store", lambda sweep, _: (sweep, []))
    monkeypatch.setattr(printed, "print_table", lambda *_: None)
    monkeypatch.setattr(main, "report_files", fail if broken == "drawing" else lambda *_: files)
    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)
    if broken == "writing":
        folder.path.write_text("in the way")
    done = printed.print_report(folder, store.uri, whole=True, terminal=False, say=said.append)
    assert len(done.trials) == 12
    assert done.written == (out / "report.md").is_file() == (broken == "attaching")
    (line,) = said
    assert line.startswith(
        {
            "drawing": f"the report cannot be written to {out}: RuntimeError: no luck",
            "writing": f"the report cannot be written to {out}: [Errno ",
            "attaching": f"report: {out}; MLflow did not take it: no luck",
        }[broken]
    )


@pytest.mark.parametrize(
    "value,text", [(None, "–"), (-0.001, "+0.00"), (-1.25, "−1.25"), (37.564, "+37.56")]
)
def test_numbers_are_printed_with_a_true_sign(value: float | None, text: str) -> None:
    assert formats._number(value, "+.2f") == text
